/*
 * Ticks and windows: every event is delivered once, late or not, and after
 * whatever its transaction had seen.
 *
 * Models: emit.c (writer_open, fill_slot), tick.c (cqrs_tick_record),
 * relay.c (begin, may_read, open_window, cqrs_relay_next, cqrs_relay_advance),
 * window.c (load_source).
 *
 * Transactions emit, and commit or not, in any order. Two movers share a
 * cursor: a worker, whose windows end at a snapshot of its own, and somebody
 * who drains or receives in a REPEATABLE READ transaction, whose windows end
 * at a tick that its transaction's snapshot shows. A snapshot is the set of
 * the transactions that had ended: that is what xmin, xmax and xip say.
 *
 * Left out: chunks, segments, topics, partitions, parked events.
 */
/* broken: BROKEN_POSITION events are read by position, behind the last one */
/* broken: BROKEN_UPPER a window has whatever the latest snapshot shows */
/* broken: BROKEN_NEW_END inside a window, another end is taken */
/* broken: BROKEN_TICK_ID a tick's id is drawn after its snapshot */
/* broken: BROKEN_OLD_TICK a tick before the cursor is read up to */
/* deep: XACTS=3 EVENTS=3 ROLLBACKS=1 ABORTS=1 */

#ifndef XACTS
#define XACTS		2			/* transactions that emit */
#endif
#ifndef EVENTS
#define EVENTS		3			/* positions */
#endif
#ifndef WORKER
#define WORKER		1			/* the worker's batches before all have ended */
#endif
#ifndef REPEATABLE
#define REPEATABLE	1			/* batches in REPEATABLE READ */
#endif
#ifndef ABORTS
#define ABORTS		0			/* batches that are rolled back */
#endif
#ifndef ROLLBACKS
#define ROLLBACKS	0			/* of transactions, and to savepoints */
#endif
#ifndef TICKS
#define TICKS		1
#endif

#define shows(snapshot, xid)	(((snapshot) >> (xid)) & 1)

byte next_xid, ended, committed;	/* ended, committed: by xid */
byte next_position = 1;
byte xid_of[EVENTS + 1], saw[EVENTS + 1];
byte rows;						/* positions whose row was not rolled back */
byte emitters = XACTS;

byte next_tick = 1;				/* the sequence of tick ids */
byte newest_tick, newest_snapshot;	/* the newest committed tick */
byte ticker_lock, cursor_lock;

/* The cursor's newest row. */
byte tick_id, lower, until_tick, upper, position;

byte delivered;					/* positions */
byte aborts = ABORTS, rollbacks = ROLLBACKS;

#ifdef BROKEN_OLD_TICK
#define after		!=
#else
#define after		>
#endif
#define exists(p)	(shows(rows, p) && shows(committed, xid_of[p]))

proctype emitter(byte xid)
{
	byte n;

	/*
	 * writer_open(): the transaction gets its id before any position. Nothing
	 * else tells the transactions apart: so they begin in turn.
	 */
	atomic { next_xid == xid -> next_xid++ }
	do
	:: atomic { next_position <= EVENTS && n < 2 ->
			/*
			 * fill_slot(): what it saw counts up to here. The row follows, but
			 * nobody sees it before the commit.
			 */
			saw[next_position] = committed;
			xid_of[next_position] = xid;
			if
			:: rows = rows | (1 << next_position)
			:: rollbacks > 0 -> rollbacks--		/* to a savepoint */
			fi;
			next_position++;
			n++
		}
	:: break
	od;
	atomic {
		if
		:: committed = committed | (1 << xid)
		:: rollbacks > 0 -> rollbacks--
		fi;
		ended = ended | (1 << xid);
		emitters--
	}
}

/* cqrs_tick_record() */
proctype ticker()
{
	byte id, snapshot, n;

	do
	:: n < TICKS ->
		n++;
		atomic { ticker_lock == 0 -> ticker_lock = 1 }
#ifdef BROKEN_TICK_ID
		snapshot = ended;
		atomic { id = next_tick; next_tick++ }
#else
		atomic { id = next_tick; next_tick++ }
		snapshot = ended;
#endif
		/* The commit, and then the lock. */
		atomic {
			newest_tick = id;
			newest_snapshot = snapshot;
			ticker_lock = 0
		}
	:: break
	od
}

/* Is the event in the window that is open, for who reads with latest? */
inline find_next(found)
{
	found = 1;
	do
	:: found > EVENTS -> found = 0; break
	:: found <= EVENTS &&
#ifdef BROKEN_POSITION
	   found > c_position && exists(found) && shows(latest, xid_of[found]) ->
#else
	   found > c_position && exists(found) && shows(latest, xid_of[found]) &&
	   !shows(c_lower, xid_of[found]) &&
#ifndef BROKEN_UPPER
	   shows(c_upper, xid_of[found]) &&
#endif
	   true ->
#endif
		break
	:: else -> found++
	od
}

