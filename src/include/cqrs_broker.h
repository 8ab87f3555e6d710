/*-------------------------------------------------------------------------
 *
 * cqrs_broker.h
 *	  The interface of broker modules: what carries events from the outbox to
 *	  a message broker.
 *
 * A module is a shared library with an extension of its own, which creates a
 * foreign-data wrapper. The wrapper's validator is a C function of that
 * library; that is how the core finds the library, and in it the function
 * cqrs_broker_module(). docs/broker-modules.md teaches how to write one.
 *
 * This header needs no other of PostgreSQL's or of ours, so what speaks to the
 * broker can be compiled, and tested, without the server.
 *
 * Protocol
 *
 * 1. cqrs_subscribe() calls check() in the session that subscribes. All other
 *	  callbacks are called in a background worker, by a thread that the core
 *	  makes for this one connection: startup() first, then publish() and poll()
 *	  in turn, finally shutdown(); never two at the same time.
 * 2. That thread is not PostgreSQL's: a callback, including check(), calls no
 *	  function of the server, no palloc(), no ereport(). It returns what it has
 *	  to say. It may block: nothing in the server waits for it. If shutdown()
 *	  takes longer than half a second, or is never called because another
 *	  callback does not return, the process ends without it.
 * 3. publish() is given messages, in order. The module reports each of them
 *	  once: during that call, or during a later publish() or poll(). At most
 *	  "window" messages are with the module and not reported.
 * 4. If publish() or poll() returns false, the connection is lost: shutdown()
 *	  is called, and what was not reported is published again on another
 *	  connection, later. So a message may arrive more than once, and no message
 *	  is lost.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_BROKER_H
#define CQRS_BROKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * A module is refused if these differ from the core's. The version is raised
 * with every change of this file that breaks modules compiled before.
 */
#define CQRS_BROKER_MAGIC		0x42525153
#define CQRS_BROKER_VERSION		1

/* Room for the text of an error, its final NUL included. */
#define CQRS_BROKER_ERROR_SIZE	512

/*
 * Options of a foreign server that the core reads itself. A module's validator
 * must allow them:
 *	window				how many messages may be unreported, 1 to 1000000; by
 *						default, what the module says
 *	cloudevents_source	what events in this format have as their source; by
 *						default /<database>/<topic>
 *	max_message_size	the largest body of a message, in bytes; an event with a
 *						larger one is a dead letter
 */
#define CQRS_BROKER_OPTION_WINDOW	"window"
#define CQRS_BROKER_OPTION_SOURCE	"cloudevents_source"
#define CQRS_BROKER_OPTION_MAX_MESSAGE_SIZE	"max_message_size"

/* The highest max_message_size, in bytes. */
#define CQRS_BROKER_MAX_MESSAGE_SIZE	(512 * 1024 * 1024)

typedef struct CqrsBrokerOption
{
	const char *name;
	const char *value;
} CqrsBrokerOption;

/*
 * A header of a message. The value is text.
 */
typedef struct CqrsBrokerHeader
{
	const char *name;
	const char *value;
} CqrsBrokerHeader;

/*
 * A message. All text is UTF-8 and ends with a NUL. It stays as it is until the
 * message is reported, or shutdown() has returned.
 */
typedef struct CqrsBrokerMessage
{
	const char *topic;
	const char *event_name;
	const char *key;			/* NULL: the event has none */
	const char *message_id;		/* the event's id: 36 characters */
	int64_t		timestamp;		/* when the event was emitted, in microseconds
								 * since 1970-01-01 00:00 UTC */
	const char *content_type;	/* of the body; NULL: there is none */
	const char *body;			/* NULL: a tombstone */
	size_t		body_size;		/* in bytes, without the NUL */
	int			nheaders;
	const CqrsBrokerHeader *headers;

	uint64_t	tag;			/* for the module to use */
} CqrsBrokerMessage;

typedef enum CqrsBrokerOutcome
{
	CQRS_BROKER_CONFIRMED,		/* the broker has it, durably */
	CQRS_BROKER_REJECTED,		/* not now; if it takes others, this message
								 * is at fault */
	CQRS_BROKER_REFUSED			/* never this one; no use trying again */
} CqrsBrokerOutcome;

/*
 * Called to report a message. error says why it was rejected or refused, and
 * is NULL otherwise; it is copied.
 */
typedef void (*CqrsBrokerReport) (CqrsBrokerMessage *message,
								  CqrsBrokerOutcome outcome,
								  const char *error);

/*
 * What a connection is made with. It stays until shutdown() has returned.
 */
typedef struct CqrsBrokerConnection
{
	const char *database;
	const char *subscription;	/* with the database, a name for the client */

	/* Of the foreign server, then of the user mapping; names are unique. */
	int			noptions;
	const CqrsBrokerOption *options;

	CqrsBrokerReport report;	/* not for check() */
} CqrsBrokerConnection;

/*
 * A module. Where a callback has an argument error, it is an empty string of
 * CQRS_BROKER_ERROR_SIZE bytes, for a text of one line in UTF-8 that tells
 * people what is wrong, and with whom, and contains no secret: it goes to the
 * log and to views.
 */
typedef struct CqrsBrokerModule
{
	uint32_t	magic;			/* CQRS_BROKER_MAGIC */
	uint32_t	version;		/* CQRS_BROKER_VERSION */
	const char *name;			/* of the kind of broker, such as "RabbitMQ" */

	/*
	 * Attributes of CloudEvents become headers with this before their names,
	 * as the protocol's binding has it.
	 */
	const char *cloudevents_prefix;

	/*
	 * Can a message without a body be published, which says that what the key
	 * stands for is gone? If not, no body is ever NULL.
	 */
	bool		tombstones;

	/* The option window, if it is not set. */
	int			window;

	/*
	 * Can a connection be made with these options, as far as can be told
	 * without making it? If not, returns false and sets error.
	 */
	bool		(*check) (const CqrsBrokerConnection *connection, char *error);

	/*
	 * Connect. Returns what the other callbacks are given as state; NULL, and
	 * sets error, if that fails: shutdown() is not called then.
	 */
	void	   *(*startup) (const CqrsBrokerConnection *connection,
							char *error);

	/*
	 * Publish n messages, n at least 1. Returns false, and sets error, if the
	 * connection is lost.
	 */
	bool		(*publish) (void *state, CqrsBrokerMessage *const *messages,
							int n, char *error);

	/*
	 * Handle all that came from the broker, without waiting for more; answer
	 * heartbeats, and send our own. Called when fd() is readable, after each
	 * publish(), and once a second. Returns false, and sets error, if the
	 * connection is lost.
	 *
	 * If it returns true and sets error, the connection stands, but the
	 * broker accepts nothing at present. If that lasts for a second with
	 * messages unreported, the connection is closed, and made anew later.
	 */
	bool		(*poll) (void *state, char *error);

	/*
	 * A file descriptor that is readable when poll() has something to do; -1
	 * if there is none: poll() is called every 10 ms then, as long as a
	 * message is not reported. Asked for before each wait.
	 */
	int			(*fd) (void *state);

	/*
	 * Disconnect, and free the state. No message may be reported any more.
	 */
	void		(*shutdown) (void *state);
} CqrsBrokerModule;

/*
 * A module's library must have this function, not static, and with PGDLLEXPORT
 * where the platform needs it. What it returns must not change.
 */
extern const CqrsBrokerModule *cqrs_broker_module(void);

#endif							/* CQRS_BROKER_H */
