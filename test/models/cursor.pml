/*
 * The cursor and its movers: nothing is delivered twice or passed by, whoever
 * moves the cursor, and wherever.
 *
 * Models: relay.c (begin), cursor.c (cqrs_cursor_read, cqrs_cursor_append),
 * subscription.c (cqrs_subscription_lock), operation.c (seek), window_scan.c
 * (cqrs_window_since), tick.c.
 *
 * A worker, a client that pulls, and somebody who seeks to a time move one
 * cursor while transactions of one event each commit. A mover
 * reads the newest row of the cursor that its snapshot shows; what it appends
 * has a primary key. A batch is all of a window;
 * batches within a window are in windows.pml.
 */
/* broken: BROKEN_SNAPSHOT_FIRST the snapshot is taken before the lock */
/* broken: BROKEN_NO_FENCE the same, and the table has no primary key */
/* broken: BROKEN_UNLOCK_FIRST the lock is released before the commit */
/* broken: BROKEN_OLD_ROWS the events are read with a snapshot from before the lock */
/* broken: BROKEN_SEEK_SNAPSHOT a seek's scan has an older snapshot than its xmin is of */
/* broken: BROKEN_SEEK_TICK after a seek to a time, any tick is a later one */
/* deep: XACTS=3 BATCHES=2 TICKS=2 */

#ifndef XACTS
#define XACTS		2
#endif
#ifndef BATCHES
#define BATCHES		1			/* of each mover, but for the last */
#endif
#ifndef TICKS
#define TICKS		1
#endif
#define shows(snapshot, xid)	(((snapshot) >> (xid)) & 1)

byte next_xid, running, clock, ended, committed;
byte time_of[XACTS];			/* when the transaction emitted; 0: not yet */

byte next_tick = 1, newest_tick, newest_snapshot;

/*
 * cqrs.cursor: the newest row that is committed. An older one, which somebody
 * has read by then, is his own copy.
 */
byte seq, row_tick, row_lower;
byte cursor_lock, movers;

byte delivered;					/* since the last seek */
byte first;						/* up to where the last seek went */

#ifdef BROKEN_NO_FENCE
#define BROKEN_SNAPSHOT_FIRST
#endif

proctype emitter(byte xid)
{
	atomic { next_xid == xid -> next_xid++; running = running | (1 << xid) }
	atomic { clock++; time_of[xid] = clock }
	atomic {
		running = running & ~(1 << xid);
		ended = ended | (1 << xid);
		committed = committed | (1 << xid)
	}
}

proctype ticker()
{
	byte n;

	do
	:: n < TICKS ->
		n++;
		/* The id before the snapshot, both under a lock: see windows.pml. */
		atomic {
			newest_tick = next_tick;
			next_tick++;
			newest_snapshot = ended
		}
	:: break
	od
}

inline lock()
{
	atomic { cursor_lock == 0 -> cursor_lock = 1 }
}

/* The primary key: two moves from the same row do not both commit. */
inline append(to_tick, to_lower)
{
	atomic {
#ifdef BROKEN_NO_FENCE
		seq = my_seq;
#endif
		assert(seq == my_seq);	/* no conflict ever happens */
		seq = my_seq + 1;
		row_tick = to_tick;
		row_lower = to_lower;
		delivered = delivered | mine;
#ifndef BROKEN_UNLOCK_FIRST
		cursor_lock = 0;
#endif
		mine = 0; snapshot = 0; my_seq = 0; my_lower = 0; t_tick = 0; t_snapshot = 0;
		t_latest = 0
	}
}

inline deliver()
{
	atomic {
		mine = t_snapshot & t_latest & committed & ~my_lower;
		assert((mine & delivered) == 0);
		assert(first == 0 || (mine & ((1 << first) - 1)) == 0)
	}
}

