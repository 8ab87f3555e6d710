/*-------------------------------------------------------------------------
 *
 * privilege.c
 *	  What is granted on our objects, and what no grant allows.
 *
 * Whatever is made in a database may come with privileges that nobody thought
 * of, by ALTER DEFAULT PRIVILEGES. For a topic, INSERT would mean "may emit".
 * So what the extension makes begins with its owner's privileges alone, and is
 * then granted to those whom we mean.
 *
 * Our tables say as whom functions are executed. Whoever writes them can act
 * as any of those roles, and neither pg_write_all_data nor a GRANT on all
 * tables of the database is meant to make superusers. So a statement trigger
 * of each table, topics' segments included, refuses everybody but the table's
 * owner and superusers. What we write ourselves bypasses the executor, or is
 * SQL as the extension's owner.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "commands/trigger.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "extension/admin.h"
#include "extension/catalog.h"
#include "extension/privilege.h"
#include "shared/announce.h"

static int64 change_admin(FunctionCallInfo fcinfo, const char *statement,
						  bool granted);
static void withdraw(void);

PG_FUNCTION_INFO_V1(cqrs_refuse_write);
PG_FUNCTION_INFO_V1(cqrs_withdraw_privileges);
PG_FUNCTION_INFO_V1(cqrs_copy_privileges);
PG_FUNCTION_INFO_V1(cqrs_grant_admin);
PG_FUNCTION_INFO_V1(cqrs_revoke_admin);

/*
 * cqrs.refuse_write(): statement trigger of our tables.
 */
Datum
cqrs_refuse_write(PG_FUNCTION_ARGS)
{
	Relation	rel;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"refuse_write\" was not called by trigger manager")));
	rel = ((TriggerData *) fcinfo->context)->tg_relation;
	if (!has_privs_of_role(GetUserId(), rel->rd_rel->relowner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to write table \"%s\"",
						RelationGetRelationName(rel)),
				 errdetail("Only its owner, and superusers, may write a table of extension \"%s\", whatever is granted.",
						   CQRS_EXTENSION)));

	/* A restore adds scheduled commands, which nobody else announces. */
	if (strcmp(RelationGetRelationName(rel), "scheduled_command") == 0)
		cqrs_shmem_command_scheduled(DT_NOBEGIN);
	return PointerGetDatum(NULL);
}

/*
 * cqrs.withdraw_privileges(): revoke all privileges on the extension's objects
 * from everybody but the owner.
 */
Datum
cqrs_withdraw_privileges(PG_FUNCTION_ARGS)
{
	CqrsAdmin	admin;

	cqrs_admin_begin(&admin);
	cqrs_admin_execute("SELECT o.kind, o.name, a.grantee FROM pg_extension e"
					   " JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'"
					   " JOIN LATERAL ("
					   "	SELECT 'TABLE' AS kind, c.oid::regclass::text AS name, c.relowner AS owner, c.relacl AS acl"
					   "	FROM pg_class c WHERE d.classid = 'pg_class'::regclass AND c.oid = d.objid AND c.relkind IN ('r', 'v', 'S')"
					   "	UNION ALL"
					   "	SELECT 'FUNCTION', p.oid::regprocedure::text, p.proowner, coalesce(p.proacl, acldefault('f', p.proowner))"
					   "	FROM pg_proc p WHERE d.classid = 'pg_proc'::regclass AND p.oid = d.objid"
					   "	UNION ALL"
					   "	SELECT 'SCHEMA', quote_ident(n.nspname), n.nspowner, n.nspacl"
					   "	FROM pg_namespace n WHERE d.classid = 'pg_namespace'::regclass AND n.oid = d.objid"
					   " ) o ON true"
					   " CROSS JOIN LATERAL aclexplode(o.acl) a"
					   " WHERE e.extname = 'cqrs_outbox' AND a.grantee <> o.owner"
					   " GROUP BY 1, 2, 3",
					   0);
	withdraw();
	cqrs_admin_end(&admin);
	PG_RETURN_VOID();
}

/*
 * cqrs.copy_privileges(source, target): what is granted on a function is granted
 * on another, by the same grantors.
 *
 * An update script cannot do that by GRANT: what a script of the extension grants
 * counts as the extension's own, and a dump would not have it.
 */
Datum
cqrs_copy_privileges(PG_FUNCTION_ARGS)
{
	Oid			function[] = {PG_GETARG_OID(0), PG_GETARG_OID(1)};
	HeapTuple	tuple[2];
	Oid			owner[2];
	Acl		   *acl[2];
	Oid		   *members[2];
	int			nmembers[2];
	Relation	rel;
	Datum		values[Natts_pg_proc] = {0};
	bool		nulls[Natts_pg_proc] = {0};
	bool		replace[Natts_pg_proc] = {0};
	int			i;

	if (!creating_extension)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("copy_privileges() can only be called by a script that updates an extension")));

	rel = table_open(ProcedureRelationId, RowExclusiveLock);
	for (i = 0; i < 2; i++)
	{
		Datum		value;
		bool		isnull;

		tuple[i] = SearchSysCacheCopy1(PROCOID, ObjectIdGetDatum(function[i]));
		if (!HeapTupleIsValid(tuple[i]))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_FUNCTION),
					 errmsg("function with OID %u does not exist",
							function[i])));
		owner[i] = ((Form_pg_proc) GETSTRUCT(tuple[i]))->proowner;
		value = heap_getattr(tuple[i], Anum_pg_proc_proacl,
							 RelationGetDescr(rel), &isnull);
		acl[i] = isnull ? acldefault(OBJECT_FUNCTION, owner[i]) :
			DatumGetAclPCopy(value);
	}
	acl[0] = aclnewowner(acl[0], owner[0], owner[1]);
	for (i = 0; i < 2; i++)
		nmembers[i] = aclmembers(acl[i], &members[i]);

	values[Anum_pg_proc_proacl - 1] = PointerGetDatum(acl[0]);
	replace[Anum_pg_proc_proacl - 1] = true;
	CatalogTupleUpdate(rel, &tuple[1]->t_self,
					   heap_modify_tuple(tuple[1], RelationGetDescr(rel),
										 values, nulls, replace));
	updateAclDependencies(ProcedureRelationId, function[1], 0, owner[1],
						  nmembers[1], members[1], nmembers[0], members[0]);
	table_close(rel, RowExclusiveLock);
	CommandCounterIncrement();
	PG_RETURN_VOID();
}

