/*-------------------------------------------------------------------------
 *
 * entry.h
 *	  Sagas that are under way, and what happened to them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_SAGA_ENTRY_H
#define CQRS_SAGA_ENTRY_H

#include "utils/jsonb.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

/* Where a saga, or a parallel step of it, is. */
typedef enum CqrsSagaStatus
{
	CQRS_SAGA_RUNNING,			/* a step is to be run */
	CQRS_SAGA_RETRYING,			/* ... again, when it is due */
	CQRS_SAGA_WAITING,			/* for a message, or for ends of other things */
	CQRS_SAGA_SLEEPING,
	CQRS_SAGA_STUCK,			/* a function is missing */
	CQRS_SAGA_COMPENSATING,		/* a step is to be undone; maybe when it is
								 * due */
	CQRS_SAGA_FAILED,			/* a person is to decide */

	/* It is over. */
	CQRS_SAGA_COMPLETED,
	CQRS_SAGA_COMPENSATED,
	CQRS_SAGA_CANCELLED,
	CQRS_SAGA_STATUSES
} CqrsSagaStatus;

#define cqrs_saga_is_over(status) ((status) >= CQRS_SAGA_COMPLETED)

/* What happened. */
typedef enum CqrsSagaHappening
{
	CQRS_SAGA_STARTED,
	CQRS_SAGA_STEP_DONE,
	CQRS_SAGA_STEP_FAILED,		/* an attempt */
	CQRS_SAGA_STEP_UNDONE,
	CQRS_SAGA_UNDOING_FAILED,	/* an attempt */
	CQRS_SAGA_STEP_MISSING,		/* its function is */
	CQRS_SAGA_STEP_SKIPPED,
	CQRS_SAGA_RECEIVED,
	CQRS_SAGA_TIMED_OUT,
	CQRS_SAGA_SLEPT,
	CQRS_SAGA_FORKED,			/* its parallel steps, or another saga, began */
	CQRS_SAGA_BRANCH_ENDED,
	CQRS_SAGA_JOINED,
	CQRS_SAGA_CANCEL_ASKED,
	CQRS_SAGA_RETRY_ASKED,
	CQRS_SAGA_MOVED,
	CQRS_SAGA_SIGNALLED,		/* a message, which may be taken later */
	CQRS_SAGA_HAPPENINGS
} CqrsSagaHappening;

/* Flags of an entry; see table cqrs.saga_entry_0. */
#define CQRS_SAGA_IS_CANCELLED	1
#define CQRS_SAGA_IS_PAST_PIVOT	2
#define CQRS_SAGA_IS_BACKWARD	4
#define CQRS_SAGA_BY_FALLBACK	8

/* Branches that are no parallel steps. */
#define CQRS_SAGA_TRUNK		0
#define CQRS_SAGA_MAILBOX	(-1)

/* A saga that is under way. */
typedef struct CqrsSaga
{
	pg_uuid_t	saga_id;
	char	   *name;
	int32		version;
	int32		topic_id;
	int			segment;
	bool		has_parent;
	pg_uuid_t	parent_id;
	TimestampTz started_at;
	bool		is_ours;		/* this transaction has written its entry */
} CqrsSaga;

/* What happened to it; a step or a message that there is not is -1 or NULL. */
typedef struct CqrsSagaEntry
{
	int32		branch;
	int32		seq;			/* 0: there is no entry */
	TimestampTz at;
	CqrsSagaHappening event;
	int			step;
	CqrsSagaStatus status;
	int			next;
	int			attempt;
	TimestampTz due;			/* DT_NOEND: never */
	int			flags;
	int			ndone;
	int32	   *done;
	int			nends;
	int32	   *ends;
	bool		has_message;
	pg_uuid_t	message_id;
	char	   *name;
	char	   *sqlstate;
	char	   *error;
	NullableDatum state;
	int32		state_seq;
	Datum		near_state;		/* of the entry state_seq, if that was read,
								 * too; else 0 */

	TransactionId xmin;			/* who wrote it, if that was read */

	/* Of an entry that begins the saga, in this table. */
	bool		begins;
	NullableDatum unique_key;
} CqrsSagaEntry;

extern const char *const cqrs_saga_statuses[];

extern bool cqrs_saga_find(const pg_uuid_t *saga_id, CqrsSaga *saga);
extern void cqrs_saga_insert(const CqrsSaga *saga);
extern bool cqrs_saga_delete(const pg_uuid_t *saga_id);
extern void cqrs_saga_entry_insert(const CqrsSaga *saga,
								   const CqrsSagaEntry *entry);
extern bool cqrs_saga_entry_newest(const CqrsSaga *saga, int32 branch,
								   CqrsSagaEntry *entry);
extern bool cqrs_saga_entry_get(const CqrsSaga *saga, int32 branch, int32 seq,
								CqrsSagaEntry *entry);
extern List *cqrs_saga_entries(const CqrsSaga *saga, int32 branch);
extern void cqrs_saga_entry_delete(const CqrsSaga *saga, int32 branch,
								   int32 seq);
extern bool cqrs_saga_find_kept(const pg_uuid_t *saga_id, CqrsSaga *saga,
								NullableDatum *unique_key);
extern List *cqrs_saga_find_by_key(int32 topic_id, const char *saga_name,
								   Datum unique_key);
extern int	cqrs_saga_current_segment(void);
extern bool cqrs_saga_newest_end(int segment, TimestampTz *ended_at,
								 bool *empty);

#endif							/* CQRS_SAGA_ENTRY_H */