/* A worker: its windows end at a snapshot of its own. */
proctype worker()
{
	byte my_seq, my_lower, snapshot, mine, t_tick, t_snapshot, t_latest, n, i;
	bool last;

	do
	:: atomic { n < BATCHES || (movers == 0 && next_xid == XACTS && running == 0) ->
			last = (movers == 0 && next_xid == XACTS && running == 0);
			if
			:: last
			:: else -> n++
			fi
		}
#if defined(BROKEN_SNAPSHOT_FIRST) || defined(BROKEN_OLD_ROWS)
		atomic { t_latest = ended; my_seq = seq; my_lower = row_lower }
#endif
		lock();
		t_snapshot = ended;
		atomic { t_tick = next_tick; next_tick++ }
#ifdef BROKEN_OLD_ROWS
		my_seq = seq; my_lower = row_lower;
#endif
#if !defined(BROKEN_SNAPSHOT_FIRST) && !defined(BROKEN_OLD_ROWS)
		atomic { t_latest = ended; my_seq = seq; my_lower = row_lower }
#endif
		deliver();
#ifdef BROKEN_UNLOCK_FIRST
		cursor_lock = 0;
#endif
		append(t_tick, t_snapshot);
		if
		:: last -> break
		:: else
		fi
	od;
	atomic {
		/* What a seek went back to comes again, too. */
		do
		:: i == XACTS -> break
		:: else ->
			assert(shows(delivered, i) || i < first);
			i++
		od
	}
}

/* A client that pulls: its windows end at a tick. */
proctype puller()
{
	byte my_seq, my_lower, snapshot, mine, t_tick, t_snapshot, t_latest, n;

	do
	:: n < BATCHES ->
		n++;
		lock();
		atomic {
			t_latest = ended; my_seq = seq; my_lower = row_lower;
			t_tick = newest_tick; t_snapshot = newest_snapshot
		}
		if
		:: t_tick > row_tick ->
			deliver();
#ifdef BROKEN_UNLOCK_FIRST
			cursor_lock = 0;
#endif
			append(t_tick, t_snapshot)
		:: else -> atomic { cursor_lock = 0; t_latest = 0; my_seq = 0; my_lower = 0; t_tick = 0; t_snapshot = 0 }
		fi
	:: break
	od;
	movers--
}

/* cqrs_seek(subscription, time) */
proctype seeker()
{
	byte my_seq, my_lower, snapshot, mine, t_tick, t_snapshot, t_latest, i;
	byte xmin, since;

	lock();
	my_seq = seq; my_lower = row_lower;
	since = clock;				/* any time that has been */
#ifdef BROKEN_SEEK_SNAPSHOT
	snapshot = ended;
#endif
	/* cqrs_window_since(): the oldest transaction that runs ... */
	d_step {
		xmin = 0;
		do
		:: xmin < next_xid && shows(ended, xmin) -> xmin++
		:: else -> break
		od
	}
	/* ... and the first of those that can be seen that emitted since then */
#ifndef BROKEN_SEEK_SNAPSHOT
	snapshot = ended;
#endif
	atomic {
		i = 0;
		do
		:: i == xmin -> break
		:: else ->
			if
			:: shows(snapshot, i) && time_of[i] >= since && time_of[i] != 0 -> break
			:: else -> i++
			fi
		od;
		xmin = i
	}
#ifdef BROKEN_SEEK_TICK
	t_tick = 0;
#else
	/*
	 * start_since(): the newest tick may end a window if it shows all that the
	 * cursor does; else only ticks that are yet to be do.
	 */
	atomic {
		if
		:: newest_tick != 0 && (((1 << xmin) - 1) & ~newest_snapshot) == 0 ->
			t_tick = newest_tick - 1
		:: else -> t_tick = next_tick; next_tick++
		fi
	}
#endif
	atomic {
		i = 0;
		do
		:: i == XACTS -> break
		:: else ->
			/* All that emitted since then is beyond. */
			assert(i >= xmin || time_of[i] < since || time_of[i] == 0);
			i++
		od;
		i = 0;
		delivered = delivered & ((1 << xmin) - 1);
		first = xmin;
		append(t_tick, (1 << xmin) - 1)
	}
	movers--
}

init
{
	byte i;

	atomic {
		movers = 2;
		do
		:: i < XACTS -> run emitter(i); i++
		:: else -> break
		od;
		i = 0;
		run ticker();
		run puller();
		run seeker();
		run worker()
	}
}
