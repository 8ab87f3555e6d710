/*-------------------------------------------------------------------------
 *
 * properties.h
 *	  Which of librdkafka's properties are options, whose, and what they are by
 *	  default.
 *
 *-------------------------------------------------------------------------
 */
#ifndef KAFKA_PROPERTIES_H
#define KAFKA_PROPERTIES_H

#include <librdkafka/rdkafka.h>

#include "broker_client.h"

#pragma GCC visibility push(hidden) /* as in broker_client.h */

/* Our own option, which librdkafka is not given. */
#define KAFKA_OPTION_TOPIC	"topic"

typedef enum KafkaPropertyPlace
{
	KAFKA_SERVER,				/* an option of the foreign server */
	KAFKA_USER_MAPPING,			/* of the user mapping */
	KAFKA_NOWHERE				/* not an option */
} KafkaPropertyPlace;

typedef struct KafkaProperty
{
	const char *name;
	KafkaPropertyPlace place;
	bool		superuser_only; /* has librdkafka open a file */
	const char *value;			/* where it is not set; NULL: librdkafka's */
} KafkaProperty;

extern const KafkaProperty kafka_properties[];
extern const int kafka_nproperties;

extern bool kafka_property_check(const KafkaProperty *property,
								 const char *value, char *error);
extern bool kafka_properties_check(const CqrsBrokerConnection *connection,
								   char *error);
extern int	kafka_option_int(const CqrsBrokerConnection *connection,
							 const char *name);
extern rd_kafka_conf_t *kafka_conf_new(const CqrsBrokerConnection *connection,
									   char *error);

#pragma GCC visibility pop

#endif							/* KAFKA_PROPERTIES_H */
