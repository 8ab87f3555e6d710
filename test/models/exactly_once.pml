/*
 * Events that are delivered in a broker's transactions: each once, whoever dies
 * wherever, and whatever a failover has lost. Where that is not known, delivery
 * stops.
 *
 * Models: broker_transaction.c, target_broker.c (exchange_transaction), operation.c
 * (settle_sent).
 *
 * A cursor with EVENTS events, one of which the broker may refuse at first, so that
 * it is parked and has a transaction of its own later. Two workers of one server,
 * as if the first had not ended yet; their standby gets the cursor's row whenever,
 * and may be promoted at any time, without the last events even: then it has others
 * at their positions. The old primary goes on, or comes back, as it likes. Workers
 * die anywhere, also while the broker is committing, which it may do later, until
 * that producer is fenced. A person says what is to be where delivery has stopped, or
 * has said so before, with on_divergence; moves the cursor back, once, to have all sent
 * again; and the broker may forget its record, once, when nothing was committed for long.
 *
 * There is one window. With several, a position says nothing about those of another one;
 * but nobody relies on that: prove() moves the cursor only past events that it has read
 * in a window just now, if these, in order and up to there, are all that the record is
 * about. So whichever window that is, nothing is passed by that was not sent; and if it
 * has others in between, that were not visible before, delivery stops. An intent is
 * applied to the window that is in the cursor's row together with it; a seek forgets
 * both. test/debug/t/011_exactly_once.pl has an event come late.
 *
 * An exchange is one step, as it has the cursor's lock. What is sent is not seen
 * before it is committed, and so is one step with that.
 */
/* broken: BROKEN_INTENT nothing is written before the broker is asked to commit */
/* broken: BROKEN_SOON the broker is asked before the intent is written */
/* broken: BROKEN_FENCED once others are fenced, the record that was looked at before counts */
/* broken: BROKEN_FENCE others are fenced before anything is read */
/* broken: BROKEN_POSITION an unknown record says where to go on */
/* broken: BROKEN_COUNT an unknown record is proven by how many events come next */
/* broken: BROKEN_AFTER an unknown record is proven by its events, whatever was sent before it */
/* broken: BROKEN_CLAIM who has read the record claims the cursor, whoever moved it meanwhile */
/* broken: BROKEN_ROW who has lost the cursor goes on with what he knew of it */
/* broken: BROKEN_DOUBT with no record, and one before it, the intent came to nothing */
/* broken: BROKEN_FORGOTTEN with no record, and one before it, nothing was sent since */
/* broken: BROKEN_TAKEN with on_divergence 'resend', the old primary goes on, too */
/* broken: BROKEN_SEEK the cursor moves past an intent that was written before it was moved */
/* broken: BROKEN_GONE who has diverged goes on once the record is gone, or is another one */
/* broken: BROKEN_PARKED a parked event is sent again after an intent about it was committed */
/* deep: BOTH=1 */

#ifndef EVENTS
#define EVENTS		2
#endif
#ifndef TXS
#define TXS			3		/* transactions that are begun */
#endif
#define ALL			((1 << EVENTS) - 1)

/* The cursor's row, and what is parked, of each server; 1 is the standby. */
typedef Row {
	byte current;				/* workers who know this row, and not an older one */
	byte pos;
	byte parked;				/* positions */
	byte passed;				/* those that were sent though they were parked */
	byte again;					/* sought for, and not sent since, by id */
	byte sent, intent;			/* transactions; 0: none */
	bool nowhere;				/* the cursor was moved since the intent */
	bool resent;				/* went on without knowing */
	bool stopped;
	byte diverged				/* the record, if it is stopped; 0: it is gone */
};
Row row[2];

/* Of transactions, what their intents and records say. */
typedef Transaction {
	byte events;				/* by id */
	byte upto;					/* 0: none that matters */
	bool parked;
	byte after;					/* what was sent before */
	bit timeline				/* the server */
};
Transaction tx[TXS + 1];
byte last_tx;

