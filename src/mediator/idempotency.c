/*-------------------------------------------------------------------------
 *
 * idempotency.c
 *	  Commands that are handled once, however often they are sent: answers
 *	  kept by the sender's key.
 *
 * Protocol
 *
 * 1. The key is locked until the end of the transaction: a repeat of a command
 *	  that is not committed yet waits for it.
 * 2. The key is looked up among what is committed now, or written by this
 *	  transaction. If it is there, with the same command and payload, its
 *	  answer is returned. The transaction's snapshot is not used for this:
 *	  under REPEATABLE READ, it does not show what committed while we waited,
 *	  and the command would be handled twice.
 * 3. Otherwise the command is handled, and the answer is written, by the
 *	  transaction that did what the command says: one exists if and only if the
 *	  other does. A command that raised an error has left no answer.
 *
 * Each role has its own keys: nobody can read an answer with somebody else's
 * key, nor keep somebody else from using one. Commands do not: to use a key
 * for two commands is a mistake, and an error.
 *
 * A role is identified by its name and its OID. Both must match, so that its
 * keys end with it: another one may get the name, or the OID, but not both. In
 * restored rows, which column native tells, the OID is another cluster's, and
 * only the name counts. A role that is renamed leaves its keys behind.
 *
 * Answers of enqueued commands
 *
 * Who enqueued a command may ask for its answer by its id. That is kept here, too,
 * with the id as key, by the transaction that executed it; the request says that
 * it is one. Nobody else stores under this key at the same time, as who executes
 * a command has its cursor's lock: so there is no lock on the key, of which a batch
 * would need a thousand. All members of the role may read the answer.
 *
 * Storage
 *
 * Keys are in three tables, the segments, which are written in turn, each for
 * as long as keys are kept. A row is never updated or deleted; a segment is
 * truncated once all in it are older than that. So there is nothing to vacuum.
 * Every segment is searched: rows that were restored, or written before the
 * setting changed, may be in any of them.
 *
 * Locking
 *
 * The lock on a key is an object's: the first segment's OID and 48 bits of a hash
 * of the key. Keys with the same hash wait for each other without need. Keys
 * are locked in whatever order the commands are sent in, so there may be
 * deadlocks.
 *
 * A transaction that wrote to a segment has ROW EXCLUSIVE on it until its end.
 * Truncation never waits for that; see segment.c. Under ACCESS EXCLUSIVE, it
 * checks again whether all is old.
 *
 * Rows are read with SnapshotSelf. That is enough, since the last transaction
 * that had the lock on the key, or on the segment, has ended. With an MVCC
 * snapshot, serializable transactions would conflict that have nothing in
 * common but an index page.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "common/hashfn.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"
#include "utils/snapmgr.h"

#include "base/event_id.h"
#include "extension/admin.h"
#include "extension/row.h"
#include "log/segment.h"
#include "mediator/dispatch.h"
#include "mediator/idempotency.h"
#include "registry/handler.h"
#include "shared/clock.h"

/* The most bytes that a key may have. */
#define MAX_KEY_LENGTH	255

/* Columns of the tables. */
enum
{
	KEY_ROLE = 1,
	KEY_ROLE_NAME,
	KEY_TEXT,
	KEY_COMMAND_NAME,
	KEY_REQUEST,
	KEY_ANSWER,
	KEY_STORED_AT,
	KEY_NATIVE,
	KEY_COLUMNS = KEY_NATIVE
};

/* What is stored about a command. */
typedef struct StoredCommand
{
	char	   *command_name;
	bytea	   *request;
	Datum		answer;
	bool		answer_isnull;
	TimestampTz stored_at;
} StoredCommand;

/* The innermost key whose command is being handled in this backend. */
static CqrsIdempotencyKey *innermost = NULL;

static Datum handle(CqrsIdempotencyKey *key, CqrsDispatch *dispatch,
					bool *isnull);
static bool is_same(const CqrsIdempotencyKey *a, const CqrsIdempotencyKey *b);
static bytea * hash_request(CqrsIdempotencyUse use, const char *command_name,
							Jsonb *payload);
static void append_payload(StringInfo buf, Jsonb *payload);
static void append_scalar(StringInfo buf, const JsonbValue *value);
static bool find(const CqrsIdempotencyKey *key, StoredCommand *stored);
static bool find_answer_in_segment(text *key, int segment, Datum *answer,
								   bool *isnull, TransactionId *xmin);
static bool is_answer_for_user(const Datum *values);
static bool find_in_segment(const CqrsIdempotencyKey *key, int segment,
							StoredCommand *stored);
