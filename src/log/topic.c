/*-------------------------------------------------------------------------
 *
 * topic.c
 *	  Topics: created, changed, and who may use them.
 *
 * A topic is a row of cqrs.topic, CQRS_SEGMENTS tables of equal shape in
 * schema cqrs, and a view of all of them in schema cqrs_topics, which is what
 * privileges are granted on; a trigger of it emits what is inserted there
 * (insert.c). All belong to the extension's owner; whoever creates a topic gets
 * the view's privileges with grant option, and nobody else gets any: those that
 * ALTER DEFAULT PRIVILEGES gave are taken back. Nothing but a role's commands
 * goes into their topic, whatever is granted on it.
 *
 * The tables are not members of the extension, or a dump would skip them.
 * Being in schemas that are members, they still keep DROP EXTENSION from
 * passing without CASCADE.
 *
 * Column native is generated as false in all that comes through the executor:
 * restored from a dump, copied, replicated or inserted by hand. The
 * transaction ids of such rows mean nothing in this cluster. Only cqrs_emit(),
 * which writes past the executor, puts true there; other rows are in no
 * window. cqrs.topic has such a column too: it tells a restored topic, whose
 * events wait for cqrs_adopt(), from one that was made here.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_type.h"
#include "storage/lock.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "base/interval.h"
#include "extension/admin.h"
#include "extension/catalog.h"
#include "extension/privilege.h"
#include "log/topic.h"
#include "registry/registry.h"

/* Who creates one waits for others who do. */
#define LOCK_TOPICS	"LOCK TABLE cqrs.topic IN SHARE ROW EXCLUSIVE MODE"

static Interval *default_retention(void);
static bool set_retention(const CqrsTopic *topic, Interval *retention);
static void make_view(int32 topic_id, const char *name);
static bool mend_view(const CqrsTopic *topic);
static bool has_retention(const CqrsTopic *topic, Interval *retention);
static void check_retention(const char *name, Interval *retention);

PG_FUNCTION_INFO_V1(cqrs_create_topic);
PG_FUNCTION_INFO_V1(cqrs_alter_topic);

/*
 * cqrs_create_topic(topic, retention, or_replace)
 */
Datum
cqrs_create_topic(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "topic");
	Interval   *retention;
	CqrsTopic  *topic;

	cqrs_require_writable("cqrs_create_topic()");
	cqrs_name_check("topic", name);
	retention = PG_ARGISNULL(1) ? default_retention() :
		PG_GETARG_INTERVAL_P(1);
	check_retention(name, retention);
	cqrs_admin_run(LOCK_TOPICS, 0);
	topic = cqrs_registry_topic(name);
	if (topic == NULL)
	{
		(void) cqrs_topic_create(name, retention, GetUserId(), true);
		PG_RETURN_BOOL(true);
	}
	if (!cqrs_flag_arg(fcinfo, 2) && !has_retention(topic, retention))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("topic \"%s\" already exists with another retention",
						name),
				 errhint("Use or_replace => true, or cqrs_alter_topic(), to change it.")));
	PG_RETURN_BOOL(set_retention(topic, retention));
}

/*
 * cqrs_alter_topic(topic, retention)
 */
Datum
cqrs_alter_topic(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "topic");
	CqrsTopic  *topic;
	bool		changed;

	cqrs_require_writable("cqrs_alter_topic()");
	topic = cqrs_topic_get(name);
	cqrs_topic_require_control(topic, "alter");
	if (!PG_ARGISNULL(1))
		check_retention(name, PG_GETARG_INTERVAL_P(1));
	changed = mend_view(topic);
	if (!PG_ARGISNULL(1))
		changed |= set_retention(cqrs_topic_get(name), PG_GETARG_INTERVAL_P(1));
	PG_RETURN_BOOL(changed);
}

/*
 * Keep a topic's events for so long. Returns whether that changes anything.
 * Raises 42501; 42704 if it was dropped meanwhile.
 */
static bool
set_retention(const CqrsTopic *topic, Interval *retention)
{
	if (has_retention(topic, retention))
		return false;
	cqrs_topic_require_control(topic, "alter");
	if (cqrs_admin_run("UPDATE cqrs.topic SET retention = $2 WHERE topic_id = $1",
					   2, CQRS_INT4(topic->topic_id),
					   CQRS_ARG(INTERVALOID, IntervalPGetDatum(retention))) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("topic \"%s\" does not exist", topic->name)));
	return true;
}

static bool
has_retention(const CqrsTopic *topic, Interval *retention)
{
	return topic->retention == cqrs_milliseconds(IntervalPGetDatum(retention));
}

/*
 * The id of the topic of this name, which is created if there is none.
 */
int32
cqrs_topic_obtain(const char *name)
{
	int32		topic_id = cqrs_registry_topic_id(name);

	if (topic_id != 0)
		return topic_id;

	/* Somebody else may be creating it. */
	cqrs_admin_run(LOCK_TOPICS, 0);
	topic_id = cqrs_registry_topic_id(name);
	return topic_id != 0 ? topic_id :
		cqrs_topic_create(name, default_retention(), GetUserId(), true);
}

