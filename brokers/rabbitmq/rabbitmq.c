/*-------------------------------------------------------------------------
 *
 * rabbitmq.c
 *	  The module as the server sees it: its validator, and what the core asks
 *	  it for. All that speaks to RabbitMQ is in files that know nothing of the
 *	  server.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "fmgr.h"

#include "broker_client.h"
#include "broker_validator.h"
#include "client.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT const CqrsBrokerModule *cqrs_broker_module(void);

static bool check_seconds(const char *value, char *error);
static bool check_frame_max(const char *value, char *error);

/* The script of the extension says what each of them means. */
static const BrokerOptionDef options[] = {
	{"host", ForeignServerRelationId, false, rabbitmq_hosts_check},
	{"port", ForeignServerRelationId, false, rabbitmq_port_check},
	{"vhost", ForeignServerRelationId, false, broker_check_not_empty},
	{"exchange", ForeignServerRelationId, false, broker_template_check},
	{"routing_key", ForeignServerRelationId, false, broker_template_check},
	{"mandatory", ForeignServerRelationId, false, broker_check_bool},
	{"persistent", ForeignServerRelationId, false, broker_check_bool},
	{"heartbeat", ForeignServerRelationId, false, check_seconds},
	{"connect_timeout", ForeignServerRelationId, false, check_seconds},
	{"frame_max", ForeignServerRelationId, false, check_frame_max},
	{"tls", ForeignServerRelationId, false, broker_check_bool},
	{"tls_verify", ForeignServerRelationId, false, broker_check_bool},
	{"tls_ca_file", ForeignServerRelationId, true, broker_check_not_empty},
	{"tls_cert_file", ForeignServerRelationId, true, broker_check_not_empty},
	{"tls_key_file", ForeignServerRelationId, true, broker_check_not_empty},
	{"username", UserMappingRelationId, false, NULL},
	{"password", UserMappingRelationId, false, NULL}
};

PG_FUNCTION_INFO_V1(cqrs_rabbitmq_validator);

/*
 * The validator of foreign-data wrapper cqrs_rabbitmq; see broker_validate().
 */
Datum
cqrs_rabbitmq_validator(PG_FUNCTION_ARGS)
{
	broker_validate(PG_GETARG_DATUM(0), PG_GETARG_OID(1), options,
					lengthof(options), "cqrs_rabbitmq");
	PG_RETURN_VOID();
}

/*
 * For the core.
 */
const CqrsBrokerModule *
cqrs_broker_module(void)
{
	return &rabbitmq_module;
}

/*
 * For heartbeat and connect_timeout. Without a heartbeat, nobody would learn
 * that the broker does not answer any more.
 */
static bool
check_seconds(const char *value, char *error)
{
	return broker_check_int(value, 1, 3600, error);
}

/*
 * The protocol has brokers accept 4096 bytes. Each connection has a buffer of
 * this size.
 */
static bool
check_frame_max(const char *value, char *error)
{
	return broker_check_int(value, 4096, 16 * 1024 * 1024, error);
}
