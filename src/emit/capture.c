/*-------------------------------------------------------------------------
 *
 * capture.c
 *	  Change capture: a trigger function that turns the changes of a table
 *	  into events, in the transaction that makes them.
 *
 * What an event holds depends on the payload type of its event type:
 *
 * jsonb: an envelope, {"op", "schema", "table", "old", "new"}. There is one
 * for each change, under the key of the new row, or if there is none, of the
 * old one.
 *
 * The table's row type: the new row itself, under its key. A row that is
 * deleted, or that gets another key, leaves a tombstone under its old key. The
 * last event of a key is to be the state of the row with that key, so the
 * tombstones of a statement come before its rows. A row trigger knows only one
 * row, and cannot see to that: a statement that hands the key of one row to
 * another needs a statement trigger.
 *
 * A row trigger of a partitioned table is fired with the partition that the
 * row is in. Names and row type are those of the table that the trigger was
 * created on: partitions may come and go, and no consumer need know.
 *
 * Transition tables have the rows of an UPDATE in the same order. Only if a
 * row was moved to another partition and a trigger there kept it out is there
 * an old row without a new one. Since it cannot be told which one, rows are
 * not paired then: all the old ones come first, then the new ones.
 *
 * Memory
 *
 * What is found out about the trigger is kept in its FmgrInfo, which lives as
 * long as the query (for deferred triggers, until the commit), while the table
 * is locked. The event type is looked up, and the privilege checked, each
 * time.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/tuptable.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/tuplestore.h"

#include "emit/emit.h"
#include "extension/catalog.h"
#include "mediator/dispatch.h"
#include "mediator/event_type.h"
#include "registry/payload.h"
#include "registry/registry.h"

/* Which rows an envelope has: an index of Capture.envelopes. */
#define ENVELOPE_OLD	1
#define ENVELOPE_NEW	2
#define ENVELOPES		4

/* What is known about a trigger. */
typedef struct Capture
{
	Datum		event_name;
	Datum		schema_name;	/* of the table with the trigger */
	Datum		table_name;
	bool		state_transfer; /* payloads are rows, not envelopes */
	int			nkeys;
	AttrNumber *key_columns;
	FmgrInfo   *key_outputs;
	FmgrInfo	to_jsonb;		/* of rows, or of envelopes */
	TupleDesc	envelopes[ENVELOPES];	/* NULL: not made yet */
	MemoryContext context;		/* where all of this is */

	/* Of this call. Without an emitter, events are written one by one. */
	CqrsEventType *event_type;
	CqrsEmitter *emitter;
} Capture;

/* A transition table being read, or none. */
typedef struct Rows
{
	Tuplestorestate *store;
	int			read_pointer;
	int64		count;
	TupleTableSlot *slot;
} Rows;

/* One change; each of the rows is NULL where there is none. */
typedef void (*RowCallback) (Capture *capture, const char *op,
							 TupleTableSlot *old_row,
							 TupleTableSlot *new_row);

static void check_trigger(const TriggerData *trigdata);
static Capture *get_capture(FunctionCallInfo fcinfo, CqrsEventType *event_type);
static Oid	trigger_table(const TriggerData *trigdata);
static void find_key_columns(Capture *capture, const TriggerData *trigdata);
static void check_row_type(CqrsEventType *event_type, Oid relid);
static void check_state_transfer(const Capture *capture,
								 const TriggerData *trigdata);
static const char *operation(const TriggerData *trigdata);
static void capture_row(Capture *capture, const TriggerData *trigdata);
static void capture_statement(Capture *capture, const TriggerData *trigdata);
static void for_each_row(Capture *capture, const char *op, Rows *old_rows,
						 Rows *new_rows, RowCallback callback);
static void rows_begin(Rows *rows, Tuplestorestate *store, TupleDesc desc);
static void rows_rewind(Rows *rows);
static TupleTableSlot *rows_next(Rows *rows);
static void rows_end(Rows *rows);
static void emit_envelope(Capture *capture, const char *op,
						  TupleTableSlot *old_row, TupleTableSlot *new_row);
static void emit_tombstone(Capture *capture, const char *op,
						   TupleTableSlot *old_row, TupleTableSlot *new_row);
