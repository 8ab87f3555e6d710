/*
 * Retry and redrive: nothing that is parked is lost, each lane is in order,
 * nobody is blamed for what others did, and what was given up and redriven is
 * tried again.
 *
 * Models: parked.c (cqrs_parked_insert, cqrs_parked_delete, cqrs_parked_due),
 * lane.c, retry.c (cqrs_park, cqrs_park_unproven, cqrs_parked_failed,
 * cqrs_parked_begin_attempt, bury), target_handler.c (deliver_parked,
 * deliver_new, record_failure, cqrs_target_announce), dead_letter.c
 * (remove_letters, cqrs_redrive), operation.c (seek).
 *
 * A cursor over EVENTS events in two lanes; a worker, whose transactions have up
 * to BATCH events, each in a subtransaction; an owner who redrives, and one who
 * seeks back once. The cursor's lock makes each of their transactions one step. A
 * handler may fail, by itself or for what another did that was called before it;
 * or kill the worker in a careful delivery: then the attempt is counted already.
 */
/* broken: BROKEN_BLOCKS an event does not wait behind a parked one of its lane */
/* broken: BROKEN_HEAD a redriven event is not put before those of its lane */
/* broken: BROKEN_NEXT a redriven event does not lower next_retry_at */
/* broken: BROKEN_DONE when the first of a lane is done, the next may not be tried */
/* broken: BROKEN_CLEAR next_retry_at is cleared although others are parked */
/* broken: BROKEN_COMPANY what fails behind others in a transaction is an attempt */
/* broken: BROKEN_BURY an event is given up without a dead letter */
/* broken: BROKEN_ATTEMPT an attempt that may kill is counted only afterwards */
/* broken: BROKEN_REDRIVE_TWICE an event that is parked already is parked again */
/* deep: EVENTS=5 FAILURES=6 */

#ifndef EVENTS
#define EVENTS		4
#endif
#ifndef REDRIVES
#define REDRIVES	1
#endif
#ifndef FAILURES
#define FAILURES	5
#endif
#define BATCH		3
#define ATTEMPTS	2			/* max_attempts */
#define lane(p)		((p) & 1)

byte position;					/* the cursor's; positions from 1 */
bool next;						/* next_retry_at is not null */
byte attempts[EVENTS + 1];
byte parked, dead;				/* rows, by position */
byte head;						/* those that have a due_at */
byte delivered;					/* since the seek */
byte failures = FAILURES, redrives = REDRIVES, killed[EVENTS + 1];
byte blame[EVENTS + 1];			/* how often it failed by itself */
byte announced;					/* an event whose attempt is counted */
byte redriven;					/* since the announcement: they come after it */
bool seeks, resting;

#define has(set, p)	(((set) >> (p)) & 1)

/* cqrs_parked_insert() */
inline park(q)
{
	/* Is there one before it? And one behind it, that is the head now? */
	other = 0; k = 1;
	do
	:: k > EVENTS -> break
	:: else ->
		if
		:: k != q && has(parked, k) && lane(k) == lane(q) && next ->
			if
			:: k < q -> other = k
			:: k > q && other == 0 ->
#ifndef BROKEN_HEAD
				head = head & ~(1 << k)
#else
				skip
#endif
			:: else
			fi
		:: else
		fi;
		k++
	od;
	parked = parked | (1 << q);
	attempts[q] = 0; killed[q] = 0; blame[q] = 0;
	if
	:: other == 0 -> head = head | (1 << q); next = 1
	:: else
	fi;
	other = 0; k = 0
}

/* cqrs_parked_delete(), cqrs_parked_close() */
inline done(q)
{
	parked = parked & ~(1 << q);
	head = head & ~(1 << q);
	k = q + 1;
#ifndef BROKEN_DONE
	do
	:: k > EVENTS -> break
	:: k <= EVENTS && has(parked, k) && lane(k) == lane(q) -> head = head | (1 << k); break
	:: else -> k++
	od;
#endif
	k = 0;
#ifdef BROKEN_CLEAR
	next = 0
#else
	next = (head != 0)
#endif
}

