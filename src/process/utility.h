/*-------------------------------------------------------------------------
 *
 * utility.h
 *	  Utility commands that concern our processes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_UTILITY_H
#define CQRS_UTILITY_H

extern void cqrs_utility_init(void);

#endif							/* CQRS_UTILITY_H */