static void emit_state(Capture *capture, const char *op,
					   TupleTableSlot *old_row, TupleTableSlot *new_row);
static char *row_key(Capture *capture, TupleTableSlot *row);
static bool same_key(const char *a, const char *b);
static Datum form_envelope(Capture *capture, const char *op,
						   TupleTableSlot *old_row, TupleTableSlot *new_row);
static TupleDesc envelope_desc(Capture *capture, TupleTableSlot *old_row,
							   TupleTableSlot *new_row);
static void emit(Capture *capture, const char *key, NullableDatum payload);
static void error_callback(void *arg);

PG_FUNCTION_INFO_V1(cqrs_emit_trigger);

/*
 * cqrs_emit_trigger(event_name [, key column ...]), a trigger function
 */
Datum
cqrs_emit_trigger(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	CqrsEventType *event_type;
	Capture    *capture;
	ErrorContextCallback errcallback;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"cqrs_emit_trigger\" was not called by trigger manager")));
	check_trigger(trigdata);
	cqrs_require_writable("cqrs_emit_trigger()");

	/* Whoever changes the table need not know that it is captured. */
	errcallback.callback = error_callback;
	errcallback.arg = trigdata;
	errcallback.previous = error_context_stack;
	error_context_stack = &errcallback;
	event_type = cqrs_event_type_get(trigdata->tg_trigger->tgargs[0]);
	cqrs_emit_require(event_type);
	capture = get_capture(fcinfo, event_type);
	if (capture->state_transfer)
		check_state_transfer(capture, trigdata);
	capture->event_type = event_type;
	capture->emitter = NULL;

	if (TRIGGER_FIRED_FOR_STATEMENT(trigdata->tg_event) &&
		!TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event))
		capture_statement(capture, trigdata);
	else
		capture_row(capture, trigdata);
	if (event_type->handlers != NULL)
		cqrs_dispatch_events();
	error_context_stack = errcallback.previous;
	return PointerGetDatum(NULL);
}

/*
 * Raise 39P01 for a trigger of a form that cannot capture changes, 22023 for
 * one without arguments.
 */
static void
check_trigger(const TriggerData *trigdata)
{
	Trigger    *trigger = trigdata->tg_trigger;
	char	   *relname = RelationGetRelationName(trigdata->tg_relation);

	/* What a BEFORE trigger sees may still not happen. */
	if (!TRIGGER_FIRED_AFTER(trigdata->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" for relation \"%s\" is not an AFTER trigger",
						trigger->tgname, relname),
				 errhint("Create it with AFTER; cqrs_emit_trigger() emits what has been done.")));
	if (TRIGGER_FIRED_FOR_STATEMENT(trigdata->tg_event) &&
		!TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event) &&
		trigdata->tg_oldtable == NULL && trigdata->tg_newtable == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" for relation \"%s\" has no transition table",
						trigger->tgname, relname),
				 errhint("Create it with REFERENCING OLD TABLE AS ... NEW TABLE AS ..., or FOR EACH ROW.")));
	if (trigger->tgnargs == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("trigger \"%s\" for relation \"%s\" does not say which event to emit",
						trigger->tgname, relname),
				 errhint("Create it with EXECUTE FUNCTION cqrs_emit_trigger('event name', 'key column', ...).")));
}

/*
 * Get what is known about the trigger, found out at its first call.
 */
static Capture *
get_capture(FunctionCallInfo fcinfo, CqrsEventType *event_type)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	Capture    *capture = fcinfo->flinfo->fn_extra;
	MemoryContext oldcontext;
	Oid			relid;

	if (capture != NULL)
		return capture;

	oldcontext = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);
	capture = palloc0(sizeof(Capture));
	capture->context = CurrentMemoryContext;
	capture->event_name = CStringGetTextDatum(event_type->name);

	relid = trigger_table(trigdata);
	capture->schema_name =
		CStringGetTextDatum(get_namespace_name(get_rel_namespace(relid)));
	capture->table_name = CStringGetTextDatum(get_rel_name(relid));
	find_key_columns(capture, trigdata);

	capture->state_transfer = event_type->payload_type != JSONBOID;
	if (capture->state_transfer)
	{
		check_row_type(event_type, relid);
		cqrs_payload_init_to_jsonb(&capture->to_jsonb,
								   trigdata->tg_relation->rd_rel->reltype);
	}
	else
		cqrs_payload_init_to_jsonb(&capture->to_jsonb, RECORDOID);

	MemoryContextSwitchTo(oldcontext);
	fcinfo->flinfo->fn_extra = capture;
	return capture;
}