/* The broker. */
byte owner;						/* the worker that fenced last */
byte committing;				/* a transaction, by the owner */
byte record;
byte there;						/* events that are committed, by id */
byte done;						/* transactions that are, by bit */

bool promoted, forgotten;
bool has_standby = 1;
byte old_tx;					/* when the record was forgotten */
byte refusals = 1;
byte same = EVENTS;				/* the new primary has these of the old one's events */
byte may_twice;					/* a person has said so, of these events */
bool resends;					/* on_divergence */
bool may_forget, may_seek;		/* each alone: both at once take too long */
bool sought;
byte connecting;				/* workers that are about to claim the cursor */
byte sought_tx;					/* what was begun before */

#define wrote(s)		row[s].current = 1 << me
#define has(set, k)		(((set) >> (k)) & 1)

/* The ids of the events at these positions: other events, other ids. */
#define ids(s, set)		((s) == 0 -> (set) : \
						 ((set) & ((1 << same) - 1)) | (((set) & ALL & ~((1 << same) - 1)) << EVENTS))
#define between(a, b)	(((1 << (b)) - 1) & ~((1 << (a)) - 1))

#define apart(s)		(row[s].parked | row[s].passed)

/* What is passed by, and not parked, was sent. */
#define nothing_skipped(s) \
	((ids(s, between(0, row[s].pos) & ~row[s].parked) & (~there | row[s].again)) == 0)

/* What it is to send yet was not sent, unless a person has said otherwise. */
#define to_send(s)		ids(s, (between(row[s].pos, EVENTS) & ~row[s].passed) | row[s].parked)
#define nothing_twice(s) ((to_send(s) & there & ~may_twice) == 0)

/* Does the intent t say where the cursor is to move? */
#ifdef BROKEN_SEEK
#define somewhere(s, t)	(tx[t].upto != 0)
#else
#define somewhere(s, t)	(tx[t].upto != 0 && !row[s].nowhere)
#endif
#define in_doubt(s)		(row[s].intent != 0 && somewhere(s, row[s].intent))

#if defined(BROKEN_DOUBT)
#define doubtful(s)		false
#elif defined(BROKEN_FORGOTTEN)
#define doubtful(s)		(in_doubt(s) && (row[s].sent != 0 || row[s].intent <= old_tx))
#else
#define doubtful(s)		(row[s].sent != 0 || (in_doubt(s) && row[s].intent <= old_tx))
#endif

/* cqrs_sent_apply() */
inline apply(s, t)
{
	if
	:: t != 0 && somewhere(s, t) && tx[t].parked ->
#ifndef BROKEN_PARKED
		row[s].passed = row[s].passed | (row[s].parked & (1 << (tx[t].upto - 1)));
		row[s].parked = row[s].parked & ~(1 << (tx[t].upto - 1))
#endif
	:: t != 0 && somewhere(s, t) && !tx[t].parked && tx[t].upto > row[s].pos -> row[s].pos = tx[t].upto
	:: else
	fi;
	assert(nothing_skipped(s))
}

/* write_record() */
inline write_intent(s, which, last, is_parked)
{
	last_tx++;
	my_tx = last_tx;
	tx[my_tx].events = ids(s, which);
	tx[my_tx].upto = last;
	tx[my_tx].parked = is_parked;
	tx[my_tx].after = (row[s].sent == 0 && row[s].resent -> my_tx : row[s].sent);
	tx[my_tx].timeline = s;
#if !defined(BROKEN_INTENT) && !defined(BROKEN_SOON)
	row[s].intent = my_tx;
	row[s].nowhere = 0;
	wrote(s)
#endif
}

/* prove() */
#ifdef BROKEN_AFTER
#define follows(s)		true
#else
#define follows(s)		(tx[my_record].timeline <= s && \
						 (tx[my_record].after == row[s].sent || \
						  (row[s].intent != 0 && tx[my_record].after == row[s].intent)))
