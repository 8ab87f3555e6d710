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

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "extension/admin.h"
#include "extension/privilege.h"
#include "shared/announce.h"

static void withdraw(void);

PG_FUNCTION_INFO_V1(cqrs_refuse_write);
PG_FUNCTION_INFO_V1(cqrs_withdraw_privileges);

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
 * The same for a relation that was just made; its name is qualified, and
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
