/*-------------------------------------------------------------------------
 *
 * catalog.h
 *	  The extension's own relations: where they are, and how they are locked.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_CATALOG_H
#define CQRS_CATALOG_H

#include "storage/lock.h"
#include "utils/rel.h"
#include "utils/snapshot.h"

typedef enum CqrsRelation
{
	CQRS_REL_TOPIC,
	CQRS_REL_EVENT_TYPE,
	CQRS_REL_EVENT_HANDLER,
	CQRS_REL_COMMAND,
	CQRS_REL_MIDDLEWARE,
	CQRS_REL_FALLBACK,
	CQRS_REL_SUBSCRIPTION,
	CQRS_REL_SUBSCRIPTION_TOPIC,
	CQRS_REL_CONSUMER,
	CQRS_REL_CONSUMER_POSITION,
	CQRS_REL_CONSUMER_POSITION_PKEY,
	CQRS_REL_CONSUMER_DEAD_LETTER,
	CQRS_REL_CONSUMER_DEAD_LETTER_PKEY,
	CQRS_REL_IDENTITY,
	CQRS_REL_TICK,
	CQRS_REL_TICK_PKEY,
	CQRS_REL_CURSOR,
	CQRS_REL_CURSOR_PKEY,
	CQRS_REL_FAILURE,
	CQRS_REL_FAILURE_PKEY,
	CQRS_REL_RETRY,
	CQRS_REL_RETRY_PKEY,
	CQRS_REL_RETRY_LANE,
	CQRS_REL_RETRY_DUE,
	CQRS_REL_DEAD_LETTER,
	CQRS_REL_DEAD_LETTER_PKEY,
	CQRS_REL_SCHEDULED_COMMAND,
	CQRS_REL_SCHEDULED_COMMAND_PKEY,
	CQRS_REL_SCHEDULED_COMMAND_RUN_AT,
	CQRS_REL_SCHEDULE,
	CQRS_REL_IDEMPOTENCY_0,		/* a segment's number may be added */
	CQRS_REL_IDEMPOTENCY_1,
	CQRS_REL_IDEMPOTENCY_2,
	CQRS_REL_IDEMPOTENCY_0_PKEY,
	CQRS_REL_IDEMPOTENCY_1_PKEY,
	CQRS_REL_IDEMPOTENCY_2_PKEY,
	CQRS_REL_IDEMPOTENCY_0_STORED_AT,
	CQRS_REL_IDEMPOTENCY_1_STORED_AT,
	CQRS_REL_IDEMPOTENCY_2_STORED_AT,
	CQRS_REL_SAGA_DEFINITION,
	CQRS_REL_SAGA_DEFINITION_PKEY,
	CQRS_REL_SAGA,
	CQRS_REL_SAGA_PKEY,
	CQRS_REL_SAGA_ENTRY_0,		/* a segment's number may be added */
	CQRS_REL_SAGA_ENTRY_1,
	CQRS_REL_SAGA_ENTRY_2,
	CQRS_REL_SAGA_ENTRY_0_PKEY,
	CQRS_REL_SAGA_ENTRY_1_PKEY,
	CQRS_REL_SAGA_ENTRY_2_PKEY,
	CQRS_REL_SAGA_ENTRY_0_KEY,
	CQRS_REL_SAGA_ENTRY_1_KEY,
	CQRS_REL_SAGA_ENTRY_2_KEY,
	CQRS_REL_SAGA_ENTRY_0_ENDED_AT,
	CQRS_REL_SAGA_ENTRY_1_ENDED_AT,
	CQRS_REL_SAGA_ENTRY_2_ENDED_AT,
	CQRS_REL_MESSAGE_ID_0,		/* a segment's number may be added */
	CQRS_REL_MESSAGE_ID_1,
	CQRS_REL_MESSAGE_ID_2,
	CQRS_REL_MESSAGE_ID_0_PKEY,
	CQRS_REL_MESSAGE_ID_1_PKEY,
	CQRS_REL_MESSAGE_ID_2_PKEY,
	CQRS_REL_MESSAGE_ID_0_SOURCE,
	CQRS_REL_MESSAGE_ID_1_SOURCE,
	CQRS_REL_MESSAGE_ID_2_SOURCE,
	CQRS_REL_MESSAGE_TURN,
	CQRS_REL_MESSAGE_SOURCE,
	CQRS_REL_MESSAGE_SOURCE_TIME,
	CQRS_REL_POSITION_SEQ,
	CQRS_REL_TICK_SEQ
} CqrsRelation;

#define CQRS_RELATIONS	(CQRS_REL_TICK_SEQ + 1)

extern Oid	cqrs_relation_oid(CqrsRelation relation);
extern Relation cqrs_index_open(Relation table, CqrsRelation index,
								LOCKMODE lockmode);
extern int64 cqrs_sequence_last(CqrsRelation sequence, bool *is_called);
extern Oid	cqrs_extension_lock(void);
extern Oid	cqrs_extension_owner(void);
extern void cqrs_catalog_reset(void);
extern bool cqrs_catalog_is_marker(Oid relid);
extern void cqrs_catalog_invalidate_registry(void);

extern bool cqrs_type_is(Oid typid, const char *name);
extern bool cqrs_type_is_temporary(Oid typid);
extern char *cqrs_type_name(Oid typid);
extern bool cqrs_type_lock(Oid typid);
extern void cqrs_type_unlock(Oid typid);

extern void cqrs_object_tag(LOCKTAG *tag, CqrsRelation relation, int32 id,
							int32 part);
extern bool cqrs_object_lock(CqrsRelation relation, int32 id, int32 part,
							 LOCKMODE mode, bool wait);
extern void cqrs_object_unlock(CqrsRelation relation, int32 id, int32 part,
							   LOCKMODE mode);
extern bool cqrs_lock_holder(const LOCKTAG *tag, LOCKMODE mode, int *pid);
extern void cqrs_require_writable(const char *function);
extern void cqrs_commit_durably(void);
extern void cqrs_set_commit(int level);
extern void cqrs_flush(XLogRecPtr lsn);
extern void cqrs_flush_commit(TransactionId xid);
extern void cqrs_set_config(const char *name, const char *value,
							GucAction action);

extern void cqrs_name_check(const char *kind, const char *name);
extern char *cqrs_name_arg(FunctionCallInfo fcinfo, int argno,
						   const char *kind);
pg_noreturn extern void cqrs_nothing_to_remove(const char *message,
											   const char *view);
extern bool cqrs_flag_arg(FunctionCallInfo fcinfo, int argno);
extern void cqrs_arg_required(FunctionCallInfo fcinfo, int argno,
							  const char *argument, const char *kind,
							  const char *name);

/* Rows for a set-returning function. */
extern Datum cqrs_row(FunctionCallInfo fcinfo, Datum *values, bool *nulls);
extern Tuplestorestate *cqrs_srf_begin(FunctionCallInfo fcinfo,
									   TupleDesc *tupdesc);

#endif							/* CQRS_CATALOG_H */