#endif
#ifdef BROKEN_COUNT
#define come_next(s)	true
#else
#define come_next(s)	(tx[my_record].events == \
						 ids(s, between(row[s].pos, tx[my_record].upto) & ~apart(s)))
#endif

inline prove(s)
{
	proven = 0;
#ifdef BROKEN_POSITION
	proven = 1;
	row[s].pos = (tx[my_record].upto > row[s].pos -> tx[my_record].upto : row[s].pos);
	assert(nothing_skipped(s));
#else
	if
	:: follows(s) ->
#ifndef BROKEN_AFTER
		if
		:: tx[my_record].after == row[s].intent && row[s].intent != 0 ->
			apply(s, row[s].intent);
			row[s].sent = row[s].intent;
			row[s].intent = 0
		:: else
		fi;
#endif
		if
		:: tx[my_record].events != 0 && !tx[my_record].parked &&
			tx[my_record].upto > row[s].pos && come_next(s) ->
			proven = 1;
			row[s].pos = tx[my_record].upto;
			assert(nothing_skipped(s))
		:: else
		fi
	:: else
	fi
#endif
}

inline stop(s)
{
	assert(promoted || forgotten);
	row[s].stopped = 1;
	row[s].diverged = my_record;
	taken_over = 0;
	wrote(s)
}

/* passes_over() */
#ifdef BROKEN_TAKEN
#define passes_over(s, r)	resends
#else
#define passes_over(s, r)	(resends && !taken_over && \
						 ((r) != 0 -> tx[r].timeline <= s : \
						  !row[s].stopped || row[s].diverged == 0))
#endif

/* What the process knew of its connection is gone. */
inline forget()
{
	my_tx = 0; my_record = 0; taken_over = 0; must_not_fence = 0;
	known_sent = 0; known_intent = 0; known_stopped = 0; proven = 0
}

