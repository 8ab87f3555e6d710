/*
 * What librdkafka says of a broker, which may be a broker's own words; and
 * options of servers and user mappings.
 *
 * fuzz: -Isrc/include -Ibrokers/common -Ibrokers/kafka brokers/kafka/producer.c
 * fuzz: brokers/kafka/properties.c brokers/common/broker_client.c -lrdkafka
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "producer.h"
#include "properties.h"

int			LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char	   *text;
	char		error[CQRS_BROKER_ERROR_SIZE] = "";
	const char *c;

	if (size < 1)
		return 0;
	text = malloc(size);
	memcpy(text, data + 1, size - 1);
	text[size - 1] = '\0';

	kafka_describe_broker(data[0] % 2 == 0 ?
						  RD_KAFKA_RESP_ERR__AUTHENTICATION :
						  RD_KAFKA_RESP_ERR__TRANSPORT, text, error);
	if (error[0] == '\0' || strlen(error) >= sizeof(error))
		abort();
	for (c = error; *c != '\0'; c++)
		if ((unsigned char) *c < ' ')
			abort();
	(void) kafka_property_check(&kafka_properties[data[0] % kafka_nproperties],
								text, error);
	free(text);
	return 0;
}
