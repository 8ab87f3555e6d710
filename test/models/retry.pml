/*
 * Retry and redrive: nothing that is parked is lost, each lane is in order,
 * and what was given up and redriven is tried again.
 *
 * Beside: retry.c (cqrs_park, cqrs_parked_load, cqrs_parked_due,
 * cqrs_parked_failed, cqrs_parked_begin_attempt, remove_from_set, bury),
 * target_handler.c (deliver_parked, deliver_new, cqrs_target_failed,
 * cqrs_target_announce), dead_letter.c (remove_letters, cqrs_redrive),
 * operation.c (seek).
 *
 * A cursor over EVENTS events in two lanes; a worker, an owner who redrives,
 * and one who seeks back once. At most LIMIT events are parked. The cursor's
 * lock makes each transaction of theirs one step. A handler may fail, or kill
 * the worker in a careful delivery: then the attempt is counted already.
 */
/* broken: BROKEN_BLOCKS an event does not wait behind a parked one of its lane */
/* broken: BROKEN_HEAD any parked event of a lane may be tried */
/* broken: BROKEN_PARKED_FROM a redriven event does not lower parked_from */
/* broken: BROKEN_DONE when the lowest is done, parked_from is 0 */
/* broken: BROKEN_BURY an event is given up without a dead letter */
/* broken: BROKEN_FULL with all room taken, the cursor passes what should be parked */
/* broken: BROKEN_ATTEMPT an attempt that may kill is counted only afterwards */
/* broken: BROKEN_REDRIVE_TWICE an event that is parked already is parked again */
/* deep: EVENTS=5 LIMIT=3 */

#ifndef EVENTS
#define EVENTS		4
#endif
#ifdef BROKEN_DONE
#define LIMIT		1			/* as a batch here has one parked event */
#endif
#ifndef LIMIT
#define LIMIT		2			/* CQRS_MAX_PARKED */
#endif
#ifndef REDRIVES
#define REDRIVES	1
#endif
#ifndef FAILURES
#define FAILURES	5
#endif
#define ATTEMPTS	2			/* max_attempts */
#define lane(p)		((p) & 1)

byte position;					/* the cursor's; positions from 1 */
byte parked_from;				/* the lowest that is parked, or lower; 0: none */
byte attempts[EVENTS + 1];
byte parked, dead;				/* rows, by position */
byte delivered;					/* since the seek */
byte last[2];					/* delivered last of each lane, in order */
byte failures = FAILURES, redrives = REDRIVES, killed[EVENTS + 1];
byte announced;					/* an event whose attempt is counted */
byte redriven;					/* since the announcement: they come after it */
bool seeks, resting;

#define has(set, p)	(((set) >> (p)) & 1)

/* cqrs_parked_load(): the first LIMIT, from parked_from on */
inline load()
{
	set = 0; n = 0; p = parked_from;
	do
	:: p == 0 || p > EVENTS || n == LIMIT -> break
	:: else ->
		if
		:: has(parked, p) -> set = set | (1 << p); n++
		:: else
		fi;
		p++
	od;
	is_full = (n == LIMIT)
}

/* The first parked event of its lane: head */
inline due()
{
	p = 1;
	do
	:: p > EVENTS -> p = 0; break
	:: p <= EVENTS && has(set, p) -> break
#ifdef BROKEN_HEAD
	:: p <= EVENTS && has(set, p) && p + 2 <= EVENTS && has(set, p + 2) -> p = p + 2; break
#endif
	/* or that of the other lane */
	:: p < EVENTS && has(set, p) && has(set, p + 1) -> p++; break
	:: p <= EVENTS && !has(set, p) -> p++
	od
}

inline done(q)
{
	parked = parked & ~(1 << q);
	set = set & ~(1 << q);
	/* remove_from_set() */
	parked_from = 0; k = EVENTS;
	do
	:: k == 0 -> break
	:: else ->
		if
		:: has(set, k) -> parked_from = k
		:: else
		fi;
		k--
	od;
#ifndef BROKEN_DONE
	/* Those that were not loaded have higher positions. */
	if
	:: parked_from == 0 && is_full -> parked_from = q + 1
	:: else
	fi
#endif
}

inline bury(q)
{
#ifndef BROKEN_BURY
	dead = dead | (1 << q);
#endif
	done(q)
}

inline park(q)
{
	parked = parked | (1 << q);
	set = set | (1 << q);
	attempts[q] = 0; killed[q] = 0;
	if
	:: parked_from == 0 || q < parked_from -> parked_from = q
	:: else
	fi
}

