/*-------------------------------------------------------------------------
 *
 * breaker_status.c
 *	  Circuit breakers as people see them.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "utils/builtins.h"

#include "extension/catalog.h"
#include "mediator/breaker.h"
#include "registry/registry.h"
#include "shared/clock.h"

static const char *state_name(CqrsBreakerState state);

PG_FUNCTION_INFO_V1(cqrs_breaker_state);

/*
 * cqrs.breaker_state(handler): of its fallback's breaker; NULL if it has none.
 */
Datum
cqrs_breaker_state(PG_FUNCTION_ARGS)
{
	CqrsFallback *fallback;
	int			failures;
	TimestampTz opened_at;
	TimestampTz shown;
	Datum		values[4];
	bool		nulls[4] = {0};

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
	return cqrs_row(fcinfo, values, nulls);
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