/*
 * A day, as it is where nothing else is said; palloc'd.
 */
static Interval *
default_retention(void)
{
	Interval   *retention = palloc0(sizeof(Interval));

	retention->day = 1;
	return retention;
}

/*
 * Make the row, the tables and the view of a topic, and return its id. Its
 * creator, a role, may read it and, with may_emit, emit to it, both with grant
 * option; the latter is what it takes to drop it, too. Without may_emit, the
 * grant is made even to the extension's owner: it says whose commands are in
 * there (see owner.c). Raises what cqrs_create_topic() documents.
 */
int32
cqrs_topic_create(const char *name, Interval *retention, Oid creator,
				  bool may_emit)
{
	CqrsAdmin	admin;
	int32		topic_id;
	int			i;

	cqrs_name_check("topic", name);
	check_retention(name, retention);

	cqrs_admin_begin(&admin);
	cqrs_admin_ddl(LOCK_TOPICS);
	if (cqrs_registry_topic(name) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("topic \"%s\" already exists", name)));

	cqrs_admin_execute("INSERT INTO cqrs.topic (topic, retention) VALUES ($1, $2) RETURNING topic_id",
					   2, CQRS_TEXT(name),
					   CQRS_ARG(INTERVALOID, IntervalPGetDatum(retention)));
	topic_id = DatumGetInt32(cqrs_admin_result());
	cqrs_topic_set_native(topic_id);

	for (i = 0; i < CQRS_SEGMENTS; i++)
	{
		/* segment.c knows this shape. */
		cqrs_admin_ddl("CREATE TABLE cqrs.topic_%d_%d ("
					   "position bigint NOT NULL,"
					   "xid xid8 NOT NULL,"
					   "event_id uuid NOT NULL,"
					   "emitted_at timestamptz NOT NULL,"
					   "native boolean NOT NULL GENERATED ALWAYS AS (false) STORED,"
					   "event_name text NOT NULL,"
					   "key text,"
					   "payload jsonb,"
					   "headers jsonb"
					   ") WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false)",
					   topic_id, i);
		cqrs_admin_ddl("CREATE INDEX topic_%d_%d_xid ON cqrs.topic_%d_%d (xid, position)",
					   topic_id, i, topic_id, i);
		cqrs_privileges_withdraw(psprintf("cqrs.topic_%d_%d", topic_id, i));
		cqrs_guard_table(psprintf("cqrs.topic_%d_%d", topic_id, i));
	}
	make_view(topic_id, name);
	if (creator != GetUserId() || !may_emit)
		cqrs_admin_ddl("GRANT %s ON %s.%s TO %s WITH GRANT OPTION",
					   may_emit ? "SELECT, INSERT" : "SELECT",
					   CQRS_TOPIC_SCHEMA, quote_identifier(name),
					   quote_identifier(GetUserNameFromId(creator, false)));
	cqrs_admin_end(&admin);
	return topic_id;
}

/*
 * Make the view of a topic, and its triggers. Between cqrs_admin_begin() and
 * cqrs_admin_end().
 */
static void
make_view(int32 topic_id, const char *name)
{
	const char *view = quote_qualified_identifier(CQRS_TOPIC_SCHEMA, name);
	StringInfoData query;
	int			i;

	/* insert.c knows its columns. */
	initStringInfo(&query);
	for (i = 0; i < CQRS_SEGMENTS; i++)
		appendStringInfo(&query,
						 "%sSELECT position, event_id, event_name, key, payload, headers, emitted_at,"
						 " cqrs.occurred_at(headers) AS occurred_at FROM cqrs.topic_%d_%d",
						 i > 0 ? " UNION ALL " : "", topic_id, i);
	cqrs_admin_ddl("CREATE VIEW %s AS %s", view, query.data);
	cqrs_privileges_withdraw(view);
	cqrs_admin_ddl("CREATE TRIGGER emit INSTEAD OF INSERT ON %s"
				   " FOR EACH ROW EXECUTE FUNCTION cqrs.insert_event()", view);
	cqrs_admin_ddl("CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON %s"
				   " FOR EACH STATEMENT EXECUTE FUNCTION cqrs.refuse_change()",
				   view);
	cqrs_admin_ddl("CREATE TRIGGER refuse_change_of_row INSTEAD OF UPDATE OR DELETE ON %s"
				   " FOR EACH ROW EXECUTE FUNCTION cqrs.refuse_change()", view);
}

/*
 * If somebody dropped the view of a topic, make it again; what was granted on it
 * is lost. Returns whether it was missing. Raises 42501.
 */
