/*
 * epoch.pml: the partitions of a subscription change while it is delivered, see
 * src/subscription/epoch.c and src/delivery/relay.c.
 *
 * Events of two keys become visible one after the other. With one partition,
 * both keys are in it; with two, each has its own. Two movers deliver: each
 * chooses a partition that has something, and by the time that it has the
 * lock that partition may be gone. A delivery may fail: then the event is
 * parked, and what follows of its key behind it. Somebody changes the number of
 * partitions, also back while the change is open; somebody closes.
 *
 * What must hold: each event is delivered once, each key in order, and in the
 * end everything is, and the change done. No cursor is moved that is not there.
 *
 * Leases, seeks and late commits are not in here.
 */
/* deep: DEEP=1 */
/* broken: BROKEN_LIMIT windows go beyond the end of the epoch */
/* broken: BROKEN_OPEN the end of the epoch is chosen before the locks are taken */
/* broken: BROKEN_CLOSE the new cursors begin while an old one is behind */
/* broken: BROKEN_LOCKS whoever changes the number locks only the cursors that there were before he waited */
/* broken: BROKEN_PARKED what is parked stays where it was */
/* broken: BROKEN_REGISTRY how many partitions there are is read before the lock is had */

#ifdef DEEP
#define EVENTS	6
#define FAILURES	2
#define CHANGES	3
#else
#define EVENTS	4
#define FAILURES	1
#define CHANGES	2
#endif
#define NOBODY	9
#define KEY(event)			((event) & 1)
#define PARTITION(key, n)	((n) == 1 -> 0 : (key))

/* What is committed. A snapshot is how many events it shows. */
byte visible = 0;
byte partitions = 1;
byte next_partitions = 0;	/* 0: no epoch is open */
byte epoch_end;
byte cursor[2];				/* all that this snapshot shows is delivered */
byte parked_at[2];			/* of each key, in which partition ... */
byte parked_to[2];			/* ... up to which event; 0: nothing is parked */

byte holder[2] = NOBODY;	/* the cursors' locks */
byte expected[2];			/* of each key, the event that comes next */
byte failures = 0;
bool emitted = false;

#define LIMIT	(next_partitions != 0 -> epoch_end : EVENTS)
#define HAS_PARKED(p)	((parked_to[0] != 0 && parked_at[0] == (p)) || (parked_to[1] != 0 && parked_at[1] == (p)))
#ifdef BROKEN_LIMIT
#define HAS_WORK(p)	((p) < partitions && (cursor[p] < visible || HAS_PARKED(p)))
#define ARRIVED(p)	(cursor[p] >= epoch_end)
#else
#define HAS_WORK(p)	((p) < partitions && ((cursor[p] < visible && cursor[p] < LIMIT) || HAS_PARKED(p)))
#ifdef BROKEN_CLOSE
#define ARRIVED(p)	true
#else
#define ARRIVED(p)	(cursor[p] == epoch_end)
#endif
#endif
#define ALL_ARRIVED	(ARRIVED(0) && (partitions == 1 || ARRIVED(1)))

inline deliver(event)
{
	assert(event == expected[KEY(event)]);
	expected[KEY(event)] = expected[KEY(event)] + 2
}

/*
 * One batch of partition p, of n, up to the snapshot: a transaction, of which
 * nobody sees anything before its commit.
 */
inline batch()
{
	/* What is parked, if it is tried now. */
	k = 0;
	do
	:: k < 2 && parked_to[k] != 0 && parked_at[k] == p ->
		do
		:: expected[k] < parked_to[k] -> deliver(expected[k])
		:: expected[k] >= parked_to[k] -> parked_to[k] = 0; break
		:: cursor[p] < upto -> break	/* not yet due */
		od;
		k++
	:: k < 2 && !(parked_to[k] != 0 && parked_at[k] == p) -> k++
	:: k == 2 -> break
	od;
	do
	:: cursor[p] < upto ->
		event = cursor[p];
		cursor[p] = cursor[p] + 1;
		k = KEY(event);
		if
		:: PARTITION(k, n) != p
		:: PARTITION(k, n) == p && parked_to[k] != 0 && parked_at[k] == p -> parked_to[k] = event + 2
		:: PARTITION(k, n) == p && !(parked_to[k] != 0 && parked_at[k] == p) ->
			if
			:: deliver(event)
			:: failures < FAILURES ->
				assert(parked_to[k] == 0);
				failures++; parked_at[k] = p; parked_to[k] = event + 2
			fi
		fi
	:: cursor[p] >= upto -> break
	od;
	k = 0; event = 0
}