/*
 * The table that the trigger was created on: the one it is fired for, or a
 * partitioned table above it.
 */
static Oid
trigger_table(const TriggerData *trigdata)
{
	Oid			relid = RelationGetRelid(trigdata->tg_relation);
	Oid			trigger = trigdata->tg_trigger->tgoid;
	Relation	pg_trigger;

	if (!trigdata->tg_relation->rd_rel->relispartition)
		return relid;

	pg_trigger = table_open(TriggerRelationId, AccessShareLock);
	while (OidIsValid(trigger))
	{
		ScanKeyData key;
		SysScanDesc scan;
		HeapTuple	tuple;
		Form_pg_trigger form;

		ScanKeyInit(&key, Anum_pg_trigger_oid, BTEqualStrategyNumber, F_OIDEQ,
					ObjectIdGetDatum(trigger));
		scan = systable_beginscan(pg_trigger, TriggerOidIndexId, true, NULL, 1,
								  &key);
		tuple = systable_getnext(scan);
		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "could not find tuple for trigger %u", trigger);
		form = (Form_pg_trigger) GETSTRUCT(tuple);
		relid = form->tgrelid;
		trigger = form->tgparentid;
		systable_endscan(scan);
	}
	table_close(pg_trigger, AccessShareLock);
	return relid;
}

/*
 * Find the columns that the trigger's further arguments name. Raises 42703 if
 * there is no such column, 0A000 if it has no value in a trigger.
 */
static void
find_key_columns(Capture *capture, const TriggerData *trigdata)
{
	Trigger    *trigger = trigdata->tg_trigger;
	TupleDesc	desc = RelationGetDescr(trigdata->tg_relation);
	int			i;

	capture->nkeys = trigger->tgnargs - 1;
	capture->key_columns = palloc(sizeof(AttrNumber) * (capture->nkeys + 1));
	capture->key_outputs = palloc(sizeof(FmgrInfo) * (capture->nkeys + 1));
	for (i = 0; i < capture->nkeys; i++)
	{
		const char *name = trigger->tgargs[i + 1];
		Form_pg_attribute column = NULL;
		Oid			output;
		bool		is_varlena;
		int			j;

		for (j = 0; j < desc->natts && column == NULL; j++)
			if (!TupleDescAttr(desc, j)->attisdropped &&
				namestrcmp(&TupleDescAttr(desc, j)->attname, name) == 0)
				column = TupleDescAttr(desc, j);
		if (column == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of table \"%s\" does not exist",
							name, TextDatumGetCString(capture->table_name)),
					 errdetail("Trigger \"%s\" has it as a key column.",
							   trigger->tgname),
					 errhint("What follows the event name in the arguments of cqrs_emit_trigger() are names of columns, in the case in which they are stored.")));
		if (CQRS_ATTRIBUTE_IS_VIRTUAL(column))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("column \"%s\" of table \"%s\" cannot be a key column",
							name, TextDatumGetCString(capture->table_name)),
					 errdetail("It is a virtual generated column, which has no value in a trigger.")));
		capture->key_columns[i] = column->attnum;
		getTypeOutputInfo(column->atttypid, &output, &is_varlena);
		fmgr_info(output, &capture->key_outputs[i]);
	}
}

/*
 * Raise 42804 unless the event's payload type is this table's row type; 42704 if
 * it is gone.
 */
static void
check_row_type(CqrsEventType *event_type, Oid relid)
{
	if (event_type->payload_type == get_rel_type_id(relid))
		return;
	cqrs_event_type_require_payload(event_type);
	ereport(ERROR,
			(errcode(ERRCODE_DATATYPE_MISMATCH),
			 errmsg("payload of event \"%s\" is not a row of table \"%s\"",
					event_type->name, get_rel_name(relid)),
			 errdetail("The payload type is %s.",
					   cqrs_type_name(event_type->payload_type)),
			 errhint("Register an event with payload type %s for the rows themselves, or jsonb for envelopes with the old and the new row.",
					 cqrs_type_name(get_rel_type_id(relid)))));
}

