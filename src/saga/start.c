/*-------------------------------------------------------------------------
 *
 * start.c
 *	  Starting sagas.
 *
 * A saga is started by rows in the caller's transaction: its anchor, its first entry, and
 * what wakes it. So there is one if and only if that commits.
 *
 * Keys
 *
 * A key is unique among the sagas of its name and role that are kept, also when they are
 * over: a message that is delivered again after the end must not have it all done
 * again. Whoever starts one with a key has a lock on it until the end of his
 * transaction, and sees what others have committed, whatever his snapshot is.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/inval.h"

#include "extension/catalog.h"
#include "mediator/context.h"
#include "registry/payload.h"
#include "registry/registry.h"
#include "saga/awaited.h"
#include "saga/run.h"
#include "saga/start.h"
#include "shared/clock.h"

/* The most bytes of a key. */
#define MOST_KEY_BYTES	1024

static Datum start(FunctionCallInfo fcinfo);
static void check_functions(CqrsSagaDefinition *definition, Datum state);
static Datum result(FunctionCallInfo fcinfo, const pg_uuid_t *saga_id,
					bool started);

PG_FUNCTION_INFO_V1(cqrs_start_saga);

/*
 * cqrs_start_saga(saga_name, payload, unique_key, restart)
 */
Datum
cqrs_start_saga(PG_FUNCTION_ARGS)
{
	volatile Datum started = (Datum) 0;

	cqrs_require_writable("cqrs_start_saga()");
	cqrs_saga_definitions_hold();
	PG_TRY();
	{
		started = start(fcinfo);
	}
	PG_FINALLY();
	{
		cqrs_saga_definitions_release();
	}
	PG_END_TRY();
	return started;
}

static Datum
start(FunctionCallInfo fcinfo)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "saga");
	NullableDatum unique_key = {.isnull = PG_ARGISNULL(2)};
	bool		restart = cqrs_flag_arg(fcinfo, 3);
	NullableDatum none = {.isnull = true};
	CqrsSagaDefinition *definition;
	CqrsSubscription *queue;
	pg_uuid_t	saga_id;
	Datum		state;

	AcceptInvalidationMessages();
	definition = cqrs_saga_definition_current(name);
	if (definition == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CQRS_NOT_REGISTERED),
				 errmsg("saga \"%s\" is not registered", name),
				 errhint("Register it with cqrs_register_saga().")));
	queue = cqrs_registry_saga_subscription(GetUserId());
	if (queue == NULL || queue->ntopics == 0)
		ereport(ERROR,
				(errcode(ERRCODE_CQRS_NOT_REGISTERED),
				 errmsg("role \"%s\" has no queue of sagas",
						GetUserNameFromId(GetUserId(), true)),
				 errhint("Create it with cqrs_create_saga_queue().")));
	if (PG_ARGISNULL(1))
		state = DirectFunctionCall1(jsonb_in, CStringGetDatum("{}"));
	else
	{
		cqrs_payload_check_object(PG_GETARG_JSONB_P(1), "saga", name);
		state = JsonbPGetDatum(PG_GETARG_JSONB_P(1));
	}
	check_functions(definition, state);
	cqrs_saga_router_require(definition, GetUserId());

	if (!unique_key.isnull)
	{
		int32		topic_id = queue->topics[0]->topic_id;
		CqrsSaga   *newest = NULL;
		ListCell   *lc;

		unique_key.value = PointerGetDatum(PG_GETARG_TEXT_P(2));
		cqrs_saga_lock_key(topic_id, name, PG_GETARG_TEXT_P(2));
		CommandCounterIncrement();
		foreach(lc, cqrs_saga_find_by_key(topic_id, name, unique_key.value))
		{
			CqrsSaga   *other = lfirst(lc);
			CqrsSaga	under_way;

			if (cqrs_saga_find(&other->saga_id, &under_way))
				return result(fcinfo, &other->saga_id, false);
			if (newest == NULL || other->started_at > newest->started_at)
				newest = other;
		}
		if (newest != NULL && !restart)
			return result(fcinfo, &newest->saga_id, false);
	}
	cqrs_context_new_id(GetCurrentTimestamp(), &saga_id);
	cqrs_saga_start(definition, queue->topics[0], &saga_id, state, unique_key,
					cqrs_traceparent[0] != '\0' ? cqrs_context_headers(none) : none);
	return result(fcinfo, &saga_id, true);
}

