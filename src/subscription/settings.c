/*-------------------------------------------------------------------------
 *
 * settings.c
 *	  What is chosen when a subscription is made: the columns of
 *	  cqrs.subscription that are arguments of cqrs_subscribe(), and of
 *	  cqrs_alter_subscription(). Whatever is not given, or is NULL, as drivers
 *	  send for that, is what the table here says.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "base/interval.h"
#include "extension/admin.h"
#include "registry/registry.h"
#include "subscription/settings.h"

static const struct
{
	const char *name;
	Oid type;
	const char *standard;		/* NULL: none */
}			table[CQRS_SETTINGS] =

{
	[CQRS_SETTING_HANDLER] = {"handler", TEXTOID, NULL},
	[CQRS_SETTING_SERVER] = {"server", TEXTOID, NULL},
	[CQRS_SETTING_PARTITIONS] = {"partitions", INT4OID, "1"},
	[CQRS_SETTING_ORDERING] = {"ordering", TEXTOID, "key"},

	/* In all, that is a day and a half: longer than a night, or a Sunday. */
	[CQRS_SETTING_MAX_ATTEMPTS] = {"max_attempts", INT4OID, "25"},
	[CQRS_SETTING_RETRY_DELAY] = {"retry_delay", INTERVALOID, "1 s"},
	[CQRS_SETTING_MAX_RETRY_DELAY] = {"max_retry_delay", INTERVALOID, "3 h"},
	[CQRS_SETTING_DELIVERY_TIMEOUT] = {"delivery_timeout", INTERVALOID, "1 min"},
	[CQRS_SETTING_MAX_RETAINED_SIZE] = {"max_retained_size", INT8OID, "10737418240"},
	[CQRS_SETTING_MAX_RETAINED_AGE] = {"max_retained_age", INTERVALOID, "0"},
	[CQRS_SETTING_FORMAT] = {"format", TEXTOID, NULL},
	[CQRS_SETTING_STRICT_KEY_ORDER] = {"strict_key_order", BOOLOID, "false"},
	[CQRS_SETTING_TRANSACTION] = {"transaction", TEXTOID, "batch"},

	/* That of the session. */
	[CQRS_SETTING_SEARCH_PATH] = {"search_path", TEXTOID, NULL},
	[CQRS_SETTING_RATE] = {"rate", TEXTOID, "0"},
	[CQRS_SETTING_KEY_RATE] = {"key_rate", TEXTOID, "0"},
	[CQRS_SETTING_DELIVERY] = {"delivery", TEXTOID, "at_least_once"},
	[CQRS_SETTING_ON_DIVERGENCE] = {"on_divergence", TEXTOID, "stop"},
};

static bool is_by_epoch(CqrsSetting setting);
static const char *as_wanted(CqrsSetting setting);
static void parameters(const CqrsSettings *settings, Oid *types,
					   Datum *values, char *nulls);

/*
 * None is given.
 */
void
cqrs_settings_none(CqrsSettings *settings)
{
	int			i;

	for (i = 0; i < CQRS_SETTINGS; i++)
		settings->values[i] = (NullableDatum)
	{
		0, true
	};
}

/*
 * Those that are arguments of a function: each one's number, where 0 is none.
 */
void
cqrs_settings_read(CqrsSettings *settings, FunctionCallInfo fcinfo,
				   const int *args)
{
	int			i;

	cqrs_settings_none(settings);
	for (i = 0; i < CQRS_SETTINGS; i++)
		if (args[i] != 0)
			settings->values[i] = fcinfo->args[args[i]];
}

void
cqrs_setting_set(CqrsSettings *settings, CqrsSetting setting, Datum value)
{
	settings->values[setting].value = value;
	settings->values[setting].isnull = false;
}

/*
 * Raises 22023 if one that is a number or an interval is negative. How many
 * partitions there may be, epoch.c says.
 */