/*
 * Refuse what events with the new row alone cannot tell: raises 0A000 for
 * TRUNCATE, 22023 for a DELETE without a key, and 39P01 for an UPDATE without
 * a transition table that it needs.
 */
static void
check_state_transfer(const Capture *capture, const TriggerData *trigdata)
{
	TriggerEvent event = trigdata->tg_event;
	char	   *relname = RelationGetRelationName(trigdata->tg_relation);
	const char *missing = NULL;

	if (TRIGGER_FIRED_BY_TRUNCATE(event))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("event \"%s\" cannot tell that table \"%s\" was truncated",
						trigdata->tg_trigger->tgargs[0], relname),
				 errdetail("Its payload is a row, and TRUNCATE does not say which rows there were."),
				 errhint("Use DELETE, or an event with payload type jsonb.")));
	if (TRIGGER_FIRED_BY_DELETE(event) && capture->nkeys == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("event \"%s\" cannot tell which row of table \"%s\" was deleted",
						trigdata->tg_trigger->tgargs[0], relname),
				 errdetail("Of a deleted row the event has only the key, and trigger \"%s\" names no key columns.",
						   trigdata->tg_trigger->tgname),
				 errhint("Name them after the event in the arguments of cqrs_emit_trigger().")));
	if (TRIGGER_FIRED_FOR_STATEMENT(event) && TRIGGER_FIRED_BY_UPDATE(event))
	{
		if (trigdata->tg_newtable == NULL)
			missing = "NEW";
		else if (trigdata->tg_oldtable == NULL && capture->nkeys > 0)
			missing = "OLD";
	}
	if (missing != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" for relation \"%s\" has no %s transition table",
						trigdata->tg_trigger->tgname, relname, missing),
				 errdetail("Event \"%s\" has the new row, and a tombstone for a key that was changed.",
						   trigdata->tg_trigger->tgargs[0]),
				 errhint("Create the trigger with REFERENCING OLD TABLE AS ... NEW TABLE AS ....")));
}

/*
 * The name in an envelope for what fired the trigger.
 */
static const char *
operation(const TriggerData *trigdata)
{
	if (TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
		return "insert";
	if (TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event))
		return "update";
	if (TRIGGER_FIRED_BY_DELETE(trigdata->tg_event))
		return "delete";
	return "truncate";
}

/*
 * Capture the change of one row, or TRUNCATE.
 */
static void
capture_row(Capture *capture, const TriggerData *trigdata)
{
	const char *op = operation(trigdata);
	TupleTableSlot *old_row = NULL;
	TupleTableSlot *new_row = NULL;

	if (TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
		new_row = trigdata->tg_trigslot;
	else if (!TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event))
		old_row = trigdata->tg_trigslot;
	if (TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event))
		new_row = trigdata->tg_newslot;

	if (capture->state_transfer)
	{
		emit_tombstone(capture, op, old_row, new_row);
		emit_state(capture, op, old_row, new_row);
	}
	else
		emit_envelope(capture, op, old_row, new_row);
}

static void
capture_statement(Capture *capture, const TriggerData *trigdata)
{
	TupleDesc	desc = RelationGetDescr(trigdata->tg_relation);
	const char *op = operation(trigdata);
	Rows		none = {0};
	Rows		old_rows;
	Rows		new_rows;

	rows_begin(&old_rows, trigdata->tg_oldtable, desc);
	rows_begin(&new_rows, trigdata->tg_newtable, desc);
	if (old_rows.count > 0 || new_rows.count > 0)
	{
		capture->emitter = cqrs_emitter_begin(capture->event_type,
											  capture->event_type->topic,
											  capture->event_name);
		if (capture->state_transfer)
		{
			/*
			 * A row may get a key that another one gives up: no tombstone of
			 * the key may come after its new state.
			 */
			for_each_row(capture, op, &old_rows, &new_rows, emit_tombstone);
			for_each_row(capture, op, &none, &new_rows, emit_state);
		}
		else
			for_each_row(capture, op, &old_rows, &new_rows, emit_envelope);
		cqrs_emitter_end(capture->emitter);
	}
	rows_end(&old_rows);
	rows_end(&new_rows);
}

