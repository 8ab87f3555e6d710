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
pg_noreturn extern void cqrs_signature_gone(Oid funcid);
extern Oid	cqrs_signature_find(const char *signature);
extern bool cqrs_signature_fits(const char *signature, const char *name);
extern bool cqrs_signature_has_argument(const char *name);

#endif							/* CQRS_SIGNATURE_H */
