/*-------------------------------------------------------------------------
 *
 * cqrs_broker.h
 *	  The interface of broker modules: what carries events from the outbox to
 *	  a message broker, and messages from there into a topic.
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
 * Consuming
 *
 * A connection with a source consumes; its module has the callbacks assign(),
 * receive() and settle(), which are called instead of publish() and poll().
 *
 * 5. After startup(), once the number of partitions is known, assign() says
 *	  which of them to consume, and from where: once for each connection. A
 *	  source without partitions is one, of number 0.
 * 6. receive() hands over what has come, by calling received(), in the order of
 *	  each partition. A message is the module's, and stays as it is, until it is
 *	  settled or shutdown() is called. No more is handed over, and not settled,
 *	  than receive() is given room for: so the module leaves the rest with the
 *	  broker.
 * 7. settle() is given messages that are in the database, durably, in the order
 *	  in which they were received: they are acknowledged now. What is not settled
 *	  when the connection ends, comes again: from a source whose offsets the
 *	  core keeps, because it is assigned from there; from another, because the
 *	  broker has kept it.
 *
 * Exactly once
 *
 * A connection with a transactional_id publishes in transactions of the broker's;
 * its module has the callbacks fence(), begin(), commit(), abort() and
 * read_record().
 *
 * 8. After startup(), the record that was committed last is read, fence() is
 *	  called, and the record is read once more. fence() ends every other
 *	  connection of that transactional_id, for good, and what it had not
 *	  committed; startup() does not.
 * 9. publish() and poll() are called as above, between begin() and commit() or
 *	  abort(). CONFIRMED means that the broker has the message, and shows it once
 *	  the transaction is committed. Once something else was reported, nothing more
 *	  is published before abort(); a message that is not at fault, but has to be
 *	  published again in another transaction, is AGAIN.
 * 10. commit() is called when all messages are reported as CONFIRMED. It writes a
 *	  record in the same transaction, which replaces the last one of this
 *	  transactional_id. read_record() returns the last one committed.
 * 11. From begin() to commit() takes 20 s at most, and what it takes the broker to
 *	  confirm what is on its way then.
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
#define CQRS_BROKER_VERSION		2

/* Room for the text of an error, its final NUL included. */
#define CQRS_BROKER_ERROR_SIZE	512

/* Room for a record of a transaction, its final NUL included. */
#define CQRS_BROKER_RECORD_SIZE	1024

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
	CQRS_BROKER_REFUSED,		/* never this one; no use trying again */
	CQRS_BROKER_AGAIN			/* nothing is wrong with it, but the
								 * transaction has to be aborted */
} CqrsBrokerOutcome;

/*
 * Called to report a message. error says why it was rejected or refused, and
 * is NULL otherwise; it is copied.
 */
typedef void (*CqrsBrokerReport) (CqrsBrokerMessage *message,
								  CqrsBrokerOutcome outcome,
								  const char *error);

/*
 * A header of a message that was consumed. The value may hold any bytes.
 */
typedef struct CqrsBrokerReceivedHeader
{
	const char *name;
	const char *value;			/* NULL: none */
	size_t		value_size;
} CqrsBrokerReceivedHeader;

/*
 * A message that was consumed. Strings end with a NUL; key, body and headers'
 * values may hold any bytes, and need not.
 */
typedef struct CqrsBrokerReceived
{
	int32_t		partition;		/* 0, of a source without partitions */
	int64_t		offset;			/* in the partition; -1: it has none */
	const char *message_id;		/* NULL: none */
	const char *key;			/* NULL: none */
	size_t		key_size;
	const char *body;			/* NULL: a tombstone */
	size_t		body_size;
	const char *content_type;	/* NULL: unknown */
	int64_t		timestamp;		/* in microseconds since 1970-01-01 00:00 UTC;
								 * INT64_MIN: unknown */
	bool		redelivered;	/* the broker says that it may have been
								 * received before */
	int			nheaders;
	const CqrsBrokerReceivedHeader *headers;

	uint64_t	tag;			/* for the module to use */
	void	   *handle;			/* likewise */
	struct CqrsBrokerReceived *next;	/* for the core to use */
} CqrsBrokerReceived;

/* Where to begin to consume a partition, if not at an offset. */
#define CQRS_BROKER_OFFSET_EARLIEST		(-2)	/* the first that there is */
#define CQRS_BROKER_OFFSET_LATEST		(-1)	/* what comes from now on */
#define CQRS_BROKER_OFFSET_TIME			(-3)	/* the first with this
												 * timestamp or a later one */

/*
 * What is to be consumed of a partition.
 *
 * If last is not -1, it is the offset of the last message that was consumed,
 * before offset. If that is there still, it is received once more, so that the
 * core sees whether this is the partition that it was; if not, that is all
 * right.
 */