/*
 * Call callback for each pair of rows or, if there are not as many old ones as
 * new ones, for each of the old rows, then for each of the new ones.
 */
static void
for_each_row(Capture *capture, const char *op, Rows *old_rows, Rows *new_rows,
			 RowCallback callback)
{
	bool		paired = old_rows->count == new_rows->count;
	MemoryContext per_row;

	rows_rewind(old_rows);
	rows_rewind(new_rows);
	per_row = AllocSetContextCreate(CurrentMemoryContext, "cqrs capture",
									ALLOCSET_DEFAULT_SIZES);
	for (;;)
	{
		/* Not in per_row: a slot's tuple must outlive the reset. */
		TupleTableSlot *old_row = rows_next(old_rows);
		TupleTableSlot *new_row = NULL;
		MemoryContext oldcontext;

		if (old_row == NULL || paired)
			new_row = rows_next(new_rows);
		if (old_row == NULL && new_row == NULL)
			break;
		oldcontext = MemoryContextSwitchTo(per_row);
		callback(capture, op, old_row, new_row);
		MemoryContextSwitchTo(oldcontext);
		MemoryContextReset(per_row);
	}
	MemoryContextDelete(per_row);
}

/*
 * Begin to read a transition table; store is NULL if it has no rows. Others
 * may read it too, so we use a read pointer of our own.
 */
static void
rows_begin(Rows *rows, Tuplestorestate *store, TupleDesc desc)
{
	memset(rows, 0, sizeof(Rows));
	if (store == NULL)
		return;
	rows->store = store;
	rows->count = tuplestore_tuple_count(store);
	rows->slot = MakeSingleTupleTableSlot(desc, &TTSOpsMinimalTuple);
	rows->read_pointer = tuplestore_alloc_read_pointer(store,
													   EXEC_FLAG_REWIND);
}

static void
rows_rewind(Rows *rows)
{
	if (rows->store == NULL)
		return;
	tuplestore_select_read_pointer(rows->store, rows->read_pointer);
	tuplestore_rescan(rows->store);
}

/*
 * The next row, valid until the one after it is read, or NULL.
 */
static TupleTableSlot *
rows_next(Rows *rows)
{
	if (rows->store == NULL ||
		!tuplestore_gettupleslot(rows->store, true, false, rows->slot))
		return NULL;
	return rows->slot;
}

static void
rows_end(Rows *rows)
{
	if (rows->store != NULL)
		ExecDropSingleTupleTableSlot(rows->slot);
}

/*
 * Emit {"op", "schema", "table", "old", "new"}.
 */
static void
emit_envelope(Capture *capture, const char *op, TupleTableSlot *old_row,
			  TupleTableSlot *new_row)
{
	TupleTableSlot *key_row = new_row != NULL ? new_row : old_row;
	NullableDatum payload = {.isnull = false};

	payload.value = form_envelope(capture, op, old_row, new_row);
	emit(capture, key_row != NULL ? row_key(capture, key_row) : NULL, payload);
}

static void
emit_tombstone(Capture *capture, const char *op, TupleTableSlot *old_row,
			   TupleTableSlot *new_row)
{
	NullableDatum payload = {.isnull = true};
	char	   *key;

	if (old_row == NULL)
		return;
	key = row_key(capture, old_row);
	if (new_row == NULL || !same_key(key, row_key(capture, new_row)))
		emit(capture, key, payload);
}

static void
emit_state(Capture *capture, const char *op, TupleTableSlot *old_row,
		   TupleTableSlot *new_row)
{
	NullableDatum payload = {.isnull = false};

	if (new_row == NULL)
		return;
	payload.value = FunctionCall1(&capture->to_jsonb,
								  ExecFetchSlotHeapTupleDatum(new_row));
	emit(capture, row_key(capture, new_row), payload);
}

/*
 * The key of a row: one column's text, or a JSON array of several columns'
 * texts. NULL if there are no key columns, or if all of them are NULL.
 */
