/*
 * The durable tick: a broker is sent nothing that a crash or a failover takes
 * back, and everything else that is announced, whoever ticks by hand
 * meanwhile.
 *
 * Models: tick.c (cqrs_tick_record, cqrs_tick_newest, delete_before),
 * manager.c (look, tick), relay.c (begin), worker.c (deliver),
 * target_broker.c (read_new).
 *
 * Commits are numbered in the order of the write-ahead log, ticks among them;
 * a snapshot is how many of them it shows. The standby has those up to
 * replicated. A commit that waits for the standby is visible when it has it;
 * if somebody cancels the wait, it is visible before that. Each event is sent
 * in a batch of its own. Late commits are in windows.pml.
 */
/* broken: BROKEN_HAND_TICK a newest tick above the durable one is as good as none */
/* broken: BROKEN_VISIBLE a broker is sent what a visible tick shows */
/* broken: BROKEN_ASYNC a tick does not wait for its commit */
/* broken: BROKEN_DELETE whoever ticks deletes all that is before his own tick */
/* broken: BROKEN_DELETE_RECORDED ... all but the durable one */
/* broken: BROKEN_SAID_FIRST the manager says that the tick is durable before its commit */
/* broken: BROKEN_DUE_FIRST a broker's cursor is due before the tick */
/* deep: RESTARTS=1 */

#ifndef EVENTS
#define EVENTS		2
#endif
#ifndef HAND
#define HAND		1			/* ticks by hand */
#endif
#ifndef RESTARTS
#define RESTARTS	0			/* of the manager */
#endif
#define MAX_TICKS	16

byte lsn;						/* commits in the log */
byte replicated;				/* how many the standby has */
byte event_lsn[EVENTS + 1];		/* of each event's commit */
byte events;					/* committed and visible */

byte next_tick = 1, ticker_lock;
byte shown_by[MAX_TICKS];		/* events that a tick shows; by id */
short visible;					/* ticks that are there, by id */
byte newest;					/* the newest of them */

byte durable_tick;				/* in shared memory */
byte recorded_tick;				/* the same; the manager's last, durable soon */
byte looks, due_look, drained_look;
bool pending, first = 1;		/* announced; the manager has not looked yet */


byte cursor;					/* events sent and recorded */
byte done;						/* emitter, hand */

proctype emitter()
{
	do
	:: events < EVENTS ->
		atomic {
			/* synchronous_commit = off: visible before anything has it */
			lsn++;
			event_lsn[events + 1] = lsn;
			events++
		}
		pending = 1
	:: else -> break
	od;
	done++
}

proctype standby()
{
end:
	do
	:: atomic { replicated < lsn -> replicated = lsn }
	od
}

/* cqrs_tick_record() and its commit */
inline record(by_manager, cancelled)
{
	atomic { ticker_lock == 0 -> ticker_lock = 1 }
	atomic {
		id = next_tick; next_tick++; snapshot = events;
		recorded_tick = (by_manager -> id : recorded_tick)
	}
	/* delete_before() */
	atomic {
#ifdef BROKEN_DELETE
		kept = 0;
#endif
#ifdef BROKEN_DELETE_RECORDED
		kept = 1 << durable_tick;
#endif
#if !defined(BROKEN_DELETE) && !defined(BROKEN_DELETE_RECORDED)
		kept = (1 << durable_tick) | (1 << recorded_tick);
#endif
		lsn++; my_lsn = lsn
	}
#ifndef BROKEN_ASYNC
	if
	:: replicated >= my_lsn
	:: cancelled -> skip
	fi;
#endif
	/* Visible, and then the lock */
	atomic {
		shown_by[id] = snapshot;
		visible = (visible & kept) | (1 << id);
		newest = id;
		ticker_lock = 0;
		snapshot = 0; kept = 0; my_lsn = 0
	}
}

/* cqrs_tick(); somebody may cancel its wait for the standby. */
proctype hand()
{
	byte id, snapshot, my_lsn, n;
	short kept;

	do
	:: n < HAND -> n++; record(false, true); id = 0
	:: break
	od;
	done++
}

proctype manager()
{
	byte id, snapshot, my_lsn, look, restarts;
	short kept;

end:
	do
	:: pending || first ->
		/* look() */
		atomic { pending = 0; look = looks + 1; looks = look }
#ifdef BROKEN_DUE_FIRST
		due_look = look;
#endif
		/* tick() */
#ifdef BROKEN_SAID_FIRST
		durable_tick = next_tick;
#endif
		record(true, false);
		durable_tick = id;
		atomic { due_look = look; first = 0; id = 0; look = 0 }
	:: atomic { restarts < RESTARTS ->
			/* Another one: it knows nothing, and looks and ticks first. */
			restarts++;
			durable_tick = 0;
			recorded_tick = 0;
			first = 1
		}
	od
}

/* A batch with wanted_look = due_look: exchange by exchange, until drained */
proctype worker()
{
	byte wanted, tick, upper;
	short seen;

end:
	do
	:: atomic { due_look > drained_look -> wanted = due_look }
		/* begin(): the snapshot, and then what shared memory says */
more:
		atomic { seen = visible; tick = newest }
		atomic {
#ifndef BROKEN_VISIBLE
#ifdef BROKEN_HAND_TICK
			if
			:: tick > durable_tick -> tick = 0
			:: else
			fi;
#else
			/* cqrs_tick_newest(): the newest that is at most the durable one */
			do
			:: tick > 0 && (tick > durable_tick || !((seen >> tick) & 1)) -> tick--
			:: else -> break
			od;
#endif
#endif
			upper = (tick == 0 -> 0 : shown_by[tick]);
			seen = 0; tick = 0
		}
		if
		:: cursor < upper ->
			atomic {
				/* Sent: it is out in the world. */
				assert(event_lsn[cursor + 1] <= replicated);
				cursor++;
				upper = 0
			};
			goto more
		:: else ->
			atomic { drained_look = wanted; wanted = 0 }
		fi
	od
}

/* When nothing is to be done any more, all was sent. */
proctype quiet()
{
	atomic {
		done == 2 && !pending && !first && ticker_lock == 0 &&
			due_look == drained_look && due_look == looks ->
		assert(cursor == EVENTS)
	}
}

init
{
	atomic {
		run emitter();
		run standby();
		run hand();
		run manager();
		run worker();
		run quiet()
	}
}