proctype worker(bit s; byte me)
{
	byte my_tx, my_record;
	byte known_sent, known_intent;
	bool known_stopped, taken_over, must_not_fence, proven;
	byte k, n;

	/* cqrs_transaction_prepare() */
prepare:
end_idle:
	atomic {
		(s == 0 || promoted) &&
		(!row[s].stopped || (row[s].diverged != record && record != 0) || passes_over(s, record)
#ifdef BROKEN_GONE
		 || row[s].diverged != record
#endif
		) ->
		forget();
		connecting = connecting | (1 << me);
		row[s].current = row[s].current | (1 << me);
		known_sent = row[s].sent; known_intent = row[s].intent;
		known_stopped = row[s].stopped;
		must_not_fence = record != known_sent && record != known_intent &&
			tx[record].timeline > s
	};

	/* look() */
	atomic {
		my_record = record;
		taken_over = my_record != 0 && my_record != known_sent &&
			my_record != known_intent && tx[my_record].timeline > s;
		known_sent = 0; known_intent = 0
	};
#ifndef BROKEN_FENCE
	if
	:: known_stopped && (my_record == 0 || my_record == row[s].diverged) && !passes_over(s, my_record) ->
#ifndef BROKEN_GONE
		connecting = connecting & ~(1 << me);
		goto prepare
#else
		skip
#endif
	:: else
	fi;
	known_stopped = 0;
	if
	:: taken_over -> goto claim
	:: else
	fi;
#endif
	atomic { assert(!must_not_fence); owner = me; committing = 0 };
#ifdef BROKEN_FENCED
	skip;
#else
	my_record = record;
#endif

	/* cqrs_transaction_claim() */
claim:
	atomic {
		connecting = connecting & ~(1 << me);
		if
#ifndef BROKEN_CLAIM
		:: !has(row[s].current, me) -> goto prepare
#endif
		:: else ->
			proven = 1;
			if
			:: my_record == 0 && doubtful(s) -> proven = 0
#ifndef BROKEN_GONE
			:: my_record == 0 && row[s].stopped -> proven = 0
#endif
			:: taken_over -> proven = 0
			:: else ->
				if
				:: my_record != 0 && my_record == row[s].intent -> apply(s, my_record)
				:: my_record != 0 && my_record != row[s].intent && my_record != row[s].sent ->
					proven = 0;
					if
#ifndef BROKEN_GONE
					:: row[s].stopped -> skip
#endif
					:: else -> prove(s)
					fi
				:: else
				fi
			fi;
			if
			:: !proven && !passes_over(s, my_record) -> stop(s); goto prepare
			:: else ->
				if
				:: !proven ->
					may_twice = may_twice | to_send(s);
					row[s].resent = 1
				:: else
				fi;
				row[s].sent = my_record;
				row[s].intent = 0; row[s].nowhere = 0; row[s].stopped = 0; row[s].diverged = 0;
				wrote(s);
				assert(owner != me || nothing_twice(s));
				proven = 0; must_not_fence = 0;
				if
				:: my_record != 0 && tx[my_record].timeline != s && last_tx < TXS ->
					my_record = 0;
					write_intent(s, 0, 0, 0);
					goto closed
				:: my_record != 0 && tx[my_record].timeline != s && last_tx == TXS -> goto end_budget
				:: else -> my_record = 0
				fi
			fi
		fi
	};

	/* cqrs_transaction_close() */
open:
end_open:
	atomic {
#ifndef BROKEN_ROW
		if
		:: !has(row[s].current, me) && row[s].intent != 0 -> goto prepare
		:: else -> row[s].current = row[s].current | (1 << me)
		fi;
#endif
		if
		:: last_tx < TXS && row[s].parked != 0 ->
			k = 0;
			do
			:: has(row[s].parked, k) -> break
			:: else -> k++
			od;
			write_intent(s, 1 << k, k + 1, 1)
		:: last_tx < TXS && row[s].pos < EVENTS && !has(apart(s), row[s].pos) ->
			n = row[s].pos + 1;
			do
			:: n < EVENTS -> n++
			:: true -> break
			od;
			write_intent(s, between(row[s].pos, n) & ~apart(s), n, 0)
		:: row[s].pos < EVENTS && has(apart(s), row[s].pos) ->
			row[s].pos++; wrote(s);
			goto open
		:: true -> goto prepare			/* it dies */
		fi;
		k = 0; n = 0
	};

closed:
	if
	:: true -> goto prepare
	/* record_refused(): the first of them is parked. */
	:: atomic { refusals > 0 && owner == me && has(row[s].current, me) && s == 0 &&
			tx[my_tx].events != 0 && !tx[my_tx].parked ->
			refusals--;
			row[s].parked = row[s].parked | (tx[my_tx].events & -tx[my_tx].events);
			row[s].intent = 0; row[s].nowhere = 0;
			wrote(s); my_tx = 0;
			goto open
		}
	:: atomic { owner != me -> goto prepare }
	:: atomic { owner == me -> committing = my_tx }
	fi;
#ifdef BROKEN_SOON
	if
	:: true -> goto prepare
	:: atomic { has(row[s].current, me) -> row[s].intent = my_tx; wrote(s) }
	:: atomic { !has(row[s].current, me) -> goto prepare }
	fi;
#endif

	/* cqrs_transaction_settle() */
	if
	:: true -> goto prepare
	:: atomic { owner == me && has(done, my_tx) ->
			if
#ifndef BROKEN_ROW
			:: !has(row[s].current, me) -> goto prepare
#endif
			:: else ->
				apply(s, my_tx);
				row[s].sent = my_tx; row[s].intent = 0; row[s].nowhere = 0;
				wrote(s); my_tx = 0;
				goto open
			fi
		}
	fi;

end_budget:
	false
}

