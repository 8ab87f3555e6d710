/*
 * Messages that are consumed from a broker: each is an event once, in order,
 * whoever else believes that the partition is his, and wherever he dies.
 *
 * Models: intake.c, intake_batch.c, place.c, message_id.c.
 *
 * A partition of MESSAGES messages, and two workers to whom it belongs, as both
 * believe for a moment. The source either has offsets, and gives to everybody what
 * he asks for; or it has none, gives each message to one of them, keeps what he has
 * not acknowledged, and gives it out again when his connection is lost, which he
 * may notice later. Whatever they do, their transaction may be rolled back, they
 * may die, and the place may move though nothing was consumed.
 *
 * A transaction is seen by others when it commits; so what it does before is one
 * step with that, except for its locks: that of the place, and that of an id which
 * it has added. Of old rows of the place, only KEPT are there.
 */
/* broken: BROKEN_LOOK nobody looks at the place under the lock, but rows that are there conflict */
/* broken: BROKEN_LOCK the place is looked at, and then locked; rows do not conflict */
/* broken: BROKEN_APART the place is written behind the events, in another transaction */
/* broken: BROKEN_AHEAD the place is written before the events, in another transaction */
/* broken: BROKEN_STALE what a transaction had moved counts after it was rolled back */
/* broken: BROKEN_SETTLE the broker is told before the commit */
/* broken: BROKEN_IDS ids are noted before the events, in another transaction */
/* broken: BROKEN_NO_IDS a message that came again is an event again */
/* broken: BROKEN_WAIT an id that another transaction has added is taken for consumed */
/* deep: MESSAGES=4 IDLE=2 DEATHS=3 DROPS=3 */

#ifndef MESSAGES
#define MESSAGES	3
#endif
#ifndef IDLE
#define IDLE		1			/* moves of the place with nothing consumed */
#endif
#ifndef DEATHS
#define DEATHS		2
#define DROPS		2
#endif
#define KEPT		1
#define NOBODY		2
#define ALL			((1 << MESSAGES) - 1)

bool has_offsets;

/* What is committed. */
byte seq = 1, next_offset;		/* the place's newest row */
byte nevents;					/* of a source with offsets */
byte events, ids;				/* of one without, by message */

byte locked = NOBODY;			/* the place's lock */
byte adding[2];					/* ids that a transaction has added */
byte idle = IDLE, deaths = DEATHS, drops = DROPS, rollbacks = 1;

/* A broker without offsets: what it has for anybody, and what it gave to whom. */
byte queue = ALL;
byte held[2];

bool over;

#define done	(has_offsets -> nevents == MESSAGES && next_offset == MESSAGES : \
				 events == ALL && queue == 0 && held[0] == 0 && held[1] == 0)

/*
 * cqrs_place_append(): behind the row that was read. The primary key refuses a
 * second row of the same seq, as long as the first one is there.
 */
#ifdef BROKEN_LOCK
#define conflicts	false
#else
#define conflicts	(my_seq + 1 <= seq && my_seq + 1 > seq - KEPT)
#endif

inline append_place(offset)
{
	if
	:: my_seq + 1 >= seq -> seq = my_seq + 1; next_offset = offset
	:: else						/* a newer one counts */
	fi;
	my_seq++
}

/* The messages from my_offset up to before last are events. */
inline store_offsets(last)
{
	assert(my_offset == nevents);
	nevents = last
}

inline store_ids(which)
{
	assert((events & (which)) == 0);
	events = events | (which)
}

inline unlock()
{
	locked = (locked == me -> NOBODY : locked);
	adding[me] = 0
}

/* The process, or its connection, is gone: all that it knew is. */
inline forget()
{
	unlock();
	queue = queue | held[me]; held[me] = 0;
	my_seq = 0; my_offset = 0; upto = 0; batch = 0; fresh = 0
}

inline die()
{
	deaths--;
	forget()
}

