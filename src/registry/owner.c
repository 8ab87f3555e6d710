/*-------------------------------------------------------------------------
 *
 * owner.c
 *	  Who owns a subscription, or a consumer: whoever owns its view.
 *
 * PostgreSQL does not know of a role that is noted in a table of ours: DROP
 * ROLE leaves its number behind, which is another role's one day, or in the
 * next cluster. So each subscription has a view in schema cqrs_subscriptions,
 * named like it, and the view's owner is the subscription's. Then DROP ROLE is
 * refused, REASSIGN OWNED and ALTER VIEW ... OWNER TO hand the subscription
 * over, a dump has the owner's name, and what is granted on the view says who
 * else may receive. Only people read the view: it shows the subscription's row
 * of cqrs_subscription_status. A consumer has a view there likewise, with its row
 * of cqrs_consumer_status; so the two share their names.
 *
 * If somebody dropped the view (DROP OWNED does), renamed it or moved it to
 * another schema, the subscription has no owner, and nothing is delivered to
 * it. Whoever could make a view of that name would be the next owner; so
 * nobody has CREATE on the schema but the extension's owner.
 *
 * Commands
 *
 * What a role enqueued is executed as that role, or not at all: it said what is
 * to be done, not as whom. A role that takes over all that it owned, often a
 * superuser, does not get its commands. So there is a second mark of the owner,
 * which does not move with a change of owners, and which makes DROP ROLE fail:
 * SELECT with grant option on the topic's view, granted by the view's owner.
 * Without both, the subscription has no owner.
 *
 * Invalidation
 *
 * The registry caches owners. The server's cache of relations by name tells it,
 * by the hash values of the names that were looked up, when a view may have
 * been replaced, or its owner or grants changed. Names are watched before they
 * are looked up, so that nothing is missed in between.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/tablecmds.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "base/hash.h"
#include "extension/admin.h"
#include "extension/privilege.h"
#include "registry/owner.h"

/* Hash values of the names that were looked up. */
static HTAB *watched = NULL;

static HeapTuple find_view(const char *schema, const char *name);

/*
 * Make the view of a subscription, or of a consumer, owned by this role. Raises
 * 42P07 if there is a relation of that name.
 */
void
cqrs_owner_make_view(const char *name, bool is_consumer, Oid owner)
{
	const char *kind = is_consumer ? "consumer" : "subscription";
	char	   *view = quote_qualified_identifier(CQRS_SUBSCRIPTION_SCHEMA,
												  name);
	CqrsAdmin	admin;

	cqrs_admin_begin(&admin);
	if (cqrs_admin_execute("SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'cqrs_outbox'",
						   0, NULL, NULL, NULL) != 1)
		elog(ERROR, "could not find the extension's schema");
	cqrs_admin_ddl("CREATE VIEW %s WITH (security_barrier) AS"
				   " SELECT * FROM %s.cqrs_%s_status WHERE %s = %s",
				   view,
				   SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1),
				   kind, kind, quote_literal_cstr(name));
	cqrs_privileges_withdraw(view);

	/*
	 * ALTER VIEW would require that the new owner has CREATE on the schema,
	 * unless the extension's owner is a superuser.
	 */
	ATExecChangeOwner(get_relname_relid(name,
										get_namespace_oid(CQRS_SUBSCRIPTION_SCHEMA,
														  false)),
					  owner, true, AccessExclusiveLock);
	CommandCounterIncrement();
	cqrs_admin_end(&admin);
}

/*
 * Drop the view of a subscription, if there is one. Raises 2BP01 if something
 * depends on it.
 */
void
cqrs_owner_drop_view(const char *subscription)
{
	CqrsAdmin	admin;
	Oid			view;

	(void) cqrs_owner_find(subscription, &view);
	if (!OidIsValid(view))
		return;
	cqrs_admin_begin(&admin);
	cqrs_admin_ddl("DROP VIEW %s",
				   quote_qualified_identifier(CQRS_SUBSCRIPTION_SCHEMA,
											  subscription));
	cqrs_admin_end(&admin);
}

/*
 * Forget what is watched: the registry is about to be loaded.
 */
void
cqrs_owner_watch_nothing(void)
{
	if (watched != NULL)
		hash_destroy(watched);
	watched = cqrs_hash_create("cqrs views of subscriptions", sizeof(uint32),
							   sizeof(uint32), TopMemoryContext);
}

/*
 * Is this the hash value of a name that was looked up since? 0 stands for all.
 */
bool
cqrs_owner_is_watched(uint32 hashvalue)
{
	return hashvalue == 0 ||
		(watched != NULL &&
		 hash_search(watched, &hashvalue, HASH_FIND, NULL) != NULL);
}

/*
 * Who owns the view of a subscription, and so the subscription (but see above
 * for commands). If there is no view, the result and *view are InvalidOid.
 */
Oid
cqrs_owner_find(const char *subscription, Oid *view)
{
	HeapTuple	tuple = find_view(CQRS_SUBSCRIPTION_SCHEMA, subscription);
	Oid			owner;

	*view = InvalidOid;
	if (!HeapTupleIsValid(tuple))
		return InvalidOid;
	*view = ((Form_pg_class) GETSTRUCT(tuple))->oid;
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

bool
cqrs_owner_has_commands(const char *topic, Oid role)
{
	HeapTuple	tuple = find_view(CQRS_TOPIC_SCHEMA, topic);
	Oid			grantor;
	bool		granted = false;
	bool		isnull;
	Datum		datum;

	if (!HeapTupleIsValid(tuple))
		return false;
	grantor = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	datum = SysCacheGetAttr(RELNAMENSP, tuple, Anum_pg_class_relacl, &isnull);
	if (!isnull)
	{
		Acl		   *acl = DatumGetAclP(datum);
		AclItem    *items = ACL_DAT(acl);
		int			i;

		for (i = 0; i < ACL_NUM(acl); i++)
			granted |= items[i].ai_grantee == role &&
				items[i].ai_grantor == grantor &&
				(ACLITEM_GET_GOPTIONS(items[i]) & ACL_SELECT) != 0;
	}
	ReleaseSysCache(tuple);
	return granted;
}

/*
 * The view's row of pg_class, or NULL. From here on, its name is watched.
 */
static HeapTuple
find_view(const char *schema, const char *name)
{
	Oid			namespace = get_namespace_oid(schema, true);
	HeapTuple	tuple;
	uint32		hashvalue;

	if (!OidIsValid(namespace))
		return NULL;
	hashvalue = GetSysCacheHashValue2(RELNAMENSP, PointerGetDatum(name),
									  ObjectIdGetDatum(namespace));
	if (watched != NULL)
		(void) hash_search(watched, &hashvalue, HASH_ENTER, NULL);
	tuple = SearchSysCache2(RELNAMENSP, PointerGetDatum(name),
							ObjectIdGetDatum(namespace));
	if (HeapTupleIsValid(tuple) &&
		((Form_pg_class) GETSTRUCT(tuple))->relkind != RELKIND_VIEW)
	{
		ReleaseSysCache(tuple);
		return NULL;
	}
	return tuple;
}