static bool is_of_role(const CqrsIdempotencyKey *key, const Datum *values);
static void check_same_request(const CqrsIdempotencyKey *key,
							   const StoredCommand *stored);
static int	current_segment(TimestampTz now);
static bool newest_is_old(int segment, TimestampTz *old_at);

/*
 * Lock the key of a command that the current user is about to send, until the
 * end of the transaction. Waits for whoever has the lock. The value must not
 * be toasted, and must live, like the struct, until the command is handled.
 *
 * Raises 25006 or 25000 where nothing can be written; 22023 for an empty key,
 * or one that is too long; 55006 if a command with this key is being handled
 * up the stack. function is its name in errors.
 */
void
cqrs_idempotency_lock(CqrsIdempotencyKey *key, text *value,
					  const char *function)
{
	int			length;
	uint64		hash;
	CqrsIdempotencyKey *outer;

	cqrs_require_writable(psprintf("%s with an idempotency key", function));
	key->outer = NULL;
	key->role = GetUserId();
	key->role_name = cstring_to_text(GetUserNameFromId(key->role, false));
	key->text = value;
	length = VARSIZE(key->text) - VARHDRSZ;
	if (length == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("idempotency key must not be empty")));
	if (length > MAX_KEY_LENGTH)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("idempotency key is too long"),
				 errdetail("It has %d bytes.", length),
				 errhint("Keys have at most %d bytes.", MAX_KEY_LENGTH)));

	/* The lock would not stop us, as it is our own. */
	for (outer = innermost; outer != NULL; outer = outer->outer)
		if (is_same(key, outer))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_IN_USE),
					 errmsg("idempotency key \"%s\" is in use",
							text_to_cstring(key->text)),
					 errdetail("A command with this key is being handled, and this one is part of it."),
					 errhint("Use another key for each command.")));

	hash = hash_bytes_extended((unsigned char *) VARDATA(key->text), length,
							   key->role);
	(void) cqrs_object_lock(CQRS_REL_IDEMPOTENCY_0, (int32) hash,
							(uint16) (hash >> 32), ExclusiveLock, true);
}

/*
 * Run a dispatch whose payload is jsonb, or return the answer that is stored
 * for it, in the current memory context. The key was locked before the command
 * was looked up, so that a handler that was replaced while we waited is not
 * called. Raises what cqrs_idempotency_find() and cqrs_dispatch_run() do.
 */
Datum
cqrs_idempotency_run(CqrsIdempotencyKey *key, CqrsDispatch *dispatch,
					 bool *isnull, bool *repeated)
{
	Datum		answer;

	*repeated = cqrs_idempotency_find(key, CQRS_KEY_SEND, dispatch->command,
									  dispatch->payload, &answer, isnull);
	if (*repeated)
		return answer;
	answer = handle(key, dispatch, isnull);
	cqrs_idempotency_store(key, answer, *isnull);
	return answer;
}

/*
 * Find what is stored for a key that is locked, in the current memory context.
 * Raises an error if the command's (first) handler cannot be called, and OB002
 * if the key was used for something else.
 */
bool
cqrs_idempotency_find(CqrsIdempotencyKey *key, CqrsIdempotencyUse use,
					  const CqrsCommand *command, Datum payload,
					  Datum *answer, bool *isnull)
{
	StoredCommand stored;

	cqrs_handler_check(&command->handlers[0],
					   cqrs_command_kind_name(command->kind), command->name);
	key->command_name = command->name;
	key->request = hash_request(use, command->name, DatumGetJsonbP(payload));
	if (!find(key, &stored))
		return false;
	check_same_request(key, &stored);
	*answer = stored.answer;
	*isnull = stored.answer_isnull;
	return true;
}

/*
 * Find the answer of an enqueued command, in the current memory context, and which
 * transaction wrote it; or, with NULL, whether there is one. Only those of the current
 * user's roles are found.
 */
bool
cqrs_answer_find(const pg_uuid_t *command_id, Datum *answer, bool *isnull,
				 TransactionId *xmin)
{
	char		id[CQRS_UUID_TEXT_LEN + 1];
	text	   *key = cstring_to_text(cqrs_uuid_text(command_id, id));
	int			current = current_segment(cqrs_wall_now());
	int			i;

	for (i = CQRS_SEGMENTS; i > 0; i--)
		if (find_answer_in_segment(key, (current + i) % CQRS_SEGMENTS, answer,
								   isnull, xmin))
			return true;
	return false;
}

/*
 * Keep the answer of an enqueued command, which the current user executed, and
 * for which none was found.
 */