/*
 * Withdraw them from a relation that was just made; its name is qualified, and
 * quoted if need be. Call it between cqrs_admin_begin() and cqrs_admin_end().
 */
void
cqrs_privileges_withdraw(const char *relation)
{
	cqrs_admin_execute("SELECT 'TABLE', $1, a.grantee"
					   " FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) a"
					   " WHERE c.oid = $1::regclass AND a.grantee <> c.relowner"
					   " GROUP BY 3",
					   1, CQRS_TEXT(relation));
	withdraw();
}

/*
 * cqrs_grant_admin(role), cqrs_revoke_admin(role)
 */
Datum
cqrs_grant_admin(PG_FUNCTION_ARGS)
{
	cqrs_require_writable("cqrs_grant_admin()");
	PG_RETURN_INT64(change_admin(fcinfo, "GRANT EXECUTE ON FUNCTION %s TO %s",
								 false));
}

Datum
cqrs_revoke_admin(PG_FUNCTION_ARGS)
{
	cqrs_require_writable("cqrs_revoke_admin()");
	PG_RETURN_INT64(change_admin(fcinfo,
								 "REVOKE EXECUTE ON FUNCTION %s FROM %s",
								 true));
}

/*
 * Run this statement for the role and each function that administrators get,
 * and that the role has been granted, or has not. Returns for how many.
 */
static int64
change_admin(FunctionCallInfo fcinfo, const char *statement, bool granted)
{
	Oid			role;
	const char *name;
	CqrsAdmin	admin;
	SPITupleTable *rows;
	uint64		n;
	uint64		i;

	cqrs_arg_required(fcinfo, 0, "role", NULL, NULL);
	role = get_role_oid(text_to_cstring(PG_GETARG_TEXT_PP(0)), false);
	name = quote_identifier(GetUserNameFromId(role, false));

	if (role == cqrs_extension_owner())
		return 0;

	/*
	 * What PUBLIC has needs no grant, and pg_monitor's takes being its
	 * member; granting stays the owner's.
	 */
	cqrs_admin_begin(&admin);
	n = cqrs_admin_execute("SELECT p.oid::regprocedure::text FROM pg_extension e"
						   " JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid"
						   "  AND d.classid = 'pg_proc'::regclass AND d.deptype = 'e'"
						   " JOIN pg_proc p ON p.oid = d.objid AND p.pronamespace = e.extnamespace"
						   " WHERE e.extname = 'cqrs_outbox' AND p.proname NOT IN ('cqrs_grant_admin', 'cqrs_revoke_admin')"
						   "  AND NOT EXISTS (SELECT FROM aclexplode(p.proacl) WHERE grantee IN (0, 'pg_monitor'::regrole))"
						   "  AND $2 = EXISTS (SELECT FROM aclexplode(p.proacl) WHERE grantee = $1 AND grantor = p.proowner)"
						   " ORDER BY 1",
						   2, CQRS_ARG(OIDOID, ObjectIdGetDatum(role)),
						   CQRS_ARG(BOOLOID, BoolGetDatum(granted)));
	rows = SPI_tuptable;
	for (i = 0; i < n; i++)
		cqrs_admin_ddl(statement, SPI_getvalue(rows->vals[i], rows->tupdesc, 1),
					   name);
	cqrs_admin_end(&admin);
	return n;
}

/*
 * Let nobody but the owner write to a table that was just made. Call it
 * between cqrs_admin_begin() and cqrs_admin_end().
 */
void
cqrs_guard_table(const char *table)
{
	cqrs_admin_ddl("CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s"
				   " EXECUTE FUNCTION cqrs.refuse_write()", table);
	cqrs_admin_ddl("ALTER TABLE %s ENABLE ALWAYS TRIGGER refuse_write", table);
}

/*
 * cqrs.refuse_write(), or InvalidOid.
 */
Oid
cqrs_guard_function(void)
{
	Oid			schema = get_namespace_oid(CQRS_SCHEMA, true);

	if (!OidIsValid(schema))
		return InvalidOid;
	return GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid,
						   CStringGetDatum("refuse_write"),
						   PointerGetDatum(buildoidvector(NULL, 0)),
						   ObjectIdGetDatum(schema));
}

/*
 * Revoke what the rows of the last query list: a kind of object, its name, and
 * the grantee.
 */
static void
withdraw(void)
{
	SPITupleTable *rows = SPI_tuptable;
	uint64		n = SPI_processed;
	uint64		i;

	for (i = 0; i < n; i++)
	{
		bool		isnull;
		Oid			grantee;

		grantee = DatumGetObjectId(SPI_getbinval(rows->vals[i], rows->tupdesc,
												 3, &isnull));
		cqrs_admin_ddl("REVOKE ALL ON %s %s FROM %s CASCADE",
					   SPI_getvalue(rows->vals[i], rows->tupdesc, 1),
					   SPI_getvalue(rows->vals[i], rows->tupdesc, 2),
					   OidIsValid(grantee) ?
					   quote_identifier(GetUserNameFromId(grantee, false)) :
					   "PUBLIC");
	}
}
