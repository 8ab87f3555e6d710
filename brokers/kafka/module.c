/*-------------------------------------------------------------------------
 *
 * module.c
 *	  The table of callbacks of the broker module "Kafka".
 *
 * A connection publishes (client.c), or consumes (consumer.c). No header of
 * PostgreSQL is included: what runs here cannot call the server.
 *
 *-------------------------------------------------------------------------
 */
#include "client.h"
#include "consumer.h"
#include "module.h"
#include "properties.h"

static void *module_startup(const CqrsBrokerConnection *connection,
							char *error);
static int	module_fd(void *state);
static void module_shutdown(void *state);

static const CqrsBrokerModule module = {
	.magic = CQRS_BROKER_MAGIC,
	.version = CQRS_BROKER_VERSION,
	.name = "Kafka",
	.cloudevents_prefix = "ce_",
	.tombstones = true,
	.window = KAFKA_DEFAULT_WINDOW,
	.check = kafka_properties_check,
	.startup = module_startup,
	.publish = kafka_client_publish,
	.poll = kafka_client_poll,
	.fd = module_fd,
	.shutdown = module_shutdown,
	.keeps_offsets = true,
	.assign = kafka_consumer_assign,
	.receive = kafka_consumer_receive,
	.settle = kafka_consumer_settle,
	.fence = kafka_client_fence,
	.begin = kafka_client_begin,
	.commit = kafka_client_commit,
	.abort = kafka_client_abort,
	.read_record = kafka_client_read_record
};

/*
 * The module. See cqrs_broker.h for the contracts of its callbacks.
 */
const CqrsBrokerModule *
kafka_module(void)
{
	return &module;
}

static void *
module_startup(const CqrsBrokerConnection *connection, char *error)
{
	return connection->source != NULL ?
		kafka_consumer_startup(connection, error) :
		kafka_client_startup(connection, error);
}

static int
module_fd(void *state)
{
	return ((KafkaState *) state)->event_fd;
}

static void
module_shutdown(void *state)
{
	((KafkaState *) state)->shutdown(state);
}