static bool
mend_view(const CqrsTopic *topic)
{
	CqrsAdmin	admin;

	if (SearchSysCacheExists1(RELOID, ObjectIdGetDatum(topic->view)))
		return false;
	if (!has_privs_of_role(GetUserId(), cqrs_extension_owner()))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of extension \"%s\" to make the view of topic \"%s\" again",
						CQRS_EXTENSION, topic->name)));
	cqrs_admin_begin(&admin);
	cqrs_admin_ddl(LOCK_TOPICS);
	make_view(topic->topic_id, topic->name);

	/* Have all look for it. */
	cqrs_admin_execute("UPDATE cqrs.topic SET retention = retention WHERE topic_id = $1",
					   1, CQRS_INT4(topic->topic_id));
	cqrs_admin_end(&admin);
	return true;
}

/*
 * May the current user do this (ACL_SELECT, ACL_INSERT) with the topic?
 */
bool
cqrs_topic_allows(const CqrsTopic *topic, AclMode mode)
{
	return cqrs_topic_allows_role(topic, mode, GetUserId());
}

/*
 * May this role do this with the topic? Nobody may emit to the topic of a
 * role's commands, or sagas: whoever could would have the role execute them.
 */
bool
cqrs_topic_allows_role(const CqrsTopic *topic, AclMode mode, Oid role)
{
	bool		missing = false;

	return OidIsValid(topic->view) &&
		!(topic->runner != NULL && mode == ACL_INSERT) &&
		pg_class_aclcheck_ext(topic->view, role, mode,
							  &missing) == ACLCHECK_OK && !missing;
}

/*
 * Keep the topic from being dropped until the end of the transaction. Returns
 * false if it was dropped since the registry was loaded.
 */
bool
cqrs_topic_keep(const CqrsTopic *topic)
{
	Relation	view = try_relation_open(topic->view, AccessShareLock);

	if (view != NULL)
		relation_close(view, NoLock);
	return view != NULL;
}

/*
 * Raises 42501 if the current user may not do this with the topic, 55000 if
 * somebody dropped its view.
 */
void
cqrs_topic_require(const CqrsTopic *topic, AclMode mode)
{
	if (!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(topic->view)))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("view of topic \"%s\" does not exist", topic->name),
				 errhint("The extension's owner makes it again with cqrs_alter_topic(). The events are kept.")));
	if (topic->runner != NULL && mode == ACL_INSERT)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for topic \"%s\"", topic->name),
				 topic->runner->runs_commands ?
				 errdetail("Nothing but cqrs_enqueue() writes to a topic of commands, whatever is granted.") :
				 errdetail("Nothing but sagas writes to their topic, whatever is granted.")));
	if (!cqrs_topic_allows(topic, mode))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for topic \"%s\"", topic->name),
				 errhint("The privilege needed is %s on %s.",
						 mode == ACL_INSERT ? "INSERT" : "SELECT",
						 quote_qualified_identifier(CQRS_TOPIC_SCHEMA,
													topic->name))));
}

/*
 * Make the topic's row one of this cluster's. The caller has the registry
 * reloaded.
 */
void
cqrs_topic_set_native(int32 topic_id)
{
	Oid			relid = cqrs_relation_oid(CQRS_REL_TOPIC);
	Relation	rel = table_open(relid, RowExclusiveLock);
	TupleDesc	desc = RelationGetDescr(rel);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	AttrNumber	native = get_attnum(relid, "native");
	Datum	   *values = palloc0(sizeof(Datum) * desc->natts);
	bool	   *nulls = palloc0(sizeof(bool) * desc->natts);
	bool	   *replaces = palloc0(sizeof(bool) * desc->natts);
	SysScanDesc scan;
	ScanKeyData key;
	HeapTuple	tuple;

	ScanKeyInit(&key, get_attnum(relid, "topic_id"), BTEqualStrategyNumber,
				F_INT4EQ, Int32GetDatum(topic_id));
	scan = systable_beginscan(rel, InvalidOid, false, snapshot, 1, &key);
	tuple = systable_getnext(scan);
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "could not find topic %d", topic_id);
	values[native - 1] = BoolGetDatum(true);
	replaces[native - 1] = true;
	CatalogTupleUpdate(rel, &tuple->t_self,
					   heap_modify_tuple(tuple, desc, values, nulls,
										 replaces));
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, NoLock);
	CommandCounterIncrement();
}

/*
 * Raises 42501 unless the current user may drop the topic, or do with it what
 * the verb says.
 */
void
cqrs_topic_require_control(const CqrsTopic *topic, const char *verb)
{
	bool		missing = false;

	if (OidIsValid(topic->view) &&
		pg_class_aclcheck_ext(topic->view, GetUserId(),
							  ACL_GRANT_OPTION_FOR(ACL_INSERT),
							  &missing) != ACLCHECK_OK && !missing)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to %s topic \"%s\"", verb,
						topic->name),
				 errdetail("Only who created it, or has INSERT on it with grant option, may %s it.",
						   verb)));
}

/*
 * Raises 22023 for a negative retention.
 */
static void
check_retention(const char *name, Interval *retention)
{
	if (cqrs_interval_is_negative(IntervalPGetDatum(retention)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("retention of topic \"%s\" must not be negative",
						name)));
}
