/*-------------------------------------------------------------------------
 *
 * broker_transaction.c
 *	  Events delivered to a broker exactly once, in its transactions.
 *
 * The cursor is here, the events are there, and no commit spans both. So it is
 * written down in both places which transaction was the last: here in the
 * cursor's row, and there in a record that the broker commits with the
 * transaction. A record proves what was sent; it is not a place to go on from,
 * since positions and snapshots of a server that was taken back mean other events.
 *
 * Protocol
 *
 * 1. A cursor has a producer, a random id that names the transactions to the broker;
 *	  a connection with that name ends all others. It is drawn in the transaction
 *	  from which on the cursor is delivered exactly once: a server that has lost it
 *	  has lost the subscription, too. Restored cursors, and those of a copied
 *	  database, draw their own, when they are adopted.
 * 2. A transaction has an id of its own, and the events of a part of one window.
 *	  Once it is known which, the intent is written to the cursor's row: the
 *	  transaction's id, and where the cursor is to move. Only when that is durable,
 *	  and all events are confirmed, the broker is asked to commit. Then the cursor
 *	  moves, and the intent becomes what was sent; the row that says so may have
 *	  the next intent.
 * 3. What is rejected ends its transaction: that is aborted, the event parked
 *	  ahead of the cursor, and what the cursor has not passed is sent again. So a
 *	  transaction is all that the intent says, or nothing; and no event of a lane
 *	  is sent after one that was rejected. A parked event has a transaction of its own.
 * 4. After connecting, the broker's record is compared with the cursor's row:
 *	  - it is what was sent last: if there is an intent, it came to nothing;
 *	  - it is the intent: move the cursor as it says. If the cursor was moved
 *		elsewhere since, by cqrs_seek(), the intent says nowhere;
 *	  - there is none, and there was none before: the intent came to nothing. But
 *		if any was sent, Kafka has forgotten it: nobody knows what became of the
 *		intent, nor whether another server has sent more since. So that this is
 *		rare, a record that is old is written anew, with no events;
 *	  - it is another one: this server has lost what was committed here, in a
 *		failover or a restore; or another server, a copy or the one that was
 *		primary before, sends with the same name. If the record says that what was
 *		sent before is what is known here, and the events that it is about are
 *		what comes next here, they were sent. If not, we diverged.
 * 5. Who has diverged, or does not know, stops, until a person says what is to be;
 *	  also if the record is forgotten meanwhile, or is another one.
 *	  Nothing is passed by, or sent twice, unasked. With on_divergence 'resend',
 *	  the person has said so before; but of an old primary that sees the new one's
 *	  record nobody has said anything, nor if it was forgotten since.
 * 6. Before anything else, the record is looked at without ending others. If it is
 *	  unknown, and of a higher timeline, we are the old primary, and leave the new
 *	  one alone. So the first thing that a new primary does is to write a record.
 * 7. Comparing them claims the cursor: its row is written anew, so that no process
 *	  that had it before writes a row any more. Who finds it moved since he read it
 *	  before connecting may have read a record that is not the last, and connects anew.
 *
 * Failure
 *
 * A worker may end at each point: before the intent, nothing was committed; after it,
 * the record tells. An exchange that fails leaves the intent as it was. If the
 * connection is lost, what is in doubt stays so until the next one is made.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xlog.h"
#include "common/cryptohash.h"
#include "common/sha2.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#include "base/event_id.h"
#include "delivery/broker_sent.h"
#include "delivery/broker_transaction.h"
#include "extension/catalog.h"
#include "log/tick.h"
#include "retry/retry.h"
#include "shared/clock.h"
#include "shared/database.h"
#include "subscription/subscription.h"

/* How long a transaction takes events, in milliseconds. */
#define LONGEST_TRANSACTION	20000

/*
 * So many transactions in a row come to nothing, and no event is at fault: then
 * the broker is.
 */
#define MOST_FRUITLESS		25

/*
 * A cursor's first record, if it was written, is there for this long, in hours.
 */