proctype worker(byte me)
{
	byte my_seq, my_offset;		/* the place as this process knows it */
	byte upto;					/* the batch, of a source with offsets */
	byte batch, fresh;			/* of one without; and which are new */

	/* cqrs_intake_plan() */
plan:
	atomic {
		if
		:: done -> over = 1; goto end_over
		:: else -> my_seq = seq; my_offset = next_offset
		fi
	};

receive:
	if
	:: atomic { done -> over = 1; forget(); goto end_over }
	:: atomic { has_offsets && my_offset < MESSAGES && batch == 0 ->
			upto = my_offset + 1;
			if
			:: upto < MESSAGES -> upto++
			:: true
			fi
		}
	:: atomic { !has_offsets && batch == 0 && queue != 0 ->
			/* The first one, or all. */
			if
			:: true -> batch = queue & -queue
			:: true -> batch = queue
			fi;
			queue = queue & ~batch; held[me] = held[me] | batch
		}
	:: batch != 0				/* left by a transaction that was rolled back */
	/* cqrs_intake_check() */
	:: atomic { has_offsets && idle > 0 -> idle--; upto = my_offset }
	:: atomic { deaths > 0 -> die(); goto plan }
	fi;

	/* cqrs_intake_lock_places() */
	if
	:: !has_offsets -> goto note
	:: else
	fi;
#ifdef BROKEN_LOCK
	if
	:: atomic { seq != my_seq -> forget(); goto plan }
	:: seq == my_seq
	fi;
#endif
	atomic { locked == NOBODY -> locked = me };
#if !defined(BROKEN_LOOK) && !defined(BROKEN_LOCK)
	if
	:: atomic { seq != my_seq -> forget(); goto plan }
	:: else
	fi;
#endif
	if
	:: atomic { deaths > 0 -> die(); goto plan }	/* or an error: begins anew */
	:: atomic { rollbacks > 0 -> rollbacks--; unlock(); upto = 0;		/* its messages go apart */
#ifdef BROKEN_STALE
			my_seq++;
#endif
			goto receive }
	:: atomic { conflicts -> forget(); goto plan }
#ifdef BROKEN_APART
	:: atomic { !conflicts -> store_offsets(upto) };
		if
		:: atomic { deaths > 0 -> die(); goto plan }
		:: atomic { true -> append_place(upto) }
		fi;
		atomic {
#elif defined(BROKEN_AHEAD)
	:: atomic { !conflicts -> append_place(upto) };
		if
		:: atomic { deaths > 0 -> die(); goto plan }
		:: atomic { true -> store_offsets(upto) }
		fi;
		atomic {
#else
	:: atomic { !conflicts ->
			if
			:: upto > my_offset -> store_offsets(upto)
			:: else
			fi;
			append_place(upto);
#endif
			my_offset = upto; upto = 0;
			unlock();
			goto receive
		}
	fi;

	/* A source without offsets: recognise(), cqrs_message_add(). */
note:
#ifdef BROKEN_SETTLE
	held[me] = held[me] & ~batch;
#endif
#ifdef BROKEN_WAIT
	atomic { fresh = batch & ~ids & ~adding[1 - me]; adding[me] = fresh };
#elif defined(BROKEN_NO_IDS)
	fresh = batch;
#else
	/* Waits for whoever is adding one, until that is committed or rolled back. */
	atomic { (batch & adding[1 - me]) == 0 -> fresh = batch & ~ids; adding[me] = fresh };
#endif
#ifdef BROKEN_IDS
	atomic { ids = ids | fresh; adding[me] = 0 };
#endif
	if
	:: atomic { deaths > 0 -> die(); goto plan }
	:: atomic { rollbacks > 0 -> rollbacks--; unlock(); fresh = 0; goto receive }
	:: atomic { true ->
			store_ids(fresh);
			ids = ids | fresh;
			unlock(); fresh = 0
		}
	fi;

	/* cqrs_intake_stored(); what the broker gave to somebody else stays his. */
	if
	:: atomic { deaths > 0 -> die(); goto plan }
	:: atomic { true -> held[me] = held[me] & ~batch; batch = 0; goto receive }
	fi;

end_over:
	skip
}

/* The broker has lost the connection of a worker who does not know yet. */
proctype broker()
{
	do
	:: over -> break
	:: atomic { held[0] != 0 && drops > 0 -> drops--; queue = queue | held[0]; held[0] = 0 }
	:: atomic { held[1] != 0 && drops > 0 -> drops--; queue = queue | held[1]; held[1] = 0 }
	od
}

init
{
	atomic {
		if
		:: has_offsets = 1
		:: has_offsets = 0
		fi;
		run worker(0);
		run worker(1);
		run broker()
	}
	atomic {
		over ->
		assert(done && (has_offsets || ids == ALL))
	}
}