void
cqrs_answer_store(const pg_uuid_t *command_id, const char *command_name,
				  Datum answer, bool isnull)
{
	char		id[CQRS_UUID_TEXT_LEN + 1];
	CqrsIdempotencyKey key = {.role = GetUserId()};

	key.role_name = cstring_to_text(GetUserNameFromId(key.role, false));
	key.text = cstring_to_text(cqrs_uuid_text(command_id, id));
	key.command_name = command_name;
	key.request = hash_request(CQRS_KEY_ANSWER, command_name, NULL);
	cqrs_idempotency_store(&key, answer, isnull);
}

/*
 * Truncate a segment if all in it is older than keys are kept, and that is
 * possible at once; the lock then stays until the end of the transaction.
 * *look_at gets when to look again, if it is still kept; *pid gets the process
 * that has it locked, or 0 for a prepared transaction, or if that is not
 * known.
 */
CqrsTableState
cqrs_idempotency_truncate(int segment, TimestampTz *look_at, int *pid)
{
	Oid			relid = cqrs_relation_oid(CQRS_REL_IDEMPOTENCY_0 + segment);
	CqrsTableState state = CQRS_TABLE_LOCKED;

	*pid = 0;
	if (!ConditionalLockRelationOid(relid, AccessShareLock))
		return state;
	if (!newest_is_old(segment, look_at))
		state = CQRS_TABLE_KEPT;
	else if (!cqrs_table_in_use(relid, pid) && cqrs_table_lock(relid))
	{
		/* All transactions that wrote to it have ended now. */
		if (newest_is_old(segment, look_at))
		{
			cqrs_admin_run(psprintf("TRUNCATE cqrs.idempotency_%d", segment), 0);
			state = CQRS_TABLE_TRUNCATED;
		}
		else
			state = CQRS_TABLE_KEPT;
	}
	UnlockRelationOid(relid, AccessShareLock);
	return state;
}

/*
 * Run the dispatch, with its key marked as in use.
 */
static Datum
handle(CqrsIdempotencyKey *key, CqrsDispatch *dispatch, bool *isnull)
{
	volatile Datum answer;

	key->outer = innermost;
	innermost = key;
	PG_TRY();
	{
		answer = cqrs_dispatch_run(dispatch, isnull);
	}
	PG_FINALLY();
	{
		innermost = key->outer;
	}
	PG_END_TRY();
	return answer;
}

static bool
is_same(const CqrsIdempotencyKey *a, const CqrsIdempotencyKey *b)
{
	return a->role == b->role &&
		VARSIZE(a->text) == VARSIZE(b->text) &&
		memcmp(VARDATA(a->text), VARDATA(b->text),
			   VARSIZE(a->text) - VARHDRSZ) == 0;
}

/*
 * The SHA-256 of what is asked for: what the key is used for, the command's
 * name, and the payload, in a form that is the same for payloads that are equal
 * as jsonb (1 and 1.0), and on every platform and version where a dump may be
 * restored. An answer's is without payload.
 */
static bytea *
hash_request(CqrsIdempotencyUse use, const char *command_name, Jsonb *payload)
{
	StringInfoData request;
	bytea	   *hash;

	initStringInfo(&request);
	appendStringInfoSpaces(&request, VARHDRSZ);
	appendStringInfoChar(&request, use);
	appendBinaryStringInfo(&request, command_name, strlen(command_name) + 1);
	if (payload != NULL)
		append_payload(&request, payload);
	SET_VARSIZE(request.data, request.len);
	hash = DatumGetByteaP(DirectFunctionCall1(sha256_bytea,
											  PointerGetDatum(request.data)));
	pfree(request.data);
	return hash;
}

static void
append_payload(StringInfo buf, Jsonb *payload)
{
	JsonbIterator *it = JsonbIteratorInit(&payload->root);
	JsonbIteratorToken token;
	JsonbValue	value;

	while ((token = JsonbIteratorNext(&it, &value, false)) != WJB_DONE)
	{
		appendStringInfoChar(buf, 'a' + token);
		if (token == WJB_KEY || token == WJB_VALUE || token == WJB_ELEM)
			append_scalar(buf, &value);
	}
}

/*
 * Append a value such that none is the beginning of another one.
 */