#define LONGEST_DOUBT		6

/* When a record is written anew, in hours: before any broker forgets it. */
#define OLD_RECORD			24

/* What a record says; see write_record(). */
typedef struct Record
{
	bool		given;
	pg_uuid_t	id;
	bool		known;			/* it is one of ours, which has: */
	uint32		timeline;
	int64		tick_id;		/* the end of the window */
	int64		position;
	int			events;
	char		hash[2 * PG_SHA256_DIGEST_LENGTH + 1];
	CqrsTransactionId after;	/* what was sent before */
} Record;

static bool is(const CqrsTransactionId *known, const Record *record);
static bool is_same(const CqrsTransactionId *a, const CqrsTransactionId *b);
static bool is_doubtful(const CqrsSent *sent);
static TimestampTz drawn_at(const CqrsTransactionId *id);
static void look(CqrsBrokerTransaction *transaction);
static bool passes_over(const CqrsBrokerTransaction *transaction,
						const Record *record, const CqrsSent *sent);
static void stop(CqrsBrokerTransaction *transaction, const Record *record,
				 CqrsSent *sent);
static void explain(CqrsBrokerTransaction *transaction,
					const Record *record);
static bool prove(CqrsRelay *relay, const Record *record);
static void open_next(CqrsBrokerTransaction *transaction);
static void write_record(CqrsBrokerTransaction *transaction,
						 CqrsRelay *relay, const pg_uuid_t *ids, int n,
						 int64 position);
static void read_record(const char *text, Record *record);
static void hash_ids(const pg_uuid_t *ids, int n, char *text);
static void ask(CqrsBrokerTransaction *transaction, CqrsBrokerLink *link,
				CqrsLinkCall call);

/*
 * Begin for a new connection. Returns false if the cursor does not deliver, as it
 * is gone, or was restored.
 */
bool
cqrs_transaction_prepare(CqrsBrokerTransaction *transaction,
						 const CqrsSubscription *subscription, int partition)
{
	CqrsCursor	cursor;
	Snapshot	snapshot;
	bool		found;
	char		producer[CQRS_UUID_TEXT_LEN + 1];

	memset(transaction, 0, sizeof(*transaction));
	transaction->used = subscription->exactly_once;
	if (!transaction->used)
		return true;
	(void) cqrs_subscription_lock(subscription, partition, true);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	found = cqrs_cursor_read(subscription->subscription_id, partition,
							 snapshot, &cursor);
	UnregisterSnapshot(snapshot);
	if (!found || !cursor.native)
		return false;
	if (!cursor.sent.producer.given)
		elog(ERROR, "cursor %d of subscription \"%s\" has no producer",
			 partition, subscription->name);
	transaction->resends = subscription->resends;
	transaction->known = cursor.sent;
	transaction->seq = cursor.seq;
	transaction->timeline = GetWALInsertionTimeLine();
	transaction->most = CQRS_TRANSACTION_EVENTS;
	snprintf(transaction->id, sizeof(transaction->id), "cqrs_outbox-%s",
			 cqrs_uuid_text(&cursor.sent.producer.id, producer));
	return true;
}

/*
 * Make room, in the current memory context, which has to last as long as the
 * connection.
 */
void
cqrs_transaction_init(CqrsBrokerTransaction *transaction)
{
	if (transaction->used)
		transaction->ids = palloc(sizeof(pg_uuid_t) * CQRS_TRANSACTION_EVENTS);
}

/*
 * Take the link's answers; before what it reported, as that came first.
 */