/* The cursor's lock is held; t_id and t_snapshot are where to read up to. */
inline batch(t_id, t_snapshot, max)
{
	d_step {
		c_tick = tick_id; c_lower = lower; c_until = until_tick;
		c_upper = upper; c_position = position;
		n = 0; done = 0; p = 0
	}
#ifndef BROKEN_POSITION
	d_step {
		/* may_read(), open_window() */
		if
#ifndef BROKEN_OLD_TICK
		:: t_id < c_tick || t_id < c_until -> done = 1
#endif
		:: else ->
			if
			:: c_until == 0 && t_id after c_tick ->
				c_until = t_id; c_upper = t_snapshot; c_position = 0
#ifdef BROKEN_NEW_END
			:: c_until != 0 && t_id > c_until ->
				c_until = t_id; c_upper = t_snapshot
#endif
			:: c_until != 0 -> skip
			:: else -> done = 1
			fi
		fi
	}
#endif
	/* cqrs_relay_next(), and the handler, event by event */
	do
	:: done || n == max -> break
	:: else ->
		d_step {
			find_next(p);
			if
			:: p != 0 ->
				assert(!shows(delivered | mine, p));
				/* What it saw comes before it. */
				i = 1;
				do
				:: i > EVENTS -> break
				:: else ->
					assert(!(exists(i) && shows(saw[p], xid_of[i])) ||
						   shows(delivered | mine, i));
					i++
				od;
				mine = mine | (1 << p);
				c_position = p;
				n++
			:: p == 0 && n > 0 -> done = 1
			:: p == 0 && n == 0 && c_until != 0 ->
				/* cqrs_relay_close_window(), open_window() */
				c_tick = c_until; c_lower = c_upper; c_until = 0; c_position = 0;
				if
				:: t_id after c_tick ->
					c_until = t_id; c_upper = t_snapshot
				:: else -> done = 1
				fi
			:: else -> done = 1
			fi;
			i = 0
		}
	od;
	/*
	 * cqrs_relay_advance(): is the window known to be at its end? Then the
	 * commit, or an abort, and then the lock.
	 */
	atomic {
		find_next(p);
		if
		:: p == 0 && n > 0 ->
			c_tick = c_until; c_lower = c_upper; c_until = 0; c_position = 0
		:: else
		fi;
		if
		:: tick_id = c_tick; lower = c_lower; until_tick = c_until;
			upper = c_upper; position = c_position;
			delivered = delivered | mine
		:: aborts > 0 -> aborts--; n = 1
		fi;
		cursor_lock = 0; mine = 0; c_position = 0;
		c_tick = 0; c_lower = 0; c_until = 0; c_upper = 0; latest = 0; done = 0; p = 0
	}
}

proctype worker()
{
	byte c_tick, c_lower, c_until, c_upper, c_position, mine, latest, w_tick, w_snapshot;
	byte n, p, i, runs;
	bool done, last;

	do
	:: atomic { cursor_lock == 0 && (runs < WORKER || emitters == 0) ->
			cursor_lock = 1;
			if
			:: emitters > 0 -> runs++
			:: else -> runs = WORKER
			fi
		}
		/* begin(): our own end, and then what cursor and rows are read with */
		atomic { w_snapshot = ended; last = (emitters == 0) }
		atomic { w_tick = next_tick; next_tick++ }
		latest = ended;
		batch(w_tick, w_snapshot, 1);
		if
		:: last && n == 0 -> break
		:: else -> n = 0; last = 0; w_tick = 0; w_snapshot = 0
		fi
	od;
	/* Nothing was skipped. */
	atomic {
		p = 1;
		do
		:: p > EVENTS -> break
		:: else -> assert(!exists(p) || shows(delivered, p)); p++
		od
	}
}

/* cqrs_drain() or cqrs_receive() in a REPEATABLE READ transaction */
proctype repeatable()
{
	byte c_tick, c_lower, c_until, c_upper, c_position, mine, latest, x_tick, x_snapshot;
	byte n, p, i, runs;
	bool done;

	do
	:: runs < REPEATABLE ->
		runs++;
		/* The transaction's snapshot, and the newest tick that it shows */
		atomic { x_tick = newest_tick; x_snapshot = newest_snapshot }
		atomic { cursor_lock == 0 -> cursor_lock = 1 }
		latest = ended;
		batch(x_tick, x_snapshot, 1);
		n = 0; x_tick = 0; x_snapshot = 0
	:: break
	od
}

init
{
	byte i;

	atomic {
		do
		:: i < XACTS -> run emitter(i); i++
		:: else -> break
		od;
		i = 0;
		run ticker();
		run worker();
		run repeatable()
	}
}
