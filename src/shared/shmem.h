/*-------------------------------------------------------------------------
 *
 * shmem.h
 *	  What the processes share: who serves which database and subscription.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_SHMEM_H
#define CQRS_SHMEM_H

#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "shared/clock.h"

typedef enum CqrsDatabaseState
{
	CQRS_DATABASE_FREE,			/* nobody's slot */
	CQRS_DATABASE_RESTING,		/* has nothing to do, and no manager */
	CQRS_DATABASE_REQUESTED,	/* waits for a manager */
	CQRS_DATABASE_STARTING,		/* a manager was asked for, or is probing */
	CQRS_DATABASE_RUNNING		/* a manager serves it */
} CqrsDatabaseState;

/* A set of topics: bit topic_id modulo CQRS_TOPIC_BITS. */
#define CQRS_TOPIC_BITS		1024
#define CQRS_TOPIC_WORDS	(CQRS_TOPIC_BITS / 64)

typedef struct CqrsTopicSet
{
	uint64		words[CQRS_TOPIC_WORDS];
} CqrsTopicSet;

/*
 * A database that has, or may have, the extension. The lock protects
 * everything but the atomics, and known and told, which are the manager's own.
 * Times are steady ones (see clock.c).
 *
 * pending and asleep let a committing emitter wake the manager without a
 * lock, and not more often than needed. The emitter sets pending, and then
 * wakes if asleep is set, clearing it. The manager sets asleep, and then looks
 * at pending before it waits. Both have a full barrier between the two steps,
 * so that one of them sees the other.
 *
 * Without a manager, the launcher is woken; see database.c.
 *
 * Before pending, the emitter sets in dirty the bits of the topics that have
 * something new; the manager clears them after it has cleared pending. Topics
 * share bits.
 */
typedef struct CqrsDatabaseSlot
{
	Oid			dboid;			/* InvalidOid if FREE */
	CqrsDatabaseState state;
	bool		announced;		/* a CREATE EXTENSION committed since probed */
	bool		known;			/* a manager has looked, since the server
								 * started */
	bool		told;			/* ... and has said why nothing is delivered */
	int			held;			/* > 0: let nobody connect; see utility.c */
	int			failures;		/* in a row */
	uint32		failure_hash;	/* of the last one's message; 0: none */
	bool		exhausted;		/* no background worker was available, for the
								 * manager, or to it for a worker */
	TimestampTz start_after;	/* REQUESTED: since when it waits, or when to
								 * start */
	TimestampTz next_due;		/* when there is something to do, besides
								 * next_run_at, and what was announced */
	TimestampTz rests_since;
	int			rests;			/* in a row, without an announcement in
								 * between */
	TimestampTz started_at;
	TimestampTz asked_to_leave; /* others need the process; 0: not asked */
	pid_t		manager_pid;	/* 0: none */
	Latch	   *manager_latch;	/* may be somebody else's by now */

	/* What the manager reports, for monitoring. */
	TimestampTz waiting_since;	/* since when a cursor waits for a worker; 0:
								 * none does */
	TimestampTz assigned_at;	/* when it last looked for one */
	int32		failed_subscription;	/* whose worker was lost last; 0: none */
	int32		failed_partition;
	int			worker_failures;	/* ... how often in a row ... */
	TimestampTz worker_retry_at;	/* ... and until when it has none */

	/*
	 * A worker of this database was lost, and its slot was reused before the
	 * manager noted which cursor it had: it may have been any.
	 */
	bool		worker_forgotten;

	/* Whose subscriptions were delivered last; InvalidOid: nobody's. */
	Oid			worker_owner;

	/*
	 * The newest tick whose commit the manager saw complete, including
	 * synchronous replication. A later one may be visible and not safe yet.
	 * 0: none since it started.
	 */
	pg_atomic_uint64 durable_tick;

	/*
	 * The tick that it recorded last, committed or not: the next durable one.
	 */
	pg_atomic_uint64 recorded_tick;

	/*
	 * A TimestampTz: no command is scheduled for an earlier time, including
	 * those whose commit the manager has not noticed yet. See release.c.
	 */
	pg_atomic_uint64 next_run_at;

	ConditionVariable ticked;	/* for clients that wait; see pull_wait.c */

	/* When the manager last looked because something was announced. */
	pg_atomic_uint64 looked_at;

	/*
	 * There may be prepared transactions that emitted. Nobody announces what
	 * becomes of them. Set by whoever prepares one, once it can be seen;
	 * cleared by the manager, before it looks whether there are any.
	 */
	pg_atomic_uint32 prepared;

	pg_atomic_uint32 pending;
	pg_atomic_uint32 asleep;
	pg_atomic_uint64 dirty[CQRS_TOPIC_WORDS];
} CqrsDatabaseSlot;

typedef enum CqrsWorkerState
{
	CQRS_WORKER_FREE,			/* nobody's slot */
	CQRS_WORKER_FAILED,			/* nobody's, but its manager has yet to note
								 * that */
	CQRS_WORKER_STARTING,
	CQRS_WORKER_DELIVERING,
	CQRS_WORKER_IDLE
} CqrsWorkerState;