void
cqrs_transaction_answers(CqrsBrokerTransaction *transaction,
						 CqrsBrokerLink *link)
{
	bool		committed;
	char		record[CQRS_BROKER_RECORD_SIZE];

	if (!transaction->asked || !cqrs_link_answer(link, &committed, record))
		return;
	transaction->asked = false;
	switch (transaction->phase)
	{
		case CQRS_TRANSACTION_LOOK:
			strlcpy(transaction->record, record, CQRS_BROKER_RECORD_SIZE);
			look(transaction);
			break;
		case CQRS_TRANSACTION_FENCE:
			transaction->phase = CQRS_TRANSACTION_READ;
			break;
		case CQRS_TRANSACTION_READ:
			strlcpy(transaction->record, record, CQRS_BROKER_RECORD_SIZE);
			transaction->phase = CQRS_TRANSACTION_CLAIM;
			break;
		case CQRS_TRANSACTION_COMMIT:
			transaction->phase = committed ? CQRS_TRANSACTION_COMMITTED :
				CQRS_TRANSACTION_ABORTED;
			break;
		default:
			Assert(transaction->phase == CQRS_TRANSACTION_ABORT);
			transaction->phase = CQRS_TRANSACTION_ABORTED;
			break;
	}
}

/*
 * After what the link reported was taken: forget what is confirmed, so that as much
 * more can be sent.
 */
void
cqrs_transaction_confirmed(CqrsBrokerTransaction *transaction,
						   CqrsBrokerEntries *entries)
{
	if (transaction->asked || entries->failed || entries->parked ||
		(transaction->phase != CQRS_TRANSACTION_OPEN &&
		 transaction->phase != CQRS_TRANSACTION_CLOSED))
		return;
	while (cqrs_broker_first_is_final(entries))
	{
		CqrsBrokerEntry *entry = dlist_head_element(CqrsBrokerEntry, node,
													&entries->list);

		Assert(entry->state == CQRS_ENTRY_CONFIRMED);
		if (transaction->nevents == 0)
			transaction->began = cqrs_steady_now();
		Assert(transaction->nevents < CQRS_TRANSACTION_EVENTS);
		transaction->ids[transaction->nevents++] =
			*DatumGetUUIDP(entry->event.event_id);
		transaction->position = entry->event.position;
		cqrs_broker_entry_forget(entries, entry);
	}
}

/*
 * After what may be sent was sent: have the link do what comes next.
 */
void
cqrs_transaction_advance(CqrsBrokerTransaction *transaction,
						 CqrsBrokerEntries *entries)
{
	if (transaction->asked)
		return;
	switch (transaction->phase)
	{
		case CQRS_TRANSACTION_LOOK:
		case CQRS_TRANSACTION_READ:
			ask(transaction, entries->link, CQRS_LINK_READ);
			break;
		case CQRS_TRANSACTION_FENCE:
			ask(transaction, entries->link, CQRS_LINK_FENCE);
			break;
		case CQRS_TRANSACTION_OPEN:
		case CQRS_TRANSACTION_CLOSED:
			if (entries->failed)
			{
				transaction->phase = CQRS_TRANSACTION_ABORT;
				ask(transaction, entries->link, CQRS_LINK_ABORT);
			}
			else if (transaction->phase == CQRS_TRANSACTION_CLOSED &&
					 entries->nread == 0 && entries->nsent == 0)
			{
				transaction->phase = CQRS_TRANSACTION_COMMIT;
				ask(transaction, entries->link, CQRS_LINK_COMMIT);
			}
			break;
		default:
			break;
	}
}

/*
 * Has it taken events for so long that it has to be ended?
 */
bool
cqrs_transaction_is_late(const CqrsBrokerTransaction *transaction)
{
	return transaction->nevents > 0 &&
		TimestampDifferenceExceeds(transaction->began, cqrs_steady_now(),
								   LONGEST_TRANSACTION);
}

/*
 * Is the connection still that of the cursor's producer? Another cursor may have
 * taken its place.
 */
bool
cqrs_transaction_is_of(const CqrsBrokerTransaction *transaction,
					   const CqrsCursor *cursor)
{
	return !transaction->used ||
		(cursor->sent.producer.given &&
		 memcmp(&cursor->sent.producer.id, &transaction->known.producer.id,
				UUID_LEN) == 0);
}

/*
 * Is the cursor still as it was before we connected? If not, whoever moved it may have
 * fenced us, and committed behind the record that we read. Once it is claimed, that
 * does not matter.
 */