/*
 * Have a saga begin, as one of the role whose topic this is. The headers are those of
 * what causes it.
 */
void
cqrs_saga_start(CqrsSagaDefinition *definition, const CqrsTopic *topic,
				const pg_uuid_t *saga_id, Datum state,
				NullableDatum unique_key, NullableDatum headers)
{
	CqrsSagaRun run = {.definition = definition,.topic = topic};

	run.headers = headers;
	if (!headers.isnull)
		run.headers = cqrs_saga_headers(saga_id, headers);
	run.saga.saga_id = *saga_id;
	run.saga.name = definition->name;
	run.saga.version = definition->version;
	run.saga.topic_id = topic->topic_id;
	run.saga.started_at = cqrs_wall_now();
	cqrs_saga_begin(&run, state, unique_key);
}

/*
 * Does a key have a length that it may have? NULL is none.
 */
bool
cqrs_saga_key_is_valid(NullableDatum unique_key)
{
	int			length = unique_key.isnull ? 0 :
	VARSIZE_ANY_EXHDR(DatumGetTextPP(unique_key.value));

	return length > 0 && length <= MOST_KEY_BYTES;
}

/*
 * Keep others from starting a saga with this key, until the end of the transaction.
 * Raises 22023 for a key that cannot be.
 */
void
cqrs_saga_lock_key(int32 topic_id, const char *saga_name, text *unique_key)
{
	int			length = VARSIZE_ANY_EXHDR(unique_key);
	uint64		hash;

	if (length == 0 || length > MOST_KEY_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unique_key of saga \"%s\" has %d bytes", saga_name,
						length),
				 errhint("Keys have 1 to %d bytes.", MOST_KEY_BYTES)));
	hash = hash_bytes_extended((unsigned char *) VARDATA_ANY(unique_key),
							   length,
							   hash_bytes_extended((const unsigned char *) saga_name,
												   strlen(saga_name), topic_id));
	(void) cqrs_object_lock(CQRS_REL_SAGA, (int32) hash,
							(uint16) (hash >> 32), ExclusiveLock, true);
}

/*
 * See that the user may execute all that the saga may have executed, and that its first
 * step takes the state. Raises 42883, 42501, and what payload.c does.
 */
static void
check_functions(CqrsSagaDefinition *definition, Datum state)
{
	int			i;

	for (i = 0; i < definition->nsteps; i++)
	{
		CqrsSagaStep *step = &definition->steps[i];

		if (step->kind == CQRS_SAGA_STEP)
		{
			cqrs_handler_check(&step->handler, "step", step->name);
			if (step->handler.fallback != NULL)
				cqrs_handler_check(&step->handler.fallback->handler, "step",
								   step->name);
		}
		if (step->has_compensation)
			cqrs_handler_check(&step->compensation, "step", step->name);
		if (step->has_fallback_compensation)
			cqrs_handler_check(&step->fallback_compensation, "step",
							   step->name);
	}
	if (definition->nsteps > 0 && definition->steps[0].kind == CQRS_SAGA_STEP &&
		definition->steps[0].handler.argtype != JSONBOID)
		(void) cqrs_payload_to_composite(DatumGetJsonbP(state),
										 definition->steps[0].handler.argtype,
										 "saga", definition->name);
}

static Datum
result(FunctionCallInfo fcinfo, const pg_uuid_t *saga_id, bool started)
{
	TupleDesc	desc;
	Datum		values[2];
	bool		nulls[2] = {0};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE ||
		desc->natts != lengthof(values))
		elog(ERROR, "unexpected result type");
	values[0] = UUIDPGetDatum(saga_id);
	values[1] = BoolGetDatum(started);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}