static char *
row_key(Capture *capture, TupleTableSlot *row)
{
	StringInfoData key;
	bool		found = false;
	int			i;

	initStringInfo(&key);
	for (i = 0; i < capture->nkeys; i++)
	{
		bool		isnull;
		Datum		value = slot_getattr(row, capture->key_columns[i], &isnull);
		char	   *text = NULL;

		if (!isnull)
			text = OutputFunctionCall(&capture->key_outputs[i], value);

		if (capture->nkeys == 1)
			return text;

		appendStringInfoChar(&key, i == 0 ? '[' : ',');
		if (text !=NULL)
			escape_json(&key, text);
		else
			appendStringInfoString(&key, "null");
		found |= text !=NULL;
	}
	if (!found)
		return NULL;
	appendStringInfoChar(&key, ']');
	return key.data;
}

static bool
same_key(const char *a, const char *b)
{
	if (a == NULL || b == NULL)
		return a == b;
	return strcmp(a, b) == 0;
}

/*
 * An envelope, which is to_jsonb() of a row with its members as columns.
 */
static Datum
form_envelope(Capture *capture, const char *op, TupleTableSlot *old_row,
			  TupleTableSlot *new_row)
{
	TupleDesc	desc = envelope_desc(capture, old_row, new_row);
	Datum		values[5];
	bool		nulls[5] = {0};
	int			n = 0;

	values[n++] = CStringGetTextDatum(op);
	values[n++] = capture->schema_name;
	values[n++] = capture->table_name;
	if (old_row != NULL)
		values[n++] = ExecFetchSlotHeapTupleDatum(old_row);
	if (new_row != NULL)
		values[n++] = ExecFetchSlotHeapTupleDatum(new_row);
	Assert(n == desc->natts);
	return FunctionCall1(&capture->to_jsonb,
						 HeapTupleGetDatum(heap_form_tuple(desc, values,
														   nulls)));
}

/*
 * The row type of an envelope with these rows, made when it is first needed.
 */
static TupleDesc
envelope_desc(Capture *capture, TupleTableSlot *old_row,
			  TupleTableSlot *new_row)
{
	int			which = (old_row != NULL ? ENVELOPE_OLD : 0) |
	(new_row != NULL ? ENVELOPE_NEW : 0);
	TupleDesc	desc = capture->envelopes[which];
	MemoryContext oldcontext;
	AttrNumber	n = 0;

	if (desc != NULL)
		return desc;

	oldcontext = MemoryContextSwitchTo(capture->context);
	desc = CreateTemplateTupleDesc(3 + (old_row != NULL) + (new_row != NULL));
	TupleDescInitEntry(desc, ++n, "op", TEXTOID, -1, 0);
	TupleDescInitEntry(desc, ++n, "schema", TEXTOID, -1, 0);
	TupleDescInitEntry(desc, ++n, "table", TEXTOID, -1, 0);
	if (old_row != NULL)
		TupleDescInitEntry(desc, ++n, "old",
						   old_row->tts_tupleDescriptor->tdtypeid, -1, 0);
	if (new_row != NULL)
		TupleDescInitEntry(desc, ++n, "new",
						   new_row->tts_tupleDescriptor->tdtypeid, -1, 0);
	TupleDescFinalize(desc);
	capture->envelopes[which] = BlessTupleDesc(desc);
	MemoryContextSwitchTo(oldcontext);
	return desc;
}

static void
emit(Capture *capture, const char *key, NullableDatum payload)
{
	NullableDatum key_datum = {.isnull = key == NULL};

	if (key != NULL)
		key_datum.value = CStringGetTextDatum(key);
	if (capture->emitter != NULL)
		cqrs_emitter_add(capture->emitter, key_datum, payload);
	else
		cqrs_emit_event(capture->event_type, capture->event_name, key_datum,
						payload);
}

static void
error_callback(void *arg)
{
	const TriggerData *trigdata = (const TriggerData *) arg;

	errcontext("emitting event \"%s\" by trigger \"%s\" for table \"%s\"",
			   trigdata->tg_trigger->tgargs[0],
			   trigdata->tg_trigger->tgname,
			   RelationGetRelationName(trigdata->tg_relation));
}