bool
cqrs_transaction_may_claim(const CqrsBrokerTransaction *transaction,
						   const CqrsCursor *cursor)
{
	return !transaction->used || transaction->phase > CQRS_TRANSACTION_CLAIM ||
		cursor->seq == transaction->seq;
}

/*
 * See what the record means for the cursor: that may move, or delivery stops. The
 * caller appends the cursor.
 */
void
cqrs_transaction_claim(CqrsBrokerTransaction *transaction, CqrsRelay *relay)
{
	CqrsCursor *cursor = &relay->cursor;
	CqrsSent   *sent = &cursor->sent;
	Record		record;
	bool		known;

	read_record(transaction->record, &record);
	transaction->timeline = GetWALInsertionTimeLine();
	transaction->resends = relay->subscription->resends;
	if (transaction->taken_over)
		known = false;
	else if (!record.given)
		known = !sent->sent.given && !is_doubtful(sent) &&
			!sent->diverged.given;
	else if (is(&sent->intent, &record))
	{
		cqrs_sent_apply(cursor);
		known = true;
	}
	else
		known = is(&sent->sent, &record) ||
			(!sent->diverged.given &&
			 record.timeline <= transaction->timeline &&
			 prove(relay, &record));
	if (!known && !passes_over(transaction, &record, sent))
	{
		stop(transaction, &record, sent);
		return;
	}
	if (!known)
	{
		explain(transaction, &record);
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("subscription \"%s\" sends what may have been sent before",
						relay->subscription->name),
				 errdetail_internal("%s", transaction->reason),
				 errhint("Its on_divergence is \"resend\".")));
		transaction->reason[0] = '\0';
		sent->resent_at = cqrs_wall_now();
	}
	sent->sent.given = record.given;
	sent->sent.id = record.id;
	sent->intent.given = sent->diverged.given = false;
	open_next(transaction);

	/* Who comes back from an older timeline is to find this one. */
	if (record.given && record.timeline != transaction->timeline)
	{
		sent->intent_position = 0;
		write_record(transaction, relay, NULL, 0, 0);
	}
}

/*
 * The transaction has all that it is to have: what is confirmed, and the entries,
 * up to this position, which may be behind the last of them. Write the intent, and
 * what the record is to say. The caller appends the cursor.
 */
void
cqrs_transaction_close(CqrsBrokerTransaction *transaction,
					   CqrsBrokerEntries *entries, CqrsRelay *relay,
					   int64 position)
{
	CqrsSent   *sent = &relay->cursor.sent;
	int			n = transaction->nevents;
	dlist_iter	iter;

	Assert(transaction->phase == CQRS_TRANSACTION_OPEN);
	Assert(n + entries->nentries <= CQRS_TRANSACTION_EVENTS);
	dlist_foreach(iter, &entries->list)
	{
		CqrsBrokerEntry *entry = dlist_container(CqrsBrokerEntry, node,
												 iter.cur);

		transaction->ids[n++] = *DatumGetUUIDP(entry->event.event_id);
	}
	sent->intent_position = position;
	sent->intent_events = n;
	sent->intent_parked = entries->parked;
	write_record(transaction, relay, transaction->ids, n, position);
}

/*
 * If there is nothing else to do, and the record is old, have it written anew.
 * Returns whether it is. The caller appends the cursor.
 */
bool
cqrs_transaction_refresh(CqrsBrokerTransaction *transaction,
						 CqrsRelay *relay)
{
	CqrsSent   *sent = &relay->cursor.sent;

	if (transaction->phase != CQRS_TRANSACTION_OPEN || !sent->sent.given ||
		drawn_at(&sent->sent) + OLD_RECORD * USECS_PER_HOUR > cqrs_wall_now())
		return false;
	sent->intent_position = 0;
	write_record(transaction, relay, NULL, 0, 0);
	return true;
}

/*
 * When that is to be, if it is before *at, or that is 0.
 */