proctype broker()
{
end:
	do
	:: atomic { committing != 0 ->
			/* Each once, unless a person has said otherwise. */
			assert((tx[committing].events & there & ~may_twice) == 0);
			/* The old primary sends nothing behind the new one. */
			assert(tx[committing].timeline >= tx[record].timeline);
			there = there | tx[committing].events;
			if
			:: sought && committing > sought_tx ->
				may_twice = may_twice & ~(tx[committing].events & row[tx[committing].timeline].again);
				row[0].again = row[0].again & ~tx[committing].events;
				row[1].again = row[1].again & ~tx[committing].events
			:: else
			fi;
			done = done | (1 << committing);
			record = committing;
			committing = 0
		}
	od
}

#define knows(s)		(row[s].stopped || row[s].sent != 0 || in_doubt(s))

inline copy_row()
{
	row[1].pos = row[0].pos; row[1].parked = row[0].parked; row[1].passed = row[0].passed;
	row[1].again = row[0].again; row[1].nowhere = row[0].nowhere;
	row[1].sent = row[0].sent; row[1].intent = row[0].intent;
	row[1].resent = row[0].resent;
	row[1].stopped = row[0].stopped; row[1].diverged = row[0].diverged
}

/* The standby, the person, and time. */
proctype world()
{
	bit s;

end:
	do
	:: atomic { has_standby && !promoted -> copy_row() }
	:: atomic { has_standby && !promoted && !forgotten ->
			promoted = 1;
			/* It has the events of which the row says anything. */
			same = row[1].pos;
			if
			:: row[1].intent != 0 && tx[row[1].intent].upto > same -> same = tx[row[1].intent].upto
			:: else
			fi;
			do
			:: same < EVENTS -> same++
			:: (apart(1) & ~between(0, same)) == 0 -> break
			od
		}
	:: atomic { row[promoted].stopped ->
			s = promoted;
			if
			/* trust */
			:: row[s].diverged == 0 && row[s].intent != 0 && has(done, row[s].intent) ->
				apply(s, row[s].intent)
			/* again */
			:: true ->
				may_twice = may_twice | to_send(s)
			fi;
			/* cqrs_sent_elsewhere() */
			row[s].sent = 0; row[s].intent = row[s].diverged;
			row[s].nowhere = row[s].intent != 0;
			row[s].stopped = 0; row[s].diverged = 0;
			row[s].current = 0;
			s = 0
		}
	/* cqrs_seek(): what was sent since it began may be there twice. */
	:: atomic { may_seek && !sought && !row[promoted].stopped && row[promoted].pos > 0 ->
			sought = 1;
			sought_tx = last_tx;
			s = promoted;
			row[s].pos = 0; row[s].parked = 0; row[s].passed = 0;
			row[s].nowhere = row[s].intent != 0;
			row[s].again = ids(s, ALL);
			may_twice = may_twice | ids(s, ALL);
			row[s].current = 0;
			s = 0
		}
	/*
	 * That takes days. So a new primary has written a record before. And who knows of
	 * nothing that was sent misses none.
	 */
	:: atomic { may_forget && !forgotten && record != 0 && committing == 0 && connecting == 0 &&
			knows(0) && (!promoted || (knows(1) && (row[1].stopped || tx[record].timeline == 1))) ->
			forgotten = 1;
			old_tx = last_tx;
			record = 0
		}
	od
}

init
{
	atomic {
		/* All at once take too long; so do those in which nothing is broken. */
		if
#if !defined(BROKEN_TAKEN) && !defined(BROKEN_SEEK)
		:: may_forget = 1
#endif
#ifndef BROKEN_SEEK
		:: may_forget = 1; resends = 1; refusals = 0
#endif
#ifndef BROKEN_TAKEN
		:: may_seek = 1
#endif
		fi;
		if
		:: !resends -> row[0].parked = 1; row[1].parked = 1; refusals = 0
		:: true
		fi;
		run worker(0, 1);

		/* Both at once take too long. */
#ifdef BOTH
		run worker(0, 2);
		run worker(1, 3);
#else
		if
		:: !resends -> run worker(0, 2); has_standby = 0
		:: !may_seek -> run worker(1, 3)
		fi;
#endif
		run broker();
		run world()
	}
}