void
cqrs_settings_check(const CqrsSettings *settings, const char *subscription)
{
	int			i;

	for (i = 0; i < CQRS_SETTINGS; i++)
	{
		Datum		value = settings->values[i].value;
		bool		negative = false;

		if (settings->values[i].isnull || i == CQRS_SETTING_PARTITIONS)
			continue;
		switch (table[i].type)
		{
			case INT4OID:
				negative = DatumGetInt32(value) < 0;
				break;
			case INT8OID:
				negative = DatumGetInt64(value) < 0;
				break;
			case INTERVALOID:
				negative = cqrs_interval_is_negative(value);
				break;
		}
		if (negative)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("%s of subscription \"%s\" must not be negative",
							table[i].name, subscription)));
	}
}

/*
 * What is not given is as usual.
 */
void
cqrs_settings_complete(CqrsSettings *settings)
{
	int			i;

	for (i = 0; i < CQRS_SETTINGS; i++)
	{
		Oid			function;
		Oid			ioparam;
		Datum		value;

		if (!settings->values[i].isnull || table[i].standard == NULL)
			continue;
		getTypeInputInfo(table[i].type, &function, &ioparam);
		value = OidInputFunctionCall(function, pstrdup(table[i].standard),
									 ioparam, -1);
		cqrs_setting_set(settings, i, value);
	}
}

/*
 * The row of a new subscription; returns its id. runs is NULL, or what table
 * cqrs.subscription says. Between cqrs_admin_begin() and
 * cqrs_admin_end(), as the next one. Raises 42710 if a consumer has that name.
 */
int32
cqrs_settings_insert(const CqrsSettings *settings, const char *subscription,
					 const char *runs)
{
	Oid			types[CQRS_SETTINGS + 2];
	Datum		values[CQRS_SETTINGS + 2];
	char		nulls[CQRS_SETTINGS + 2];
	StringInfoData names;
	StringInfoData numbers;
	int			i;

	if (cqrs_registry_consumer(subscription) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("\"%s\" is the name of a consumer", subscription),
				 errhint("No subscription can have the name of a consumer: choose another one.")));
	initStringInfo(&names);
	initStringInfo(&numbers);
	for (i = 0; i < CQRS_SETTINGS; i++)
	{
		appendStringInfo(&names, ", %s", table[i].name);
		appendStringInfo(&numbers, ", $%d", i + 3);
	}
	parameters(settings, types + 2, values + 2, nulls + 2);
	types[0] = TEXTOID;
	values[0] = CStringGetTextDatum(subscription);
	types[1] = TEXTOID;
	values[1] = runs == NULL ? (Datum) 0 : CStringGetTextDatum(runs);
	nulls[0] = ' ';
	nulls[1] = runs == NULL ? 'n' : ' ';
	cqrs_admin_execute_args(psprintf("INSERT INTO cqrs.subscription (subscription, runs%s)"
									 " VALUES ($1, $2%s) RETURNING subscription_id",
									 names.data, numbers.data),
							CQRS_SETTINGS + 2, types, values, nulls);
	return DatumGetInt32(cqrs_admin_result());
}

/*
 * Does the subscription differ in any of those that are given, or, with all, in
 * any? Only if it is given, the search_path counts.
 */
bool
cqrs_settings_differ(const CqrsSettings *settings, int32 subscription_id,
					 bool all)
{
	Oid			types[CQRS_SETTINGS + 1];
	Datum		values[CQRS_SETTINGS + 1];
	char		nulls[CQRS_SETTINGS + 1];
	StringInfoData differences;
	CqrsAdmin	admin;
	bool		differ;
	int			i;

	initStringInfo(&differences);
	for (i = 0; i < CQRS_SETTINGS; i++)
	{
		const char *name = as_wanted(i);

		if (all && i != CQRS_SETTING_SEARCH_PATH)
			appendStringInfo(&differences, "%s%s IS DISTINCT FROM $%d",
							 i > 0 ? " OR " : "", name, i + 2);
		else
			appendStringInfo(&differences, "%scoalesce(%s <> $%d, $%d IS NOT NULL)",
							 i > 0 ? " OR " : "", name, i + 2, i + 2);
	}
	parameters(settings, types + 1, values + 1, nulls + 1);
	types[0] = INT4OID;
	values[0] = Int32GetDatum(subscription_id);
	nulls[0] = ' ';
	cqrs_admin_begin(&admin);
	differ = cqrs_admin_execute_args(psprintf("SELECT FROM cqrs.subscription WHERE subscription_id = $1 AND (%s)",
											  differences.data),
									 CQRS_SETTINGS + 1, types, values, nulls) > 0;
	cqrs_admin_end(&admin);
	return differ;
}