void
cqrs_transaction_wants(const CqrsCursor *cursor, volatile TimestampTz *at)
{
	TimestampTz old;

	if (!cursor->sent.sent.given)
		return;
	old = drawn_at(&cursor->sent.sent) + OLD_RECORD * USECS_PER_HOUR;
	if (*at == 0 || old < *at)
		*at = old;
}

/*
 * The broker has committed: do what the intent says. Returns whether there were any
 * events. The caller appends the cursor.
 */
bool
cqrs_transaction_settle(CqrsBrokerTransaction *transaction,
						CqrsCursor *cursor)
{
	CqrsSent   *sent = &cursor->sent;
	bool		any = sent->intent_position != 0;

	Assert(sent->intent.given);
	cqrs_sent_apply(cursor);
	sent->sent = sent->intent;
	sent->intent.given = false;
	transaction->most = Min(2 * transaction->most, CQRS_TRANSACTION_EVENTS);
	if (any)
		transaction->fruitless = 0;
	open_next(transaction);
	return any;
}

/*
 * The transaction was aborted. Without a fault found in any event, it may have been
 * too large.
 */
void
cqrs_transaction_forget(CqrsBrokerTransaction *transaction,
						CqrsCursor *cursor, bool found_fault)
{
	cursor->sent.intent.given = false;
	transaction->most = Max(transaction->most / 2, 1);
	transaction->fruitless = found_fault ? 0 : transaction->fruitless + 1;
	open_next(transaction);
	if (transaction->fruitless > MOST_FRUITLESS)
	{
		snprintf(transaction->reason, sizeof(transaction->reason),
				 "the broker aborts transactions, and no event is at fault");
		transaction->phase = CQRS_TRANSACTION_STOPPED;
	}
}

static bool
is(const CqrsTransactionId *known, const Record *record)
{
	return known->given &&
		memcmp(&known->id, &record->id, UUID_LEN) == 0;
}

static bool
is_same(const CqrsTransactionId *a, const CqrsTransactionId *b)
{
	return a->given == b->given &&
		(!a->given || memcmp(&a->id, &b->id, UUID_LEN) == 0);
}

/*
 * There is no record, and none was known. May the intent have been committed all the
 * same, and its record be forgotten by now?
 */
static bool
is_doubtful(const CqrsSent *sent)
{
	return sent->intent.given && sent->intent_position != 0 &&
		drawn_at(&sent->intent) + LONGEST_DOUBT * USECS_PER_HOUR < cqrs_wall_now();
}

/*
 * An id begins with when it was drawn. (That of a record that is not ours does not,
 * but is as good as any: it is replaced by one of ours.)
 */
static TimestampTz
drawn_at(const CqrsTransactionId *id)
{
	uint64		milliseconds;

	memcpy(&milliseconds, &id->id, sizeof(milliseconds));
	milliseconds = pg_ntoh64(milliseconds) >> 16;
	return ((int64) milliseconds -
			(int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) *
			SECS_PER_DAY * 1000) * 1000;
}

/*
 * The record was looked at, before others are fenced: are they to be?
 */
static void
look(CqrsBrokerTransaction *transaction)
{
	const CqrsSent *known = &transaction->known;
	Record		record;

	read_record(transaction->record, &record);
	transaction->phase = CQRS_TRANSACTION_FENCE;
	if (known->diverged.given &&
		(!record.given || is(&known->diverged, &record)) &&
		!passes_over(transaction, &record, known))
		stop(transaction, &record, NULL);
	else if (record.given && !is(&known->sent, &record) &&
			 !is(&known->intent, &record) &&
			 record.timeline > transaction->timeline)
	{
		transaction->taken_over = true;
		transaction->phase = CQRS_TRANSACTION_CLAIM;
	}
}

/*
 * The record is not what is known. Has a person said that what is known here is to be
 * sent all the same? Not what another server goes on with, or may have gone on with
 * while its record was forgotten.
 */
