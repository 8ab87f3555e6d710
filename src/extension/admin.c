/*-------------------------------------------------------------------------
 *
 * admin.c
 *	  SQL as the extension's owner, for what changes the registry.
 *
 * The caller has checked what the user may do. Statements are run with a
 * search_path that the user cannot influence.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "utils/snapmgr.h"

#include "extension/admin.h"
#include "extension/catalog.h"

/* The most parameters of a statement, if they are given one by one. */
#define MAX_ARGS	16

typedef struct Args
{
	Oid			types[MAX_ARGS];
	Datum		values[MAX_ARGS];
	char		nulls[MAX_ARGS];
} Args;

static void read_args(va_list args, int nargs, Args *read);

/*
 * Become the extension's owner, until cqrs_admin_end(); an error ends it too.
 */
void
cqrs_admin_begin(CqrsAdmin *admin)
{
	GetUserIdAndSecContext(&admin->save_userid, &admin->save_sec_context);
	SetUserIdAndSecContext(cqrs_extension_owner(),
						   admin->save_sec_context |
						   SECURITY_LOCAL_USERID_CHANGE);
	admin->save_nestlevel = NewGUCNestLevel();
	cqrs_set_config("search_path", "pg_catalog, pg_temp", GUC_ACTION_SAVE);

	/* Nor may what is stored, some of it as text, depend on settings. */
	cqrs_set_config("quote_all_identifiers", "off", GUC_ACTION_SAVE);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
}

void
cqrs_admin_end(CqrsAdmin *admin)
{
	SPI_finish();
	AtEOXact_GUC(true, admin->save_nestlevel);
	SetUserIdAndSecContext(admin->save_userid, admin->save_sec_context);
}

/*
 * Run one statement with parameters; results are in SPI_tuptable. Returns how
 * many rows it touched.
 *
 * It sees what is committed now, like the registry's copy: with the snapshot
 * of a REPEATABLE READ transaction, it would not find rows that the caller has
 * found in the copy.
 */
uint64
cqrs_admin_execute_args(const char *sql, int nargs, Oid *types,
						Datum *values, const char *nulls)
{
	SPIPlanPtr	plan = SPI_prepare(sql, nargs, types);
	Snapshot	snapshot;
	int			rc;

	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s",
			 SPI_result_code_string(SPI_result));
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	rc = SPI_execute_snapshot(plan, values, nulls, snapshot, InvalidSnapshot,
							  false, true, 0);
	UnregisterSnapshot(snapshot);
	if (rc < 0)
		elog(ERROR, "SPI_execute_snapshot failed: %s",
			 SPI_result_code_string(rc));
	return SPI_processed;
}

uint64
cqrs_admin_execute(const char *sql, int nargs,...)
{
	Args		read;
	va_list		args;

	va_start(args, nargs);
	read_args(args, nargs, &read);
	va_end(args);
	return cqrs_admin_execute_args(sql, nargs, read.types, read.values,
								   read.nulls);
}

/*
 * Begin, run one statement, end.
 */
uint64
cqrs_admin_run(const char *sql, int nargs,...)
{
	CqrsAdmin	admin;
	Args		read;
	va_list		args;
	uint64		n;

	va_start(args, nargs);
	read_args(args, nargs, &read);
	va_end(args);
	cqrs_admin_begin(&admin);
	n = cqrs_admin_execute_args(sql, nargs, read.types, read.values,
								read.nulls);
	cqrs_admin_end(&admin);
	return n;
}

/*
 * Begin, register something, end. If the same is registered already, only
 * see to it that it is bound to what is there now. Returns whether anything changed.
 * Raises 42710, with this message, if another is registered under that name,
 * unless it is to be replaced.
 *
 * Nothing is written where nothing changes: that would have everybody load the
 * registry again.
 */
bool
cqrs_admin_register(const CqrsRegistration *registration,
					const char *registered, bool or_replace, int nargs,...)
{
	const char *sql = registration->insert;
	bool		changed = true;
	CqrsAdmin	admin;
	Args		read;
	va_list		args;

	va_start(args, nargs);
	read_args(args, nargs, &read);
	va_end(args);
	cqrs_admin_begin(&admin);
	cqrs_admin_ddl("%s", registration->lock);
	if (cqrs_admin_execute_args(registration->look, nargs, read.types,
								read.values, read.nulls) > 0)
	{
		HeapTuple	row = SPI_tuptable->vals[0];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;

		changed = !DatumGetBool(SPI_getbinval(row, desc, 1, &isnull));
		if (changed)
			sql = registration->replace;
		else
			sql = DatumGetBool(SPI_getbinval(row, desc, 2, &isnull)) ? NULL :
				registration->confirm;
		if (changed && !or_replace)
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_OBJECT),
					 errmsg_internal("%s", registered),
					 errhint("Use or_replace => true to replace it.")));
	}
	if (sql != NULL)
		cqrs_admin_execute_args(sql, nargs, read.types, read.values,
								read.nulls);
	cqrs_admin_end(&admin);
	return changed;
}

/*
 * The first column of the last statement's first row, which is not NULL, and
 * of a type that is passed by value.
 */
Datum
cqrs_admin_result(void)
{
	bool		isnull;

	return SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
						 &isnull);
}

/*
 * Run one utility statement. Identifiers in it are quoted by the caller.
 */
void
cqrs_admin_ddl(const char *fmt,...)
{
	StringInfoData sql;
	int			rc;

	initStringInfo(&sql);
	for (;;)
	{
		va_list		args;
		int			needed;

		va_start(args, fmt);
		needed = appendStringInfoVA(&sql, fmt, args);
		va_end(args);
		if (needed == 0)
			break;
		enlargeStringInfo(&sql, needed);
	}

	rc = SPI_execute(sql.data, false, 0);
	if (rc < 0)
		elog(ERROR, "SPI_execute failed: %s", SPI_result_code_string(rc));
	pfree(sql.data);
}

static void
read_args(va_list args, int nargs, Args *read)
{
	int			i;

	Assert(nargs <= MAX_ARGS);
	for (i = 0; i < nargs; i++)
	{
		read->types[i] = va_arg(args, Oid);
		read->values[i] = va_arg(args, Datum);
		read->nulls[i] = va_arg(args, int) ? 'n' : ' ';
	}
}