/*
 * In which a subscription differs, as cqrs_settings_differ() finds with all: a
 * sentence a line, palloc'd; "" if in none.
 */
char *
cqrs_settings_differences(const CqrsSettings *settings, int32 subscription_id)
{
	Oid			types[CQRS_SETTINGS + 1];
	Datum		values[CQRS_SETTINGS + 1];
	char		nulls[CQRS_SETTINGS + 1];
	StringInfoData rows;
	CqrsAdmin	admin;
	MemoryContext context = CurrentMemoryContext;
	char	   *lines;
	int			i;

	initStringInfo(&rows);
	for (i = 0; i < CQRS_SETTINGS; i++)
	{
		const char *name = as_wanted(i);

		appendStringInfo(&rows, "%s(%d, '%s', %s::pg_catalog.text, $%d::pg_catalog.text, %s IS DISTINCT FROM $%d%s)",
						 i > 0 ? ", " : "", i, table[i].name, name, i + 2,
						 name, i + 2,
						 i == CQRS_SETTING_SEARCH_PATH ?
						 psprintf(" AND $%d IS NOT NULL", i + 2) : "");
	}
	parameters(settings, types + 1, values + 1, nulls + 1);
	types[0] = INT4OID;
	values[0] = Int32GetDatum(subscription_id);
	nulls[0] = ' ';
	cqrs_admin_begin(&admin);
	cqrs_admin_execute_args(psprintf("SELECT coalesce(pg_catalog.string_agg(pg_catalog.format('Its %%s is %%s, not %%s.', name,"
									 " coalesce(old, 'none'), coalesce(new, 'none')), E'\n' ORDER BY n), '')"
									 " FROM cqrs.subscription CROSS JOIN LATERAL (VALUES %s) v (n, name, old, new, differs)"
									 " WHERE subscription_id = $1 AND differs",
									 rows.data),
							CQRS_SETTINGS + 1, types, values, nulls);
	lines = MemoryContextStrdup(context,
								TextDatumGetCString(cqrs_admin_result()));
	cqrs_admin_end(&admin);
	return lines;
}

/*
 * Change those that are given, but not those that begin with an epoch.
 */
void
cqrs_settings_update(const CqrsSettings *settings, int32 subscription_id)
{
	Oid			types[CQRS_SETTINGS + 1];
	Datum		values[CQRS_SETTINGS + 1];
	char		nulls[CQRS_SETTINGS + 1];
	StringInfoData changes;
	int			i;

	initStringInfo(&changes);
	for (i = 0; i < CQRS_SETTINGS; i++)
		if (!is_by_epoch(i))
			appendStringInfo(&changes, "%s%s = coalesce($%d, %s)",
							 i > 0 ? ", " : "", table[i].name, i + 2,
							 table[i].name);
	parameters(settings, types + 1, values + 1, nulls + 1);
	types[0] = INT4OID;
	values[0] = Int32GetDatum(subscription_id);
	nulls[0] = ' ';
	cqrs_admin_execute_args(psprintf("UPDATE cqrs.subscription SET %s WHERE subscription_id = $1",
									 changes.data),
							CQRS_SETTINGS + 1, types, values, nulls);
}

/*
 * Does it change only when an epoch ends? See epoch.c.
 */
static bool
is_by_epoch(CqrsSetting setting)
{
	return setting == CQRS_SETTING_PARTITIONS ||
		setting == CQRS_SETTING_ORDERING;
}

/*
 * In SQL: its value, or the one that it is being changed to.
 */
static const char *
as_wanted(CqrsSetting setting)
{
	const char *name = table[setting].name;

	return is_by_epoch(setting) ?
		psprintf("coalesce(next_%s, %s)", name, name) : name;
}

static void
parameters(const CqrsSettings *settings, Oid *types, Datum *values,
		   char *nulls)
{
	int			i;

	for (i = 0; i < CQRS_SETTINGS; i++)
	{
		types[i] = table[i].type;
		values[i] = settings->values[i].value;
		nulls[i] = settings->values[i].isnull ? 'n' : ' ';
	}
}
