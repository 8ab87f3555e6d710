/*-------------------------------------------------------------------------
 *
 * kafka.c
 *	  The module as the server sees it: its validator, and what the core asks
 *	  it for. All that speaks to Kafka is in files that know nothing of the
 *	  server.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/reloptions.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "fmgr.h"

#include "broker_client.h"
#include "broker_validator.h"
#include "module.h"
#include "properties.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT const CqrsBrokerModule *cqrs_broker_module(void);

static void check_values(Datum options);

PG_FUNCTION_INFO_V1(cqrs_kafka_validator);

/*
 * The validator of foreign-data wrapper cqrs_kafka; see broker_validate().
 */
Datum
cqrs_kafka_validator(PG_FUNCTION_ARGS)
{
	BrokerOptionDef *defs = palloc0(kafka_nproperties * sizeof(BrokerOptionDef));
	int			ndefs = 0;
	int			i;

	for (i = 0; i < kafka_nproperties; i++)
	{
		const KafkaProperty *property = &kafka_properties[i];

		if (property->place == KAFKA_NOWHERE)
			continue;
		defs[ndefs].name = property->name;
		defs[ndefs].catalog = property->place == KAFKA_SERVER ?
			ForeignServerRelationId : UserMappingRelationId;
		defs[ndefs++].superuser_only = property->superuser_only;
	}
	broker_validate(PG_GETARG_DATUM(0), PG_GETARG_OID(1), defs, ndefs,
					"cqrs_kafka");
	check_values(PG_GETARG_DATUM(0));
	PG_RETURN_VOID();
}

/*
 * For the core.
 */
const CqrsBrokerModule *
cqrs_broker_module(void)
{
	return kafka_module();
}

/*
 * Check the values of options that exist. Each name is an option in one place
 * only.
 *
 * ERRCODE_INVALID_PARAMETER_VALUE: an option cannot have this value.
 */
static void
check_values(Datum options)
{
	ListCell   *lc;

	foreach(lc, untransformRelOptions(options))
	{
		DefElem    *option = (DefElem *) lfirst(lc);
		char		error[CQRS_BROKER_ERROR_SIZE] = "";
		int			i;

		for (i = 0; i < kafka_nproperties; i++)
		{
			if (strcmp(kafka_properties[i].name, option->defname) == 0 &&
				!kafka_property_check(&kafka_properties[i],
									  defGetString(option), error))
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("option \"%s\" of foreign-data wrapper \"%s\" cannot have this value",
								option->defname, "cqrs_kafka"),
						 errdetail("%s", error)));
		}
	}
}
