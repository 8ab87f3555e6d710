/*-------------------------------------------------------------------------
 *
 * definition.h
 *	  What a saga does: its steps.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_SAGA_DEFINITION_H
#define CQRS_SAGA_DEFINITION_H

#include "base/sqlstate.h"
#include "registry/handler.h"
#include "utils/jsonb.h"

typedef enum CqrsSagaStepKind
{
	CQRS_SAGA_STEP,				/* a function */
	CQRS_SAGA_AWAIT,			/* an event, or a signal */
	CQRS_SAGA_SLEEP,
	CQRS_SAGA_PARALLEL,			/* the steps behind it, side by side */
	CQRS_SAGA_SUB_SAGA			/* another saga */
} CqrsSagaStepKind;

/* Times are in milliseconds; 0: no limit. */
typedef struct CqrsSagaStep
{
	char	   *name;
	CqrsSagaStepKind kind;
	int			parent;			/* the parallel step that it is part of, or -1 */
	int			nchildren;		/* of a parallel step: the next so many */

	/* Of a function. */
	CqrsHandler handler;		/* with its fallback */
	bool		pivot;
	int			max_attempts;	/* 0: without end */
	int64		retry_delay;
	int64		max_retry_delay;
	int64		timeout;
	int			nfinal;
	CqrsSqlstate *final;		/* errors after which it is not tried again */

	/* What undoes it; of another saga, too. */
	bool		has_compensation;
	CqrsHandler compensation;
	bool		has_fallback_compensation;
	CqrsHandler fallback_compensation;

	/* Of one that waits. */
	char	   *topic;			/* NULL: signals only */
	char	   *event_name;		/* also that of a signal */
	Datum		interval;		/* how long; 0: as long as it takes */
	char	   *timeout_step;	/* the step to go on with then; NULL: it
								 * failed */
	int			on_timeout;		/* its number, or -1 */

	char	   *saga_name;		/* of another saga */
} CqrsSagaStep;

typedef struct CqrsSagaDefinition
{
	char	   *name;
	int32		version;
	bool		is_current;
	char	   *on_topic;		/* NULL: no event starts it */
	char	   *on_event;
	char	   *starter;
	JsonbContainer *owners;
	int			nsteps;
	CqrsSagaStep *steps;
} CqrsSagaDefinition;

/* The kinds as they are written in table cqrs.saga_definition. */
extern const char *const cqrs_saga_step_kinds[];

extern CqrsSagaDefinition *cqrs_saga_definition(const char *name,
												int32 version);
extern CqrsSagaDefinition *cqrs_saga_definition_current(const char *name);
extern CqrsSagaDefinition *cqrs_saga_definition_parse(const char *name,
													  Datum steps,
													  Datum owners);
extern List *cqrs_saga_definitions(void);
extern int	cqrs_saga_find_step(const CqrsSagaDefinition *definition,
								const char *name);
extern int	cqrs_saga_step_after(const CqrsSagaDefinition *definition,
								 int step);
extern void cqrs_saga_definitions_hold(void);
extern void cqrs_saga_definitions_release(void);

#endif							/* CQRS_SAGA_DEFINITION_H */
