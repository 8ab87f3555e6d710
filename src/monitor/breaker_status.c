/*-------------------------------------------------------------------------
 *
 * breaker_status.c
 *	  Circuit breakers as people see them.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/htup_details.h"
#include "funcapi.h"
#include "utils/builtins.h"

#include "mediator/breaker.h"
#include "registry/registry.h"
#include "shared/clock.h"

static const char *state_name(CqrsBreakerState state);

PG_FUNCTION_INFO_V1(cqrs_breaker_state);

/*
 * cqrs.breaker_state(handler): of its fallback; NULL if it has none.
 */
Datum
cqrs_breaker_state(PG_FUNCTION_ARGS)
{
	CqrsFallback *fallback;
	int			failures;
	TimestampTz opened_at;
	TimestampTz shown;
	TupleDesc	tupdesc;
	Datum		values[4];
	bool		nulls[4] = {0};

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	fallback = cqrs_registry_fallback(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	if (fallback == NULL)
		PG_RETURN_NULL();

	values[0] = CStringGetTextDatum(state_name(cqrs_breaker_look(&fallback->breaker,
																 &failures,
																 &opened_at)));
	values[1] = Int32GetDatum(failures);
	shown = cqrs_steady_to_wall(opened_at);
	values[2] = TimestampTzGetDatum(shown);
	values[3] = TimestampTzGetDatum(TimestampTzPlusMilliseconds(shown,
																fallback->breaker.reset_after));
	nulls[2] = nulls[3] = opened_at == 0;
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(tupdesc),
													  values, nulls)));
}

static const char *
state_name(CqrsBreakerState state)
{
	switch (state)
	{
		case CQRS_BREAKER_OPEN:
			return "open";
		case CQRS_BREAKER_HALF_OPEN:
			return "half_open";
		default:
			return "closed";
	}
}
