/*-------------------------------------------------------------------------
 *
 * entry.h
 *	  What can be registered.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_ENTRY_H
#define CQRS_ENTRY_H

#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "base/sqlstate.h"
#include "registry/handler.h"

typedef struct CqrsTopic
{
	char		name[NAMEDATALEN];	/* hash key */
	int32		topic_id;
	int64		retention;		/* in milliseconds */
	int			current_segment;
	TimestampTz opened_at[CQRS_SEGMENTS];	/* 0: never */
	bool		native;			/* false: restored, and not adopted */
	struct CqrsSubscription *runner;	/* does what is in it, commands or
										 * steps of sagas; NULL: there is none */
	Oid			view;			/* InvalidOid: somebody dropped it */
	Oid			segments[CQRS_SEGMENTS];	/* likewise */
} CqrsTopic;

/* A function called around each dispatch; see middleware.c. */
typedef struct CqrsMiddleware
{
	struct CqrsMiddleware *next;	/* further in */
	int32		priority;
	int64		seq;
	CqrsHandler handler;
} CqrsMiddleware;

/* A function called in the transaction that emits; see domain_event.c. */
typedef struct CqrsEventHandler
{
	struct CqrsEventHandler *next;	/* registered after this one */
	int64		seq;
	Oid			checked_type;	/* the argument type that was last checked */
	CqrsHandler handler;
} CqrsEventHandler;

typedef struct CqrsEventType
{
	char		name[NAMEDATALEN];	/* hash key */
	CqrsTopic  *topic;			/* NULL: its events are for handlers only */
	Oid			payload_type;
	CqrsEventHandler *handlers; /* NULL: none */
} CqrsEventType;

typedef enum CqrsCommandKind
{
	CQRS_COMMAND,				/* cqrs_send() */
	CQRS_QUERY,					/* cqrs_query() */
	CQRS_STREAM					/* cqrs_stream() */
} CqrsCommandKind;

typedef struct CqrsCommand
{
	char		name[NAMEDATALEN];	/* hash key */
	CqrsCommandKind kind;
	int			nhandlers;		/* more than one only of a CQRS_COMMAND */
	CqrsHandler *handlers;		/* in the order in which they are tried */
} CqrsCommand;

/* A signature fits: schema, name, and a type with its schema, all quoted. */
#define CQRS_MAX_SIGNATURE	(8 * NAMEDATALEN + 16)

/* A circuit breaker; see breaker.c. */
typedef struct CqrsBreaker
{
	int32		fallback_id;	/* the fallback that it belongs to */
	int			max_failures;	/* 0: there is none */
	int64		reset_after;	/* in milliseconds */
} CqrsBreaker;

/* What is called instead of a handler that failed; see fallback.c. */
typedef struct CqrsFallback
{
	char		primary[CQRS_MAX_SIGNATURE];	/* hash key */
	CqrsHandler handler;		/* the fallback */
	int			nsqlstates;		/* -1: see cqrs.fallback */
	CqrsSqlstate *sqlstates;
	int			nexcluded;
	CqrsSqlstate *excluded;
	CqrsBreaker breaker;
} CqrsFallback;

typedef enum CqrsSubscriptionState
{
	CQRS_SUBSCRIPTION_ACTIVE,
	CQRS_SUBSCRIPTION_PAUSED,
	CQRS_SUBSCRIPTION_SUSPENDED
} CqrsSubscriptionState;

/* Times are in milliseconds; see table cqrs.subscription. */
typedef struct CqrsSubscription
{
	char		name[NAMEDATALEN];	/* hash key */
	int32		subscription_id;
	Oid			owner;			/* InvalidOid: see owner.c */
	Oid			view;			/* InvalidOid: somebody dropped it */
	int			partitions;
	bool		by_topic;		/* ordering: by topic, not by key */
	int			next_partitions;	/* the number that is being changed to; 0:
									 * no epoch is open */
	bool		next_by_topic;	/* the ordering, likewise */
	int64		epoch_tick;		/* with next_partitions; see epoch.c */
	struct CqrsSnapshot *epoch_snapshot;
	int			max_attempts;
	int64		retry_delay;
	int64		max_retry_delay;
	int64		delivery_timeout;
	int64		max_retained_size;
	int64		max_retained_age;
	CqrsSubscriptionState state;
	TimestampTz retried_at;		/* differs each time */
	bool		has_handler;
	CqrsHandler handler;		/* only with has_handler */
	char	   *server;			/* stands for the broker; NULL: none */
	char	   *format;			/* only with server */
	bool		strict_key_order;	/* only with server */
	bool		exactly_once;	/* likewise; see broker_transaction.c */
	bool		resends;		/* then, what has diverged */
	bool		event_transactions; /* a handler gets one for each event */
	char	   *search_path;	/* of a handler; see search_path.c */
	int64		rate_interval;	/* in nanoseconds: how long a call of the
								 * handler takes of its rate; 0: no limit */
	int64		key_interval;	/* the same for events of one key */
	bool		runs_commands;	/* its owner's; see enqueue.c */
	bool		runs_sagas;		/* their steps; see run.c */
	bool		routes_to_sagas;	/* what they wait for; see router.c */
	int			ntopics;
	CqrsTopic **topics;			/* may be none, after cqrs_drop_topic() */
} CqrsSubscription;

/* What is consumed from a broker; see table cqrs.consumer. */
typedef struct CqrsConsumer
{
	char		name[NAMEDATALEN];	/* hash key */
	int32		consumer_id;	/* no subscription's */
	Oid			owner;			/* InvalidOid: see owner.c */
	Oid			view;			/* InvalidOid: somebody dropped it */
	pg_uuid_t	incarnation;
	char	   *server;
	char	   *source;
	CqrsTopic  *topic;			/* NULL: it was dropped */
	char	   *event_name;		/* NULL: the messages say */
	char	   *format;
	char	   *message_id;		/* NULL: the source has offsets */
	char	   *start;
	bool		skips_gaps;
	int			workers;
	bool		active;
	TimestampTz retried_at;		/* differs each time */
} CqrsConsumer;

/*
 * The kind in messages and in table cqrs.command, and the function that
 * dispatches it. Inline, as each dispatch asks for them.
 */
static inline const char *
cqrs_command_kind_name(CqrsCommandKind kind)
{
	return kind == CQRS_COMMAND ? "command" :
		kind == CQRS_QUERY ? "query" : "stream";
}

static inline const char *
cqrs_command_function(CqrsCommandKind kind)
{
	return kind == CQRS_COMMAND ? "cqrs_send()" :
		kind == CQRS_QUERY ? "cqrs_query()" : "cqrs_stream()";
}

/* Is what it gets its owner's, to be done, and not events of others? */
#define cqrs_subscription_is_queue(subscription) \
	((subscription)->runs_commands || (subscription)->runs_sagas || \
	 (subscription)->routes_to_sagas)

/* Do clients pull it, as it has neither a handler nor a server? */
#define cqrs_subscription_is_pulled(subscription) \
	(!(subscription)->has_handler && (subscription)->server == NULL)

#endif							/* CQRS_ENTRY_H */
