/*-------------------------------------------------------------------------
 *
 * signature.h
 *	  How a function is named in our tables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_SIGNATURE_H
#define CQRS_SIGNATURE_H

extern char *cqrs_signature_of(Oid funcid);
extern Oid	cqrs_signature_find(const char *signature);
extern char *cqrs_signature_named(const char *name, bool *exists);

#endif							/* CQRS_SIGNATURE_H */
