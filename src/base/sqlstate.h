/*-------------------------------------------------------------------------
 *
 * sqlstate.h
 *	  Lists of error codes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_SQLSTATE_H
#define CQRS_SQLSTATE_H

/* An error code, or all of a class: those that equal code under mask. */
typedef struct CqrsSqlstate
{
	int			code;
	int			mask;
} CqrsSqlstate;

extern CqrsSqlstate *cqrs_sqlstates_parse(Datum array, const char *argument,
										  int *n);
extern bool cqrs_sqlstate_parse(const char *text, CqrsSqlstate *sqlstate);
extern int	cqrs_sqlstate_of_text(Datum value);
extern bool cqrs_sqlstate_listed(const CqrsSqlstate *sqlstates, int n,
								 int code);

#endif							/* CQRS_SQLSTATE_H */