inline bury(q)
{
#ifndef BROKEN_BURY
	dead = dead | (1 << q);
#endif
	done(q)
}

inline failed(q)
{
	attempts[q]++;
	assert(attempts[q] <= blame[q]);
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
	k = 0;
	delivered = delivered | (1 << q)
}

/* deliver_parked() */
inline try_parked()
{
	if
	:: deliver(p); done(p); clean = 0
	:: failures > 0 -> failures--;
		/* By itself; or, behind others, who knows. */
		blame[p]++;
		if
		:: clean -> failed(p)
#ifdef BROKEN_COMPANY
		:: !clean -> failed(p)
#endif
		:: else -> n = BATCH
		fi
	:: failures > 0 && !clean -> failures--;
#ifdef BROKEN_COMPANY
		failed(p)
#else
		n = BATCH					/* it comes first next time */
#endif
	/* cqrs_target_announce(): counted, and committed */
	:: failures > 0 && clean && n == 0 ->
		blame[p]++;
#ifndef BROKEN_ATTEMPT
		attempts[p]++;
#endif
		announced = p; n = BATCH
	fi
}

/* deliver_new() */
inline try_new()
{
	/* cqrs_lane_state() */
	blocked = 0; k = 1;
	do
	:: k > EVENTS -> break
	:: else ->
		if
		:: next && has(parked, k) && lane(k) == lane(q) -> blocked = 1
		:: else
		fi;
		k++
	od;
	k = 0;
#ifdef BROKEN_BLOCKS
	blocked = 0;
#endif
	if
	:: blocked -> park(q)
	:: !blocked -> deliver(q); clean = 0
	:: !blocked && failures > 0 -> failures--;
		park(q);
		blame[q]++;
		if
		:: clean -> failed(q)
		:: else
		fi
	:: !blocked && failures > 0 && !clean -> failures--;
		park(q);
#ifdef BROKEN_COMPANY
		failed(q)
#endif
	fi;
	position = q
}

proctype worker()
{
	byte p, n, k, q, other;
	bool blocked, clean;

	do
	:: atomic { announced == 0 ->
			n = 0; clean = 1;
			do
			:: n >= BATCH -> break
			:: n < BATCH ->
				/* Which of the lanes' heads is due first. */
				p = 0;
				if
				:: next && has(head, 1) -> p = 1
				:: next && has(head, 2) -> p = 2
				:: next && has(head, 3) -> p = 3
				:: next && has(head, 4) -> p = 4
#if EVENTS > 4
				:: next && has(head, 5) -> p = 5
#endif
				:: else
				fi;
				q = position + 1;
				if
				:: p != 0 && q <= EVENTS -> p = 0		/* its time has not come */
				:: true
				fi;
				if
				:: p != 0 -> try_parked()
				:: p == 0 && q <= EVENTS -> try_new()
				:: else -> resting = (n == 0); break
				fi;
				n++
			:: n > 0 && n < BATCH -> break				/* its time is over */
			od;
			p = 0; n = 0; q = 0; blocked = 0; clean = 0;
			if
			:: resting -> break
			:: else
			fi
		}
	:: atomic { announced != 0 ->
			/* The event that was announced; it may kill the process. */
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
			p = 0
		}
	od
}

/* cqrs_redrive(): all dead letters, under the cursor's lock */
proctype owner()
{
	byte q, k, other;
	bool before;

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
						before = next;
						park(q);
#ifdef BROKEN_NEXT
						next = before;
#endif
						redriven = redriven | (announced != 0 -> 1 << q : 0)
					:: else
					fi;
					dead = dead & ~(1 << q)
				:: else
				fi;
				q++
			od;
			q = 0; before = 0
		}
	/* cqrs_seek('earliest'): what is parked comes again; dead letters stay. */
	:: atomic { !seeks && !resting ->
			seeks = 1;
			position = 0; parked = 0; head = 0; next = 0; delivered = 0
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