static bool
passes_over(const CqrsBrokerTransaction *transaction, const Record *record,
			const CqrsSent *sent)
{
	static const pg_uuid_t none;

	if (!transaction->resends || transaction->taken_over)
		return false;
	return record->given ? record->known &&
		record->timeline <= transaction->timeline :
		!sent->diverged.given ||
		memcmp(&sent->diverged.id, &none, UUID_LEN) == 0;
}

/*
 * Stop, and note in *sent, unless it is NULL, at which record; if that is gone, at
 * which it was before.
 */
static void
stop(CqrsBrokerTransaction *transaction, const Record *record, CqrsSent *sent)
{
	transaction->phase = CQRS_TRANSACTION_STOPPED;
	if (sent != NULL && (record->given || !sent->diverged.given))
	{
		sent->diverged.given = true;
		sent->diverged.id = record->id;
	}
	explain(transaction, record);
}

/*
 * Why the record is not what is known.
 */
static void
explain(CqrsBrokerTransaction *transaction, const Record *record)
{
	char	   *reason = transaction->reason;
	Size		size = sizeof(transaction->reason);

	if (!record->given)
		snprintf(reason, size,
				 "the broker does not say whether it has the last transaction: its record is gone");
	else if (!record->known)
		snprintf(reason, size,
				 "the broker has a record that is not one of cqrs_outbox");
	else if (record->timeline > transaction->timeline)
		snprintf(reason, size,
				 "another server has taken over: the broker has a transaction of timeline %u, this is %u",
				 record->timeline, transaction->timeline);
	else
		snprintf(reason, size,
				 "the broker has a transaction of timeline %u that this database knows nothing of: %d events up to position " INT64_FORMAT,
				 record->timeline, record->events, record->position);
}

/*
 * The cursor knows nothing of the record. If what was sent before is what the cursor
 * knows as sent, or its intent, which was committed then, too, and the events that come next, up to the
 * record's position, are those that it is about, move the cursor behind them, and
 * return true. Without the former, a parked event might have been sent between.
 *
 * They need not be read in the window that they were sent from: if they are the same
 * there, they were sent, and what else this window has was not. So if the tick that
 * ended it was lost, or thinned out, the newest one will do.
 */
static bool
prove(CqrsRelay *relay, const Record *record)
{
	CqrsCursor	saved;
	CqrsSent   *sent = &relay->cursor.sent;
	CqrsTick	tick;
	CqrsEvent	event;
	pg_uuid_t  *ids;
	int			n = 0;
	char		hash[sizeof(record->hash)];

	if (!record->known ||
		record->events < 1 || record->events > CQRS_TRANSACTION_EVENTS)
		return false;
	if (sent->intent.given && is_same(&record->after, &sent->intent))
	{
		cqrs_sent_apply(&relay->cursor);
		sent->sent = sent->intent;
		sent->intent.given = false;
	}
	else if (!is_same(&record->after, &sent->sent))
		return false;
	saved = relay->cursor;
	ids = palloc(sizeof(pg_uuid_t) * (record->events + 1));
	if (saved.until_tick == 0 && relay->epoch_tick == 0 &&
		record->tick_id <= cqrs_shmem_durable_tick() &&
		cqrs_tick_newest(relay->snapshot, record->tick_id, &tick) &&
		tick.tick_id == record->tick_id)
		relay->tick = tick;
	relay->may_leave = false;
	cqrs_relay_read_ahead(relay);
	while (n <= record->events)
	{
		/* However many there are. */
		relay->nbytes = relay->nothers = 0;
		if (!cqrs_relay_next(relay, INT_MAX, &event) ||
			event.position > record->position)
			break;
		ids[n++] = *DatumGetUUIDP(event.event_id);
	}
	relay->nevents = relay->nothers = 0;
	hash_ids(ids, n, hash);
	if (n != record->events || strcmp(hash, record->hash) != 0)
	{
		relay->cursor = saved;
		return false;
	}
	relay->cursor.position = record->position;
	relay->cursor.delivered += n;
	return true;
}