typedef struct CqrsBrokerPosition
{
	int32_t		partition;
	int64_t		offset;			/* the next one to consume, or see above */
	int64_t		last;			/* -1: none */
	int64_t		timestamp;		/* for OFFSET_TIME, in microseconds since
								 * 1970-01-01 00:00 UTC */
} CqrsBrokerPosition;

typedef enum CqrsBrokerNoticeKind
{
	/* The source has so many partitions: value. At first, and if it changes. */
	CQRS_BROKER_NOTICE_PARTITIONS,

	/*
	 * All that the partition has before the offset in value was received: at
	 * its end, or where consuming begins, if that was not an offset.
	 */
	CQRS_BROKER_NOTICE_REACHED,

	/* The next message that is written to the partition gets offset value. */
	CQRS_BROKER_NOTICE_END,

	/*
	 * The partition is not consumed, as what is to be consumed is not there
	 * any more: it begins at offset value.
	 */
	CQRS_BROKER_NOTICE_GAP,

	/*
	 * The partition is not consumed, as it ends, at offset value, before what
	 * was consumed of it: it is another one.
	 */
	CQRS_BROKER_NOTICE_SHORTER
} CqrsBrokerNoticeKind;

typedef struct CqrsBrokerNotice
{
	CqrsBrokerNoticeKind kind;
	int32_t		partition;
	int64_t		value;
} CqrsBrokerNotice;

/*
 * What a connection is made with. It stays until shutdown() has returned.
 */
typedef struct CqrsBrokerConnection
{
	const char *database;
	const char *subscription;	/* or the consumer; with the database, a name
								 * for the client */
	const char *source;			/* to consume from; NULL: it publishes */
	const char *transactional_id;	/* NULL: it does not publish in
									 * transactions */

	/* Of the foreign server, then of the user mapping; names are unique. */
	int			noptions;
	const CqrsBrokerOption *options;

	CqrsBrokerReport report;	/* not for check() */

	/*
	 * For receive() to call: a message has come, or something about the
	 * source is known. A notice is behind the messages received before it. It
	 * is copied.
	 */
	void		(*received) (const struct CqrsBrokerConnection *connection,
							 CqrsBrokerReceived *message);
	void		(*notice) (const struct CqrsBrokerConnection *connection,
						   const CqrsBrokerNotice *notice);
	void	   *context;		/* for the core to use */
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
	 * Disconnect, and free the state. No message may be reported or received
	 * any more; those that were received, and are not settled, are freed.
	 */
	void		(*shutdown) (void *state);

	/*
	 * For consuming; all NULL if the module cannot. With keeps_offsets, the
	 * broker has partitions with offsets, which the core keeps; otherwise,
	 * the broker keeps what is not acknowledged.
	 */
	bool		keeps_offsets;

	/*
	 * Consume these n partitions. Returns false, and sets error, if the
	 * connection is lost.
	 */
	bool		(*assign) (void *state, const CqrsBrokerPosition *positions,
						   int n, char *error);

	/*
	 * Hand over what has come, without waiting for more, but no more than
	 * most messages, nor more once they have these bytes in keys and bodies;
	 * most may be 0. Answer heartbeats, and send our own. Called when fd() is
	 * readable, after settle(), and once a second, also before assign().
	 * Returns false, and sets error, if the connection is lost. If it returns
	 * true and sets error, the connection stands, but nothing can be consumed
	 * at present, or not all.
	 */
	bool		(*receive) (void *state, int most, size_t bytes, char *error);

	/*
	 * These messages are in the database: acknowledge, and free them. Returns
	 * false, and sets error, if the connection is lost; they are freed then,
	 * too.
	 */
	bool		(*settle) (void *state, CqrsBrokerReceived *const *messages,
						   int n, char *error);

	/*
	 * For publishing in transactions; all NULL if the module cannot. Each
	 * waits for the broker's answer; it returns false, and sets error, if the
	 * connection is lost; after commit(), whether the transaction was
	 * committed is not known then.
	 *
	 * If commit() finds that the transaction cannot be committed, it aborts
	 * it: *committed is false then. The record has at most
	 * CQRS_BROKER_RECORD_SIZE - 1 bytes. Without a message published in the
	 * transaction, it need not be written if none ever was.
	 *
	 * abort() reports what was not reported.
	 *
	 * read_record() sets record, of CQRS_BROKER_RECORD_SIZE bytes; to an
	 * empty string if there is none.
	 */
	bool		(*fence) (void *state, char *error);
	bool		(*begin) (void *state, char *error);
	bool		(*commit) (void *state, const char *record, bool *committed,
						   char *error);
	bool		(*abort) (void *state, char *error);
	bool		(*read_record) (void *state, char *record, char *error);
} CqrsBrokerModule;

/*
 * A module's library must have this function, not static, and with PGDLLEXPORT
 * where the platform needs it. What it returns must not change.
 */
extern const CqrsBrokerModule *cqrs_broker_module(void);

#endif							/* CQRS_BROKER_H */