static void
append_scalar(StringInfo buf, const JsonbValue *value)
{
	switch (value->type)
	{
		case jbvNull:
			appendStringInfoChar(buf, 'n');
			break;
		case jbvBool:
			appendStringInfoChar(buf, value->val.boolean ? 't' : 'f');
			break;
		case jbvNumeric:
			appendStringInfo(buf, "%s;",
							 numeric_normalize(value->val.numeric));
			break;
		case jbvString:
			appendStringInfo(buf, "s%d:", value->val.string.len);
			appendBinaryStringInfo(buf, value->val.string.val,
								   value->val.string.len);
			break;
		default:
			elog(ERROR, "unexpected type of jsonb value: %d", value->type);
	}
}

/*
 * Find what is stored for a key, which is locked; in the current memory
 * context.
 */
static bool
find(const CqrsIdempotencyKey *key, StoredCommand *stored)
{
	int			current = current_segment(cqrs_wall_now());
	int			i;

	/* The newest segment first: most repeats follow soon. */
	for (i = CQRS_SEGMENTS; i > 0; i--)
		if (find_in_segment(key, (current + i) % CQRS_SEGMENTS, stored))
			return true;
	return false;
}

static bool
find_in_segment(const CqrsIdempotencyKey *key, int segment,
				StoredCommand *stored)
{
	CqrsScan	scan;
	ScanKeyData keys[2];
	Datum		values[KEY_COLUMNS];
	bool		nulls[KEY_COLUMNS];
	bool		found = false;

	ScanKeyInit(&keys[0], KEY_TEXT, BTEqualStrategyNumber, F_TEXTEQ,
				PointerGetDatum(key->text));
	ScanKeyInit(&keys[1], KEY_ROLE_NAME, BTEqualStrategyNumber, F_TEXTEQ,
				PointerGetDatum(key->role_name));
	cqrs_scan_begin(&scan, CQRS_REL_IDEMPOTENCY_0 + segment,
					CQRS_REL_IDEMPOTENCY_0_PKEY + segment, AccessShareLock,
					SnapshotSelf, ForwardScanDirection, 2, keys);
	while (!found && cqrs_scan_read(&scan, values, nulls))
	{
		if (!is_of_role(key, values))
			continue;
		found = true;
		stored->command_name =
			TextDatumGetCString(values[KEY_COMMAND_NAME - 1]);
		stored->request = DatumGetByteaPCopy(values[KEY_REQUEST - 1]);
		stored->answer_isnull = nulls[KEY_ANSWER - 1];
		stored->answer = (Datum) 0;
		if (!stored->answer_isnull)
			stored->answer =
				JsonbPGetDatum(DatumGetJsonbPCopy(values[KEY_ANSWER - 1]));
		stored->stored_at =
			DatumGetTimestampTz(values[KEY_STORED_AT - 1]);
	}
	cqrs_scan_end(&scan, AccessShareLock);
	return found;
}

static bool
find_answer_in_segment(text *key, int segment, Datum *answer, bool *isnull,
					   TransactionId *xmin)
{
	CqrsScan	scan;
	ScanKeyData scankey;
	Datum		values[KEY_COLUMNS];
	bool		nulls[KEY_COLUMNS];
	HeapTuple	row;
	bool		found = false;

	ScanKeyInit(&scankey, KEY_TEXT, BTEqualStrategyNumber, F_TEXTEQ,
				PointerGetDatum(key));
	cqrs_scan_begin(&scan, CQRS_REL_IDEMPOTENCY_0 + segment,
					CQRS_REL_IDEMPOTENCY_0_PKEY + segment, AccessShareLock,
					SnapshotSelf, ForwardScanDirection, 1, &scankey);
	while (!found && (row = cqrs_scan_read(&scan, values, nulls)) != NULL)
		found = is_answer_for_user(values);
	if (found && answer != NULL)
	{
		*xmin = HeapTupleHeaderGetXmin(row->t_data);
		*isnull = nulls[KEY_ANSWER - 1];
		*answer = *isnull ? (Datum) 0 :
			JsonbPGetDatum(DatumGetJsonbPCopy(values[KEY_ANSWER - 1]));
	}
	cqrs_scan_end(&scan, AccessShareLock);
	return found;
}

/*
 * Is a row an enqueued command's answer, and that of a role whose member the
 * current user is? The row's role has that name, and that OID if it is native.
 */
