/*
 * epoch.pml: the partitions of a subscription, and its ordering, change while it is
 * delivered, see src/subscription/epoch.c and src/delivery/relay.c.
 *
 * Events of two keys become visible one after the other. With one partition, or by
 * topic, both keys are in it; with two, by key, each has its own. Two movers
 * deliver: each chooses a partition that has something, and by the time that it
 * has the lock that partition may be gone. A delivery may fail: then the event is
 * parked, and what follows of its lane, its key or its topic, behind it. Somebody
 * changes the number of partitions, or the ordering, also back while the change
 * is open; somebody closes.
 *
 * What must hold: each event is delivered once, each key in order; by topic, each
 * event behind all that come before it, also those that had been parked by key; in
 * the end everything is delivered, and the change done. No cursor is moved that is
 * not there.
 *
 * Leases, seeks and late commits are not in here.
 */
/* deep: DEEP=1 */
/* broken: BROKEN_LIMIT windows go beyond the end of the epoch */
/* broken: BROKEN_OPEN the end of the epoch is chosen before the locks are taken */
/* broken: BROKEN_CLOSE the new cursors begin while an old one is behind */
/* broken: BROKEN_LOCKS whoever changes the number locks only the cursors that there were before he waited */
/* broken: BROKEN_PARKED what is parked stays where it was */
/* broken: BROKEN_LANES what is parked stays in the lanes of the former ordering */
/* broken: BROKEN_REGISTRY how many partitions there are is read before the lock is had */

#ifdef DEEP
#define EVENTS	4
#define FAILURES	2
#define CHANGES	3
#else
#define EVENTS	3
#define FAILURES	1
#define CHANGES	2
#endif
#define NOBODY	9
#define KEY(event)			((event) & 1)
#define PARTITION(key, n, topic)	((n) == 1 || (topic) -> 0 : (key))
#define LANE(key, topic)	((topic) -> 2 : (key))
#define BELOW(event)		((1 << (event)) - 1)

/* What is committed. A snapshot is how many events it shows. */
byte visible = 0;
byte partitions = 1;
bool by_topic = false;		/* in the cursors */
byte topic_since = EVENTS;	/* it is, from this event on */
byte next_partitions = 0;	/* 0: no epoch is open */
bool next_by_topic;
byte epoch_end;
byte cursor[2];				/* all that this snapshot shows is delivered */
byte parked;				/* events, ... */
byte parked_at[EVENTS];		/* ... in which partition ... */
byte lane[EVENTS];			/* ... and lane */
byte delivered;				/* events */

byte holder[2] = NOBODY;	/* the cursors' locks */
byte failures = 0;
bool emitted = false;

#define LIMIT	(next_partitions != 0 -> epoch_end : EVENTS)
#define IS_PARKED(e, p)	((parked & (1 << (e))) != 0 && parked_at[e] == (p))
#ifdef BROKEN_LIMIT
#define HAS_WORK(p)	((p) < partitions && (cursor[p] < visible || parked != 0))
#define ARRIVED(p)	(cursor[p] >= epoch_end)
#else
#define HAS_WORK(p)	((p) < partitions && ((cursor[p] < visible && cursor[p] < LIMIT) || parked != 0))
#ifdef BROKEN_CLOSE
#define ARRIVED(p)	true
#else
#define ARRIVED(p)	(cursor[p] == epoch_end)
#endif
#endif
#define ALL_ARRIVED	(ARRIVED(0) && (partitions == 1 || ARRIVED(1)))

#define OF_KEY(key)	((key) -> 10 : 5)

inline deliver(event)
{
	assert((delivered & (1 << event)) == 0);
	assert((BELOW(event) & OF_KEY(KEY(event)) & ~delivered) == 0);
	assert(!by_topic || event < topic_since || (BELOW(event) & ~delivered) == 0);
	delivered = delivered | (1 << event)
}

inline park(event)
{
	parked = parked | (1 << event);
	parked_at[event] = p;
	lane[event] = LANE(KEY(event), by_topic)
}

/* Is something parked in the lane, of events below? */
inline look_up(in_lane, below)
{
	waits = false;
	k = 0;
	do
	:: k < below -> waits = waits || (IS_PARKED(k, p) && lane[k] == in_lane); k++
	:: k >= below -> break
	od;
	k = 0
}

/*
 * One batch of partition p, of n, up to the snapshot: a transaction, of which
 * nobody sees anything before its commit.
 */
inline batch()
{
	/* What is parked, if it is tried now. */
	event = 0;
	do
	:: event < EVENTS && IS_PARKED(event, p) ->
		look_up(lane[event], event);
		if
		:: !waits -> deliver(event); parked = parked & ~(1 << event)
		:: waits
		:: cursor[p] < upto		/* not yet due */
		fi;
		event++
	:: event < EVENTS && !IS_PARKED(event, p) -> event++
	:: event == EVENTS -> break
	od;
	do
	:: cursor[p] < upto ->
		event = cursor[p];
		cursor[p] = cursor[p] + 1;
		if
		:: PARTITION(KEY(event), n, by_topic) != p
		:: else ->
			look_up(LANE(KEY(event), by_topic), event);
			if
			:: waits -> park(event)
			:: !waits -> deliver(event)
			:: !waits && failures < FAILURES -> failures++; park(event)
			fi
		fi
	:: cursor[p] >= upto -> break
	od;
	event = 0; waits = false
}

proctype Mover(byte me)
{
	byte p, n, k, event, limit, upto;
	bool waits;

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
	byte changes = 0, to, i;
	bool topic;
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
			if
			:: topic = false
			:: topic = true
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
			:: to == partitions && topic == by_topic -> next_partitions = 0; next_by_topic = false; epoch_end = 0
			:: !(to == partitions && topic == by_topic) && next_partitions != 0 ->
				next_partitions = to;
				next_by_topic = topic
			:: !(to == partitions && topic == by_topic) && next_partitions == 0 ->
				next_partitions = to;
				next_by_topic = topic;
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
				topic_since = (by_topic && next_by_topic -> topic_since : epoch_end);
				by_topic = next_by_topic;
				cursor[0] = epoch_end;
				cursor[1] = (partitions == 2 -> epoch_end : 0);
				next_partitions = 0; next_by_topic = false; epoch_end = 0;
				k = 0;
				do
				:: k < EVENTS ->
					if
					:: (parked & (1 << k)) != 0 ->
#ifndef BROKEN_PARKED
						parked_at[k] = PARTITION(KEY(k), partitions, by_topic);
#endif
#ifndef BROKEN_LANES
						lane[k] = LANE(KEY(k), by_topic);
#endif
						skip
					:: else
					fi;
					k++
				:: k == EVENTS -> break
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
		run Mover(0); run Mover(1); run Changer(2); run Closer(3); run Emitter()
	}
	/* Nobody has anything to do any more. */
	timeout ->
	assert(emitted && delivered == (1 << EVENTS) - 1);
	assert(next_partitions == 0)
}