proctype Mover(byte me)
{
	byte p, n, k, event, limit, upto;

end:
	do
	:: atomic {
			if
			:: HAS_WORK(0) -> p = 0
			:: HAS_WORK(1) -> p = 1
			fi;
#ifdef BROKEN_REGISTRY
			n = partitions
#endif
		}
		atomic { holder[p] == NOBODY -> holder[p] = me }
		/* The registry, then a snapshot: only the latter can change by now. */
		atomic {
#ifndef BROKEN_REGISTRY
			n = partitions;
#endif
#ifdef BROKEN_LIMIT
			limit = EVENTS
#else
			limit = LIMIT
#endif
		}
		atomic {
			if
			:: p >= n		/* it is gone: nothing to move */
			:: p < n ->
				assert(p < partitions && n == partitions);
				upto = (limit < visible -> limit : visible);
				batch()
			fi;
			holder[p] = NOBODY; p = 0; n = 0; limit = 0; upto = 0
		}
	od
}

/*
 * Whoever changes the number waits for the locks, in order, and looks each time
 * how many there are.
 */
proctype Changer(byte me)
{
	byte changes = 0, to, i, mine;
#ifdef BROKEN_OPEN
	byte snapshot;
#endif
#ifdef BROKEN_LOCKS
	byte before;
#endif

	do
	:: changes < CHANGES ->
		atomic {
			changes++;
			if
			:: to = 1
			:: to = 2
			fi;
#ifdef BROKEN_OPEN
			snapshot = visible;
#endif
#ifdef BROKEN_LOCKS
			before = partitions;
#endif
			i = 0
		}
		do
#ifdef BROKEN_LOCKS
		:: i < before ->
#else
		:: i < partitions || i == 0 ->
#endif
			atomic { holder[i] == NOBODY -> holder[i] = me; i++ }
		:: else -> break
		od;
		atomic {
			if
			:: to == partitions -> next_partitions = 0; epoch_end = 0
			:: to != partitions && next_partitions != 0 -> next_partitions = to
			:: to != partitions && next_partitions == 0 ->
				next_partitions = to;
#ifdef BROKEN_OPEN
				epoch_end = snapshot
#else
				epoch_end = visible
#endif
			fi;
			do
			:: i > 0 -> i--; holder[i] = NOBODY
			:: i == 0 -> break
			od
		}
	:: changes == CHANGES -> break
	od
}

/*
 * Locks are tried, and given back if one of them cannot be had.
 */
proctype Closer(byte me)
{
	byte i, n, k;

end:
	do
	:: next_partitions != 0 && ALL_ARRIVED ->
		n = partitions; i = 0;
		do
		:: i < n ->
			atomic {
				if
				:: holder[i] == NOBODY -> holder[i] = me; i++
				:: else -> break
				fi
			}
		:: i == n -> break
		od;
		atomic {
			if
			:: i == n && n == partitions && next_partitions != 0 && ALL_ARRIVED ->
				partitions = next_partitions;
				cursor[0] = epoch_end;
				cursor[1] = (partitions == 2 -> epoch_end : 0);
				next_partitions = 0; epoch_end = 0;
				k = 0;
				do
				:: k < 2 ->
#ifndef BROKEN_PARKED
					parked_at[k] = (parked_to[k] != 0 -> PARTITION(k, partitions) : 0);
#endif
					k++
				:: k == 2 -> break
				od;
				k = 0
			:: else
			fi;
			do
			:: i > 0 -> i--; holder[i] = NOBODY
			:: i == 0 -> break
			od;
			n = 0
		}
	od
}

proctype Emitter()
{
	do
	:: visible < EVENTS -> visible++
	:: visible == EVENTS -> break
	od;
	emitted = true
}

init {
	atomic {
		expected[0] = 0; expected[1] = 1;
		run Mover(0); run Mover(1); run Changer(2); run Closer(3); run Emitter()
	}
	/* Nobody has anything to do any more. */
	timeout ->
	assert(emitted && expected[0] >= EVENTS && expected[1] >= EVENTS);
	assert(next_partitions == 0)
}