inline failed(q)
{
	attempts[q]++;
	if
	:: attempts[q] >= ATTEMPTS -> bury(q)
	:: else
	fi
}

inline deliver(q)
{
	assert(!has(delivered, q));
	/* What comes before it in its lane is delivered or dead. */
	k = 1;
	do
	:: k == q -> break
	:: else ->
		assert(lane(k) != lane(q) || has(delivered, k) || has(dead, k) ||
			   has(redriven, k));
		k++
	od;
	delivered = delivered | (1 << q)
}

proctype worker()
{
	byte p, n, k, set, q;
	bool is_full, blocked;

	do
	:: atomic { announced == 0 ->
			load();
			due();
			q = position + 1;
			if
			:: p != 0 && q <= EVENTS -> p = 0		/* its time has not come */
			:: true
			fi;
			blocked = 0; k = 1;
			do
			:: k > EVENTS || q > EVENTS -> break
			:: else ->
				if
				:: has(set, k) && lane(k) == lane(q) -> blocked = 1
				:: else
				fi;
				k++
			od;
#ifdef BROKEN_BLOCKS
			blocked = 0;
#endif
			if
			:: p != 0 ->
				/* deliver_parked() */
				if
				:: deliver(p); done(p)
				:: failures > 0 -> failures--; failed(p)
				/* cqrs_target_announce(): counted, and committed */
				:: failures > 0 ->
#ifndef BROKEN_ATTEMPT
					attempts[p]++;
#endif
					announced = p
				fi
			:: p == 0 && q <= EVENTS && !is_full ->
				/* deliver_new() */
				if
				:: blocked -> park(q)
				:: !blocked -> deliver(q)
				:: !blocked && failures > 0 -> failures--; park(q); failed(q)
				fi;
				position = q
#ifdef BROKEN_FULL
			:: p == 0 && q <= EVENTS && is_full -> position = q
#endif
			:: p == 0 && q <= EVENTS && is_full -> skip		/* it waits */
			:: else -> resting = 1; break
			fi;
			p = 0; n = 0; k = 0; set = 0; q = 0; blocked = 0; is_full = 0
		}
	:: atomic { announced != 0 ->
			/* The event that was announced; it may kill the process. */
			load();
			p = announced;
			if
			:: !has(parked, p) -> skip		/* somebody has sought meanwhile */
			:: has(parked, p) -> deliver(p); done(p)
			:: has(parked, p) && failures > 0 ->
				failures--;
				killed[p]++;
				/* Nothing that kills is tried more often than it may be. */
				assert(killed[p] <= ATTEMPTS);
				assert(attempts[p] >= killed[p]);
				if
				:: attempts[p] >= ATTEMPTS -> bury(p)
				:: else
				fi
			fi;
			announced = 0; redriven = 0;
			p = 0; n = 0; k = 0; set = 0; q = 0; blocked = 0; is_full = 0
		}
	od
}

/* cqrs_redrive(): all dead letters, under the cursor's lock */
proctype owner()
{
	byte q;

	do
	:: atomic { redrives > 0 && dead != 0 && !resting ->
			redrives--;
			q = 1;
			do
			:: q > EVENTS -> break
			:: else ->
				if
				:: has(dead, q) ->
#ifdef BROKEN_REDRIVE_TWICE
					assert(!has(parked, q));	/* the primary key */
#endif
					/* One that is parked, or comes again, is so anyway. */
					if
					:: !has(parked, q) && q <= position && !has(delivered, q) ->
						parked = parked | (1 << q);
						attempts[q] = 0; killed[q] = 0;
						redriven = redriven | (announced != 0 -> 1 << q : 0);
#ifndef BROKEN_PARKED_FROM
						if
						:: parked_from == 0 || q < parked_from -> parked_from = q
						:: else
						fi
#endif
					:: else
					fi;
					dead = dead & ~(1 << q)
				:: else
				fi;
				q++
			od;
			q = 0
		}
	/* cqrs_seek('earliest'): what is parked comes again; dead letters stay. */
	:: atomic { !seeks && !resting ->
			seeks = 1;
			position = 0; parked = 0; parked_from = 0; delivered = 0
		}
	:: break
	od
}

/* When the worker rests, everything is delivered or dead. */
proctype quiet()
{
	byte p;

	atomic {
		resting && announced == 0 ->
		p = 1;
		do
		:: p > EVENTS -> break
		:: else -> assert(has(delivered, p) || has(dead, p)); p++
		od;
		assert(parked == 0)
	}
}

init
{
	atomic {
		run worker();
		run owner();
		run quiet()
	}
}
