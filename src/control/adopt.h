/*-------------------------------------------------------------------------
 *
 * adopt.h
 *	  Adopts what was restored from a dump, or came by logical replication.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_ADOPT_H
#define CQRS_ADOPT_H

extern void cqrs_adopt_identity(void);

#endif							/* CQRS_ADOPT_H */
