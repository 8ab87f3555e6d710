/*-------------------------------------------------------------------------
 *
 * privilege.h
 *	  What is granted on our objects, and what no grant allows.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_PRIVILEGE_H
#define CQRS_PRIVILEGE_H

extern void cqrs_privileges_withdraw(const char *relation);
extern void cqrs_guard_table(const char *table);
extern Oid	cqrs_guard_function(void);

#endif							/* CQRS_PRIVILEGE_H */
