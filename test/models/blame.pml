/*
 * Whose fault it is that an event was not delivered: an innocent one is never given
 * up for an outage, and no attempt of it counts while that lasts; one that is at
 * fault neither stops the others nor is kept for ever.
 *
 * Models: blame.c, target_handler.c (record_failure, decide), target_broker.c
 * (reject_new, reject_parked, passed, decide, choose_parked), failure.c.
 *
 * Each event is of a lane of its own. Up to BAD of them are at fault, any of them
 * but the last. The server, or broker, is down for a while, once, from any step
 * to any other. A probe tries what is new, and then what is parked, beginning
 * with what was put off longest ago, until all was tried or an outage is found.
 * Time is left out: the next probe may begin at once. An outage that ends between
 * an event and the one that passes next costs an innocent one an attempt, or as
 * many of them as are too few for an outage; but no second one.
 */
/* broken: BROKEN_CLASS an error of a suspect class is the event's at once */
/* broken: BROKEN_NO_OUTAGE it is no outage, however many lanes fail */
/* broken: BROKEN_LONE without another lane, the event is at fault */
/* broken: BROKEN_BEFORE what passed before is a witness, too */
/* broken: BROKEN_NEVER whoever is a suspect once is one for ever */
/* broken: BROKEN_TURNS of those that are parked, the same come first each time */
/* broken: BROKEN_LOSE an event that was put off is forgotten */
/* progress */
/* fair */

#ifndef EVENTS
#define EVENTS		5
#endif
#ifndef BAD
#define BAD			3
#endif
#define LANES		3			/* CQRS_SUSPECT_LANES; with BAD < LANES, all is easy */
#define ATTEMPTS	2			/* max_attempts */

bool bad[EVENTS + 1];
byte emitted;					/* 1 .. emitted are there */
byte position;					/* the cursor's */
bool up = 1;					/* the server; down at most once */
bool over;						/* it was, and is up again */
bool rest;						/* nothing more happens */

byte queue[EVENTS + 1];			/* what is parked, in the order of due_at */
byte nqueue;
byte attempts[EVENTS + 1];
bool known[EVENTS + 1];			/* failed_at != 0, and passed_at is later */
bool failed[EVENTS + 1];		/* failed_at != 0 */
byte done;						/* sets of events */
byte dead;
byte innocents;					/* of which an attempt counted */

#define has(set, e)	(((set) >> (e)) & 1)

/* The attempt of event x counts. */
inline charge(x)
{
	attempts[x]++;
	assert(bad[x] || up);			/* no innocent one while the server is down */
	innocents = innocents + (bad[x] -> 0 : 1);
	assert(innocents < LANES);
	if
	:: attempts[x] >= ATTEMPTS ->
		assert(bad[x]);				/* none is given up */
		dead = dead | (1 << x)
	:: else -> failed[x] = 1; known[x] = 1; queue[nqueue] = x; nqueue++
	fi
}

/* Events that failed are put off: behind those that are parked already. */
inline put_off()
{
	k = 0;
	do
	:: k >= npending -> break
	:: else ->
		failed[pending[k]] = 1; known[pending[k]] = 0;
#ifndef BROKEN_LOSE
#ifdef BROKEN_TURNS
		m = nqueue;
		do
		:: m == k -> break
		:: else -> queue[m] = queue[m - 1]; m--
		od;
		m = 0;
		queue[k] = pending[k]; nqueue++;
#else
		queue[nqueue] = pending[k]; nqueue++;
#endif
#endif
		k++
	od;
	k = 0; npending = 0; nsuspects = 0
}

/* cqrs_evidence_convict() */
inline convict()
{
	k = 0;
	do
	:: k >= npending -> break
	:: else -> charge(pending[k]); k++
	od;
	k = 0; npending = 0; nsuspects = 0
}

/* An event passes: what failed before is at fault, and is known to be. */
inline pass(x)
{
	done = done | (1 << x);
	passed = 1;
	k = 1;
	do
	:: k > EVENTS -> break
	:: else ->
#ifndef BROKEN_NEVER
		known[k] = failed[k];
#endif
		k++
	od;
	k = 0;
#ifndef BROKEN_NEVER
	convict()
#else
	put_off()
#endif
}

inline fail(x)
{
#ifdef BROKEN_CLASS
	charge(x)
#else
	if
#ifdef BROKEN_BEFORE
	:: passed -> charge(x)
#endif
	:: else ->
		/* cqrs_fault_is_known() */
		nsuspects = nsuspects + (known[x] || attempts[x] > 0 -> 0 : 1);
		pending[npending] = x; npending++
	fi
#endif
}

inline try(x)
{
	if
	:: up && !bad[x] -> pass(x)
	:: else -> fail(x)
	fi
}

#ifdef BROKEN_NO_OUTAGE
#define is_outage	(nsuspects > EVENTS)
#else
#define is_outage	(nsuspects >= LANES)
#endif

active proctype worker()
{
	byte pending[EVENTS + 1];
	byte npending, nsuspects, ndue, x, k, m;
	bool probing, passed;

	do
	:: atomic { !probing && (position < emitted || nqueue > 0) ->
			probing = 1; passed = 0; ndue = nqueue
		}
	:: atomic { probing && !is_outage && position < emitted ->
			position++; x = position; try(x); x = 0
		}
	:: atomic { probing && !is_outage && position == emitted && ndue > 0 ->
			/* The head; what failed meanwhile is behind it. */
			x = queue[0]; m = 1;
			do
			:: m >= nqueue -> break
			:: else -> queue[m - 1] = queue[m]; m++
			od;
			m = 0; nqueue--; queue[nqueue] = 0; ndue--;
			try(x); x = 0
		}
	:: atomic { probing && (is_outage || (position == emitted && ndue == 0)) ->
			/* decide() */
			if
			:: is_outage -> put_off()
#ifndef BROKEN_LONE
			:: !is_outage && nsuspects > 0 -> put_off()
			:: !is_outage && nsuspects == 0 -> convict()
#else
			:: !is_outage -> convict()
#endif
			fi;
			probing = 0; passed = 0; ndue = 0
		}
	:: atomic { !probing && rest && position == emitted && nqueue == 0 -> break }
	od;

	/* All is delivered, or dead, and only what is at fault. */
	atomic {
		x = 1;
		do
		:: x > EVENTS -> break
		:: else ->
			assert(has(done, x) || has(dead, x));
			assert(has(dead, x) == bad[x]);
			x++
		od
	}
}

active proctype world()
{
	byte n;

	atomic {
		do
		:: n < BAD ->
			if
			:: !bad[1] -> bad[1] = 1
			:: !bad[2] -> bad[2] = 1
			:: !bad[3] -> bad[3] = 1
			:: !bad[4] -> bad[4] = 1
			fi;
			n++
		:: break
		od;
		n = 0
	}
	do
	:: atomic { emitted < EVENTS -> emitted++ }
	:: atomic { up && !over -> up = 0 }
	:: atomic { !up -> up = 1; over = 1 }
	:: atomic { up && emitted == EVENTS -> over = 1; rest = 1; break }
	od
}