/* Who waits for a worker, if anybody does. */
typedef enum CqrsContention
{
	CQRS_CONTENDED_NOT,
	CQRS_CONTENDED_WITHIN,		/* in the database that has all of them */
	CQRS_CONTENDED_ACROSS		/* another one, too */
}			CqrsContention;

/*
 * A process that delivers, for one owner of subscriptions in one database.
 * The lock protects it all. Times are steady ones (see clock.c).
 *
 * The manager asks by changing request; the worker answers by setting served
 * to the request that it is done with.
 */
typedef struct CqrsWorkerSlot
{
	CqrsWorkerState state;
	Oid			dboid;
	Oid			owner;
	bool		broker;			/* serves one cursor only, of a broker, or one
								 * worker of a consumer */
	bool		consumer;		/* the latter */
	pid_t		pid;			/* 0: not attached yet */
	Latch	   *latch;
	TimestampTz started_at;
	bool		stop;			/* asked to exit */

	/* What its database's manager asks for; 0: it came before the manager. */
	int32		subscription_id;
	int32		partition;
	uint64		request;
	int64		wanted_look;	/* deliver what the manager saw in that look */
	TimestampTz retried_at;		/* the subscription's, as the manager knew it */
	bool		tell;			/* wake the manager when that is done */

	/* What became of that. */
	uint64		served;
	bool		noted;			/* the manager has seen the rest */
	bool		unfinished;		/* there is more, or it failed */
	int64		drained_look;	/* the look that was delivered */
	TimestampTz retry_at;		/* a parked event may be tried then, or 0 */
	TimestampTz failed_until;	/* nothing can be done before, or 0 */
	int			careful;		/* see worker.c; also set by the manager */

	/*
	 * The command that is being executed, if running is not 0; the worker's
	 * own. See running.c.
	 */
	pg_uuid_t	command_id;
	uint32		ncommands;		/* the last one's number */
	pg_atomic_uint32 running;	/* the number of this one */
	pg_atomic_uint32 to_end;	/* the number of one that is to end */
} CqrsWorkerSlot;

/* How many commands that are executed may be cancelled at the same time. */
#define CQRS_MAX_CANCELS	64

/* A command that is to end; dboid InvalidOid: none. The lock protects it. */
typedef struct CqrsCancel
{
	Oid			dboid;
	pg_uuid_t	command_id;
} CqrsCancel;

/* How many subscriptions with a rate may be busy at the same time. */
#define CQRS_MAX_BUCKETS	256

/* How much a subscription may be called; see bucket.c. The lock protects it. */
typedef struct CqrsBucket
{
	Oid			dboid;
	int32		subscription_id;
	int64		full_at;		/* a steady time, in nanoseconds */
} CqrsBucket;

/* How many keys may wait for tokens at the same time: so many in each set. */
#define CQRS_KEY_BUCKET_SETS	4096
#define CQRS_KEY_BUCKET_WAYS	16

/* The same for a key of a subscription. The lock protects it. */
typedef struct CqrsKeyBucket
{
	uint64		owner;			/* hash of database, subscription and key */
	int64		full_at;		/* as above */
} CqrsKeyBucket;

typedef struct CqrsShared
{
	LWLock	   *lock;
	pid_t		launcher_pid;
	Latch	   *launcher_latch;
	TimestampTz launcher_started_at;
	ConditionVariable exited;	/* a manager or worker exited */
	pg_atomic_uint32 contended; /* a subscription waits for a worker: one of
								 * CqrsContention */
	pg_atomic_uint64 looks;		/* of all managers; see manager.c */
	ConditionVariable delivered;	/* a worker moved cursors */
	pg_atomic_uint32 ncancels;	/* how many commands are to end: these */
	CqrsCancel	cancels[CQRS_MAX_CANCELS];
	CqrsBucket	buckets[CQRS_MAX_BUCKETS];
	CqrsKeyBucket key_buckets[CQRS_KEY_BUCKET_SETS][CQRS_KEY_BUCKET_WAYS];
	bool		crashed;		/* a process crashed since the postmaster
								 * started */
	bool		exhausted;		/* no background worker was available for a
								 * manager */
	CqrsClock	clock;			/* has a lock of its own */
	int			ndatabases;
	int			nused;			/* how many slots were ever used */
	int			nmanagers;		/* how many may run at the same time */
	int			nworkers;
	CqrsDatabaseSlot *databases;
	CqrsWorkerSlot *workers;
} CqrsShared;

/* NULL if not preloaded. */
extern CqrsShared *cqrs_shared;

extern void cqrs_shmem_request(void);
extern void cqrs_shmem_startup(void);
extern void cqrs_require_preloaded(void);
extern bool cqrs_shmem_lower_next_run_at(CqrsDatabaseSlot *slot,
										 TimestampTz run_at);
extern void cqrs_topic_set_add(CqrsTopicSet *topics, int32 topic_id);
extern bool cqrs_topic_set_has(const CqrsTopicSet *topics, int32 topic_id);
extern void cqrs_shmem_take_dirty(CqrsDatabaseSlot *slot, CqrsTopicSet *topics);
extern void cqrs_shmem_wake_all_managers(void);
extern void cqrs_shmem_wake_launcher(void);

#endif							/* CQRS_SHMEM_H */
