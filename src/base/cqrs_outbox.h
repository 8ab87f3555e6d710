/*-------------------------------------------------------------------------
 *
 * cqrs_outbox.h
 *	  What every file of cqrs_outbox shares: names, limits and settings.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_OUTBOX_H
#define CQRS_OUTBOX_H

#include "postgres.h"

#include "base/compat.h"

#ifdef CQRS_DEBUG_POINTS
#include "utils/timestamp.h"

/* So that a test can set the clock; see clock.c. */
#define GetCurrentTimestamp()	cqrs_debug_wall_clock()

extern TimestampTz cqrs_debug_wall_clock(void);
#endif

#define CQRS_EXTENSION		"cqrs_outbox"

/* Of the library and the SQL script; the control file has it, too. */
#define CQRS_VERSION		"0.9"

#define CQRS_SCHEMA			"cqrs"	/* tables of our own */
#define CQRS_TOPIC_SCHEMA	"cqrs_topics"	/* the topics' views */
#define CQRS_SUBSCRIPTION_SCHEMA	"cqrs_subscriptions"	/* the same */

/* A topic's events lie in this many tables. */
#define CQRS_SEGMENTS		3

/* A subscription has at most this many cursors. */
#define CQRS_MAX_PARTITIONS	1000

/* Names are at most this many bytes, so that a topic can name its view. */
#define CQRS_MAX_NAME		(NAMEDATALEN - 1)

/* The length of a W3C traceparent. */
#define CQRS_TRACEPARENT_LEN	55

/* The most characters of a correlation id set by a session. */
#define CQRS_CORRELATION_ID_LEN	255

/*
 * A class of SQLSTATEs of our own: errors that a program must tell from a
 * handler's ...
 *	NOT_REGISTERED	a command or a query
 *	KEY_REUSED		an idempotency key, for another request
 *	INVALID_RECEIPT	is not the newest of its partition, or no receipt
 *	EXPIRED			a command was not executed in time
 *	CANCELED		a command was ended
 * ... and errors by which an event's handler says whose fault its failure is:
 *	GIVE_UP			the event's: do not try again
 *	WAIT			no event's: all wait
 */
#define ERRCODE_CQRS_NOT_REGISTERED		MAKE_SQLSTATE('O','B','0','0','1')
#define ERRCODE_CQRS_KEY_REUSED			MAKE_SQLSTATE('O','B','0','0','2')
#define ERRCODE_CQRS_INVALID_RECEIPT	MAKE_SQLSTATE('O','B','0','0','3')
#define ERRCODE_CQRS_EXPIRED			MAKE_SQLSTATE('O','B','0','0','4')
#define ERRCODE_CQRS_CANCELED			MAKE_SQLSTATE('O','B','0','0','5')
#define ERRCODE_CQRS_GIVE_UP			MAKE_SQLSTATE('O','B','1','0','0')
#define ERRCODE_CQRS_WAIT				MAKE_SQLSTATE('O','B','1','0','1')

/* Settings; described in guc.c. */
extern bool cqrs_deliver;
extern int	cqrs_tick_interval;
extern int	cqrs_poll_interval;
extern int	cqrs_batch_duration;
extern int	cqrs_manager_idle_timeout;
extern int	cqrs_max_databases;
extern int	cqrs_max_managers;
extern int	cqrs_max_workers;
extern int	cqrs_max_breakers;
extern int	cqrs_max_command_depth;
extern int	cqrs_max_event_depth;
extern int	cqrs_segment_size;	/* in kB */
extern int	cqrs_segment_age;	/* in milliseconds */
extern int	cqrs_idempotency_retention; /* in seconds */
extern int	cqrs_consumed_retention;	/* in seconds */
extern int	cqrs_saga_retention;	/* in seconds */
extern char *cqrs_traceparent;	/* "": none */
extern char *cqrs_correlation_id;	/* "": none */

extern void cqrs_guc_define(void);

#endif							/* CQRS_OUTBOX_H */
