/*-------------------------------------------------------------------------
 *
 * admin.h
 *	  SQL as the extension's owner, for what changes the registry.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_ADMIN_H
#define CQRS_ADMIN_H

#include "catalog/pg_type_d.h"
#include "executor/spi.h"

typedef struct CqrsAdmin
{
	Oid			save_userid;
	int			save_sec_context;
	int			save_nestlevel;
} CqrsAdmin;

extern void cqrs_admin_begin(CqrsAdmin *admin);
extern void cqrs_admin_end(CqrsAdmin *admin);

/* A parameter of a statement. */
#define CQRS_NULLABLE(type, datum, isnull) \
	(Oid) (type), (Datum) (datum), (int) (isnull)
#define CQRS_ARG(type, datum)	CQRS_NULLABLE(type, datum, false)
#define CQRS_INT4(value)	CQRS_ARG(INT4OID, Int32GetDatum(value))
#define CQRS_INT8(value)	CQRS_ARG(INT8OID, Int64GetDatum(value))
#define CQRS_BOOL(value)	CQRS_ARG(BOOLOID, BoolGetDatum(value))
#define CQRS_TEXT(string)	CQRS_ARG(TEXTOID, CStringGetTextDatum(string))

/* To be called in between; nargs parameters follow. */
extern uint64 cqrs_admin_execute(const char *sql, int nargs,...);
extern uint64 cqrs_admin_execute_args(const char *sql, int nargs, Oid *types,
									  Datum *values, const char *nulls);
extern void cqrs_admin_ddl(const char *fmt,...) pg_attribute_printf(1, 2);
extern Datum cqrs_admin_result(void);

/*
 * How something is registered in a table. The statements have the same
 * parameters.
 */
typedef struct CqrsRegistration
{
	const char *lock;			/* keeps everybody else from registering */
	const char *look;			/* returns whether the same is registered, and
								 * whether to the same owner; or no row */
	const char *insert;
	const char *confirm;		/* it is the same, but to another owner; NULL:
								 * that cannot be */
	const char *replace;		/* it is another; NULL: that cannot be */
} CqrsRegistration;

extern bool cqrs_admin_register(const CqrsRegistration *registration,
								const char *registered, bool or_replace,
								int nargs,...);

/* All of that, for one statement whose result is not read. */
extern uint64 cqrs_admin_run(const char *sql, int nargs,...);

#endif							/* CQRS_ADMIN_H */