static bool
is_answer_for_user(const Datum *values)
{
	bytea	   *request = DatumGetByteaPP(values[KEY_REQUEST - 1]);
	bytea	   *expected = hash_request(CQRS_KEY_ANSWER,
										TextDatumGetCString(values[KEY_COMMAND_NAME - 1]),
										NULL);
	Oid			role = get_role_oid(TextDatumGetCString(values[KEY_ROLE_NAME - 1]),
									true);

	return VARSIZE_ANY_EXHDR(request) == VARSIZE_ANY_EXHDR(expected) &&
		memcmp(VARDATA_ANY(request), VARDATA_ANY(expected),
			   VARSIZE_ANY_EXHDR(expected)) == 0 &&
		OidIsValid(role) &&
		(!DatumGetBool(values[KEY_NATIVE - 1]) ||
		 DatumGetObjectId(values[KEY_ROLE - 1]) == role) &&
		has_privs_of_role(GetUserId(), role);
}

/*
 * Is a row with this role's name its own?
 */
static bool
is_of_role(const CqrsIdempotencyKey *key, const Datum *values)
{
	return !DatumGetBool(values[KEY_NATIVE - 1]) ||
		DatumGetObjectId(values[KEY_ROLE - 1]) == key->role;
}

/*
 * Raises OB002 unless what is stored is of the same request.
 */
static void
check_same_request(const CqrsIdempotencyKey *key, const StoredCommand *stored)
{
	bool		same_command = strcmp(stored->command_name,
									  key->command_name) == 0;

	if (same_command && VARSIZE(stored->request) == VARSIZE(key->request) &&
		memcmp(VARDATA(stored->request), VARDATA(key->request),
			   VARSIZE(key->request) - VARHDRSZ) == 0)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_CQRS_KEY_REUSED),
			 same_command ?
			 errmsg("idempotency key \"%s\" was used for another request of command \"%s\"",
					text_to_cstring(key->text), stored->command_name) :
			 errmsg("idempotency key \"%s\" was used for command \"%s\", not for \"%s\"",
					text_to_cstring(key->text), stored->command_name,
					key->command_name),
			 same_command ?
			 errdetail("The payload is another one, or it was sent then and is enqueued now, or the other way round.") : 0,
			 errhint("Use another key for each command, and repeat a command as it was.")));
}

/*
 * Store the answer under a key for which nothing was found. The lock on the
 * segment stays until the end of the transaction.
 */
void
cqrs_idempotency_store(const CqrsIdempotencyKey *key, Datum answer,
					   bool isnull)
{
	TimestampTz now = cqrs_wall_now();
	Datum		values[KEY_COLUMNS];
	bool		nulls[KEY_COLUMNS] = {0};

	values[KEY_ROLE - 1] = ObjectIdGetDatum(key->role);
	values[KEY_ROLE_NAME - 1] = PointerGetDatum(key->role_name);
	values[KEY_TEXT - 1] = PointerGetDatum(key->text);
	values[KEY_COMMAND_NAME - 1] =
		CStringGetTextDatum(key->command_name);
	values[KEY_REQUEST - 1] = PointerGetDatum(key->request);
	values[KEY_ANSWER - 1] = answer;
	nulls[KEY_ANSWER - 1] = isnull;
	values[KEY_STORED_AT - 1] = TimestampTzGetDatum(now);
	values[KEY_NATIVE - 1] = BoolGetDatum(true);

	cqrs_row_insert(CQRS_REL_IDEMPOTENCY_0 + current_segment(now), values, nulls);
}

static int
current_segment(TimestampTz now)
{
	uint64		turn = Max(cqrs_idempotency_retention, 1) * USECS_PER_SEC;

	/* Unsigned: a clock may be wrong by decades. */
	return (int) (((uint64) now / turn) % CQRS_SEGMENTS);
}

/*
 * Does a locked segment have rows, and are all visible ones older than keys are
 * kept? If not, *old_at gets when that may be the case.
 */
static bool
newest_is_old(int segment, TimestampTz *old_at)
{
	TimestampTz now = cqrs_wall_now();
	TimestampTz kept = cqrs_idempotency_retention * USECS_PER_SEC;
	CqrsScan	scan;
	HeapTuple	row;
	bool		empty;

	/* What is written from now on is kept until then. */
	*old_at = now + kept;
	cqrs_scan_begin(&scan, CQRS_REL_IDEMPOTENCY_0 + segment,
					CQRS_REL_IDEMPOTENCY_0_STORED_AT + segment, NoLock,
					SnapshotSelf, BackwardScanDirection, 0, NULL);
	empty = RelationGetNumberOfBlocks(scan.rel) == 0;
	if (!empty)
	{
		row = cqrs_scan_next(&scan);
		*old_at = row == NULL ? now : kept +
			DatumGetTimestampTz(cqrs_row_column(row, KEY_STORED_AT,
												RelationGetDescr(scan.rel)));
	}
	cqrs_scan_end(&scan, NoLock);
	return !empty && *old_at <= now;
}
