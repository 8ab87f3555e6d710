/*-------------------------------------------------------------------------
 *
 * search_path.c
 *	  The search_path that a subscription's handler is called with.
 *
 * A handler finds tables and functions as it did where it was subscribed: with
 * the setting of that session, as text. What ALTER ROLE or ALTER DATABASE says
 * later changes nothing. A function's own SET wins, as always.
 *
 * Who chooses it is the subscription's owner, or a member, and the handler runs
 * with the owner's privileges; so nobody gains any by it. But who may create in
 * a schema of it can have the handler call what he made there, as he could in
 * the owner's own sessions. Here it happens unseen: so there is a warning.
 *
 * Temporary objects are searched last, as if pg_temp were at the end: see
 * load.c.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

#include "subscription/search_path.h"

static bool is_temporary(const char *schema);
static bool sets_search_path(HeapTuple function);
static bool find_stranger(Oid schema, Oid owner, Oid *stranger);
static bool is_stranger(Oid role, Oid owner);

/*
 * That of the session, but for pg_temp, palloc'd.
 */
char *
cqrs_search_path_now(void)
{
	StringInfoData path;
	List	   *names;
	ListCell   *lc;

	if (strstr(namespace_search_path, "pg_temp") == NULL ||
		!SplitIdentifierString(pstrdup(namespace_search_path), ',', &names))
		return pstrdup(namespace_search_path);
	initStringInfo(&path);
	foreach(lc, names)
	{
		char	   *name = (char *) lfirst(lc);

		if (!is_temporary(name))
			appendStringInfo(&path, "%s%s", path.len > 0 ? ", " : "",
							 quote_identifier(name));
	}
	return path.data;
}

/*
 * Raises 22023 if this is none that may be stored.
 */
void
cqrs_search_path_check(const char *path)
{
	List	   *names;
	ListCell   *lc;

	if (!SplitIdentifierString(pstrdup(path), ',', &names))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a handler cannot have search_path \"%s\"", path),
				 errhint("Valid are names of schemas, separated by commas.")));
	foreach(lc, names)
	{
		if (is_temporary((char *) lfirst(lc)))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("a handler cannot have search_path \"%s\"", path),
					 errhint("Leave \"%s\" out: temporary objects are searched last.",
							 (char *) lfirst(lc))));
	}
}

/*
 * Warn if others might have the handler, InvalidOid: one that is not known, call
 * what they made.
 */
void
cqrs_search_path_warn(const char *subscription, Oid owner, const char *path,
					  Oid handler)
{
	HeapTuple	function = NULL;
	bool		definer = false;
	List	   *names;
	ListCell   *lc;

	if (OidIsValid(handler))
		function = SearchSysCache1(PROCOID, ObjectIdGetDatum(handler));
	if (HeapTupleIsValid(function))
	{
		bool		sets = sets_search_path(function);
		Form_pg_proc form = (Form_pg_proc) GETSTRUCT(function);

		definer = form->prosecdef && form->proowner != owner;
		ReleaseSysCache(function);
		if (sets)
			return;
	}
	if (definer)
		ereport(WARNING,
				(errmsg("handler of subscription \"%s\" is SECURITY DEFINER, and has no SET search_path",
						subscription),
				 errdetail("It has its owner's privileges, and a search_path that the subscription's owner chooses.")));

	(void) SplitIdentifierString(pstrdup(path), ',', &names);
	foreach(lc, names)
	{
		char	   *name = (char *) lfirst(lc);
		Oid			schema;
		Oid			stranger;

		if (strcmp(name, "$user") == 0)
			name = GetUserNameFromId(owner, false);
		schema = get_namespace_oid(name, true);
		if (!OidIsValid(schema) || !find_stranger(schema, owner, &stranger))
			continue;
		ereport(WARNING,
				(errmsg("others may create what the handler of subscription \"%s\" calls",
						subscription),
				 OidIsValid(stranger) ?
				 errdetail("Role \"%s\" may create objects in schema \"%s\" of its search_path.",
						   GetUserNameFromId(stranger, true), name) :
				 errdetail("Everybody may create objects in schema \"%s\" of its search_path.",
						   name),
				 errhint("Revoke CREATE on the schema, choose another search_path, or give the handler a SET search_path.")));
		return;
	}
}

/*
 * Is it pg_temp, or what stands for that of a session?
 */
static bool
is_temporary(const char *schema)
{
	return strcmp(schema, "pg_temp") == 0 ||
		strncmp(schema, "pg_temp_", strlen("pg_temp_")) == 0;
}

static bool
sets_search_path(HeapTuple function)
{
	bool		isnull;
	Datum		config = SysCacheGetAttr(PROCOID, function,
										 Anum_pg_proc_proconfig, &isnull);
	Datum	   *settings;
	int			n;
	int			i;

	if (isnull)
		return false;
	deconstruct_array(DatumGetArrayTypeP(config), TEXTOID, -1, false,
					  TYPALIGN_INT, &settings, NULL, &n);
	for (i = 0; i < n; i++)
		if (strncmp(TextDatumGetCString(settings[i]), "search_path=",
					strlen("search_path=")) == 0)
			return true;
	return false;
}

/*
 * Who may create in the schema, and is neither a superuser nor a member of the
 * owner? *stranger: InvalidOid is everybody.
 */
static bool
find_stranger(Oid schema, Oid owner, Oid *stranger)
{
	HeapTuple	tuple = SearchSysCache1(NAMESPACEOID,
										ObjectIdGetDatum(schema));
	bool		found;
	bool		isnull;
	Datum		datum;

	if (!HeapTupleIsValid(tuple))
		return false;
	*stranger = ((Form_pg_namespace) GETSTRUCT(tuple))->nspowner;
	found = is_stranger(*stranger, owner);
	datum = SysCacheGetAttr(NAMESPACEOID, tuple, Anum_pg_namespace_nspacl,
							&isnull);
	if (!found && !isnull)
	{
		Acl		   *acl = DatumGetAclP(datum);
		int			i;

		for (i = 0; !found && i < ACL_NUM(acl); i++)
		{
			AclItem    *item = &ACL_DAT(acl)[i];

			*stranger = item->ai_grantee;
			found = (ACLITEM_GET_PRIVS(*item) & ACL_CREATE) != 0 &&
				(*stranger == ACL_ID_PUBLIC || is_stranger(*stranger, owner));
		}
	}
	ReleaseSysCache(tuple);
	return found;
}

static bool
is_stranger(Oid role, Oid owner)
{
	if (role == ROLE_PG_DATABASE_OWNER)
	{
		HeapTuple	tuple = SearchSysCache1(DATABASEOID,
											ObjectIdGetDatum(MyDatabaseId));

		if (!HeapTupleIsValid(tuple))
			return true;
		role = ((Form_pg_database) GETSTRUCT(tuple))->datdba;
		ReleaseSysCache(tuple);
	}
	return !superuser_arg(role) && !is_member_of_role(role, owner);
}
