/*-------------------------------------------------------------------------
 *
 * client.h
 *	  A client of RabbitMQ, as a module of cqrs_outbox; what its files share.
 *
 * No header of PostgreSQL is included: what is here runs in a thread in which
 * no function of the server may be called.
 *
 *-------------------------------------------------------------------------
 */
#ifndef RABBITMQ_CLIENT_H
#define RABBITMQ_CLIENT_H

#include <time.h>

/* Newer versions of the library have their headers in a folder. */
#if __has_include(<rabbitmq-c/amqp.h>)
#include <rabbitmq-c/amqp.h>
#include <rabbitmq-c/ssl_socket.h>
#include <rabbitmq-c/tcp_socket.h>
#else
#include <amqp.h>
#include <amqp_ssl_socket.h>
#include <amqp_tcp_socket.h>
#endif

#include "broker_client.h"

/* All is published on one channel. */
#define RABBITMQ_CHANNEL		1

/* What the protocol calls a short string has its length in a byte. */
#define RABBITMQ_SHORT_MAX		255

/* The option window by default. */
#define RABBITMQ_WINDOW			1000

/* What the protocol has two bytes for; 0 would be without a limit. */
#define RABBITMQ_PREFETCH_MAX	65535

/* Room for host and port, and for what a broker says. */
#define RABBITMQ_HOST_SIZE		256
#define RABBITMQ_PEER_SIZE		(RABBITMQ_HOST_SIZE + 16)
#define RABBITMQ_TEXT_SIZE		256

/* What must come next on the channel. */
typedef enum RabbitExpected
{
	EXPECT_METHOD = 0,			/* there is no message on its way */
	EXPECT_HEADER,
	EXPECT_BODY
} RabbitExpected;

/*
 * A message that was consumed, in one piece of memory with all that it points
 * to. Those that are with the core, and not settled, are in a list, in the
 * order in which they came.
 */
typedef struct RabbitDelivery
{
	CqrsBrokerReceived message;
	char	   *body;			/* the message's, to be filled */
	struct RabbitDelivery *previous;
	struct RabbitDelivery *next;
} RabbitDelivery;

/*
 * A connection.
 *
 * Its messages are numbered from 1 in the order in which they are published, as
 * the broker does in its confirms. Those from "oldest" to before "next" are in a
 * ring, at their number modulo its size, a power of two; NULL once reported.
 * Those from "unsent" on were not sent yet, because the broker blocks.
 */
typedef struct RabbitClient
{
	const CqrsBrokerConnection *connection;
	const char *vhost;
	const char *exchange;		/* a template */
	const char *routing_key;	/* a template */
	bool		mandatory;
	bool		persistent;
	int			heartbeat;		/* in seconds */
	int			connect_timeout;	/* in seconds */
	int			frame_max;		/* in bytes; the broker may want less */

	amqp_connection_state_t amqp;	/* NULL if there is none */
	char		peer[RABBITMQ_PEER_SIZE];	/* host:port, for messages */
	bool		lost;

	bool		blocked;
	char		blocked_reason[RABBITMQ_TEXT_SIZE];

	CqrsBrokerMessage **ring;
	uint64_t	ring_size;
	uint64_t	oldest;
	uint64_t	unsent;
	uint64_t	next;
	size_t		unpolled;		/* bytes sent since the socket was looked at */

	amqp_table_entry_t *headers;	/* of the message being sent */
	int			headers_size;

	/*
	 * A message from the broker is two frames and more, and nothing between
	 * them.
	 */
	RabbitExpected expected;
	uint64_t	body_left;		/* of the message's body, in bytes */

	/* Of one that comes back, until the second frame says which one it is. */
	int			return_code;
	char		return_text[RABBITMQ_TEXT_SIZE];
	uint64_t	return_hint;	/* where to look for the next one */

	/* For consuming: of the message that comes, from its first frame. */
	bool		consuming;
	uint64_t	delivery_tag;	/* 0: none has come */
	bool		redelivered;
	char		delivery_key[RABBITMQ_SHORT_MAX + 1];	/* its routing key */
	RabbitDelivery *delivery;	/* NULL before its second frame */

	RabbitDelivery *first;		/* of those that are not settled */
	RabbitDelivery *last;
	int			room_messages;	/* what else may be handed over */
	size_t		room_bytes;
	time_t		alive_until;	/* when to send a heartbeat */

	/* Why the broker's certificate is not trusted; empty if it is. */
	char		tls_problem[RABBITMQ_TEXT_SIZE];
} RabbitClient;

#pragma GCC visibility push(hidden) /* as in broker_client.h */

/* client.c */
extern const CqrsBrokerModule rabbitmq_module;

/* failure.c */
extern unsigned rabbitmq_first_host(void);
extern void rabbitmq_mark_lost(RabbitClient *client);
extern bool rabbitmq_lost(RabbitClient *client, int status, char *error);
extern bool rabbitmq_replied(RabbitClient *client, amqp_rpc_reply_t reply,
							 char *error);
extern void rabbitmq_text(amqp_bytes_t bytes, char *buffer);
extern bool rabbitmq_violated(RabbitClient *client, const char *what,
							  char *error);
extern const char *rabbitmq_socket_error(int code);

/* connect.c */
extern bool rabbitmq_hosts_check(const char *value, char *error);
extern bool rabbitmq_port_check(const char *value, char *error);
extern bool rabbitmq_connect(RabbitClient *client, char *error);
extern void rabbitmq_disconnect(RabbitClient *client);

/* login.c */
extern bool rabbitmq_log_in(RabbitClient *client, char *error);

/* tls.c */
extern amqp_socket_t *rabbitmq_tls_socket(RabbitClient *client,
										  const char *host, char *error);
extern const char *rabbitmq_tls_reason(void);

/* frames.c */
extern bool rabbitmq_receive(RabbitClient *client, char *error);

/* publish.c */
extern bool rabbitmq_accept(RabbitClient *client, CqrsBrokerMessage *message,
							char *error);
extern bool rabbitmq_send(RabbitClient *client, char *error);
extern bool rabbitmq_publish_method(RabbitClient *client,
									const amqp_method_t *method, char *error);
extern void rabbitmq_publish_header(RabbitClient *client,
									const amqp_basic_properties_t *properties);

/* consume.c */
extern bool rabbitmq_find_queue(RabbitClient *client, char *error);
extern bool rabbitmq_consume(RabbitClient *client, char *error);
extern bool rabbitmq_consume_full(const RabbitClient *client);
extern bool rabbitmq_keep_alive(RabbitClient *client, char *error);
extern bool rabbitmq_settle(RabbitClient *client,
							CqrsBrokerReceived *const *messages, int n,
							char *error);
extern void rabbitmq_free_deliveries(RabbitClient *client);
extern bool rabbitmq_consume_method(RabbitClient *client,
									const amqp_method_t *method, char *error);
extern bool rabbitmq_consume_header(RabbitClient *client,
									const amqp_basic_properties_t *properties,
									char *error);
extern void rabbitmq_consume_body(RabbitClient *client, amqp_bytes_t fragment);

/* delivery.c */
extern RabbitDelivery *rabbitmq_delivery(const amqp_basic_properties_t *properties,
										 const char *routing_key,
										 size_t body_size);

#pragma GCC visibility pop

#endif							/* RABBITMQ_CLIENT_H */
