/*-------------------------------------------------------------------------
 *
 * version.c
 *	  Do the library and the extension fit each other?
 *
 * The library reads and writes the tables that the extension's script made,
 * so the two must be of one version. They may differ: a new package was
 * installed and the extension updated, but a server that preloaded the old
 * library was not restarted; or it was restarted, but this database's
 * extension is not updated yet. Then our functions raise an error, and nothing
 * is delivered.
 *
 * This is checked when the registry is loaded. So the extension's scripts end
 * with cqrs.announce(), which makes it be loaded again.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_extension.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "extension/version.h"

static char *extension_version(void);
static bool is_older(const char *a, const char *b);

/*
 * Is the extension in this database of the library's version?
 */
bool
cqrs_version_fits(void)
{
	char	   *version = extension_version();

	return version == NULL || strcmp(version, CQRS_VERSION) == 0;
}

/*
 * Report that it is not, with 55000, and what to do.
 */
void
cqrs_version_report(int elevel, const char *message)
{
	char	   *version = extension_version();
	bool		older;

	if (version == NULL)
		return;
	older = is_older(CQRS_VERSION, version);
	ereport(elevel,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("%s", message),
			 errdetail("The library is of version %s, the extension of version %s.",
					   CQRS_VERSION, version),
			 older ?
			 errhint("Restart the server, so that it loads the library that was installed with version %s.",
					 version) :
			 errhint("ALTER EXTENSION %s UPDATE.", CQRS_EXTENSION)));
}

/*
 * The extension's version as of now, palloc'd, or NULL if it is not there.
 */
static char *
extension_version(void)
{
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	SysScanDesc scan;
	ScanKeyData key;
	HeapTuple	tuple;
	char	   *version = NULL;

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber,
				F_NAMEEQ, CStringGetDatum(CQRS_EXTENSION));
	scan = systable_beginscan(rel, ExtensionNameIndexId, true, snapshot, 1,
							  &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool		isnull;
		Datum		value = heap_getattr(tuple, Anum_pg_extension_extversion,
										 RelationGetDescr(rel), &isnull);

		version = TextDatumGetCString(value);
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
	return version;
}

/*
 * Does version a come before b, comparing the numbers between dots?
 */
static bool
is_older(const char *a, const char *b)
{
	while (*a != '\0' || *b != '\0')
	{
		unsigned long left = strtoul(a, NULL, 10);
		unsigned long right = strtoul(b, NULL, 10);

		if (left != right)
			return left < right;
		a += strcspn(a, ".");
		b += strcspn(b, ".");
		a += *a == '.';
		b += *b == '.';
	}
	return false;
}