/*
 * The next transaction has no events yet.
 */
static void
open_next(CqrsBrokerTransaction *transaction)
{
	transaction->phase = CQRS_TRANSACTION_OPEN;
	transaction->nevents = 0;
	transaction->position = 0;
}

/*
 * Draw the transaction's id, and say in the record what it is. It is read by
 * read_record(), and by people. After what was forgotten and passed over, it is
 * behind itself: nobody is to prove by it that nothing was sent before.
 */
static void
write_record(CqrsBrokerTransaction *transaction, CqrsRelay *relay,
			 const pg_uuid_t *ids, int n, int64 position)
{
	CqrsSent   *sent = &relay->cursor.sent;
	char		id[CQRS_UUID_TEXT_LEN + 1];
	char		after[CQRS_UUID_TEXT_LEN + 1];
	char		hash[2 * PG_SHA256_DIGEST_LENGTH + 1];

	sent->intent.given = true;
	cqrs_event_id_generate(GetCurrentTimestamp(), &sent->intent.id);
	hash_ids(ids, n, hash);
	snprintf(transaction->record, sizeof(transaction->record),
			 "cqrs_outbox 1 %s timeline %u tick " INT64_FORMAT " position " INT64_FORMAT " events %d sha256 %s after %s partition %d of %d seq " INT64_FORMAT,
			 cqrs_uuid_text(&sent->intent.id, id), transaction->timeline,
			 relay->cursor.until_tick, position, n, hash,
			 sent->sent.given ? cqrs_uuid_text(&sent->sent.id, after) :
			 sent->resent_at != 0 ? id : "none",
			 relay->cursor.partition, relay->subscription->partitions,
			 relay->cursor.seq + 1);
	transaction->phase = CQRS_TRANSACTION_CLOSED;
	cqrs_commit_durably();
}

/*
 * What a record says. If it is none of ours, its id is made of it; if there is none,
 * it is all zeros.
 */
static void
read_record(const char *text, Record *record)
{
	char		id[CQRS_UUID_TEXT_LEN + 1];
	char		after[CQRS_UUID_TEXT_LEN + 1];
	long long	tick_id;
	long long	position;

	memset(record, 0, sizeof(*record));
	record->given = text[0] != '\0';

	if (!record->given)
		return;
	record->known =
		sscanf(text,
			   "cqrs_outbox 1 %36s timeline %u tick %lld position %lld events %d sha256 %64s after %36s",
			   id, &record->timeline, &tick_id, &position, &record->events,
			   record->hash, after) == 7 &&
		cqrs_uuid_read(id, strlen(id), &record->id);
	record->after.given = record->known &&
		cqrs_uuid_read(after, strlen(after), &record->after.id);
	record->tick_id = tick_id;
	record->position = position;
	if (!record->known)
	{
		memset(record, 0, sizeof(*record));
		record->given = true;
		cqrs_event_id_from(text, &record->id);
	}
}

/*
 * The SHA-256 of ids, as text. Raises 53200.
 */
static void
hash_ids(const pg_uuid_t *ids, int n, char *text)
{
	pg_cryptohash_ctx *context = pg_cryptohash_create(PG_SHA256);
	uint8		hash[PG_SHA256_DIGEST_LENGTH];
	bool		done;

	done = context != NULL && pg_cryptohash_init(context) >= 0 &&
		(n == 0 || pg_cryptohash_update(context, (const uint8 *) ids,
										sizeof(pg_uuid_t) * n) >= 0) &&
		pg_cryptohash_final(context, hash, sizeof(hash)) >= 0;
	if (context != NULL)
		pg_cryptohash_free(context);
	if (!done)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("could not compute a SHA-256")));
	text[		hex_encode((const char *) hash, sizeof(hash), text)] = '\0';
}

static void
ask(CqrsBrokerTransaction *transaction, CqrsBrokerLink *link,
	CqrsLinkCall call)
{
	cqrs_link_call(link, call, transaction->record);
	transaction->asked = true;
}
