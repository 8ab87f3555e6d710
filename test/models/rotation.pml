/*
 * Rotation and truncation: every cursor had got what is truncated.
 *
 * Models: rotation.c (truncate_segment), retention.c (cqrs_subscription_hold,
 * cqrs_missed_lock), emit.c (writer_open, writer_close), subscription.c
 * (cqrs_subscription_start), operation.c (seek).
 *
 * One segment, which is not the current one. An emitter with a stale idea of
 * that writes to it; a subscription moves its cursor; somebody subscribes at
 * the beginning, or seeks back. Whoever subscribes has locked the topic, and
 * until his commit nobody sees his cursor. Events are bits.
 */
/* broken: BROKEN_EMIT_UNLOCKS an emitter's lock ends with the write */
/* broken: BROKEN_SNAPSHOT_FIRST the deciding snapshot is from before the segment's lock */
/* broken: BROKEN_NO_TOPIC_LOCK the topic is not locked to truncate */
/* broken: BROKEN_NO_LOOK what was found without locks decides */
/* broken: BROKEN_TWO_LOADS hold and record use two loads of the registry */
/* deep: EMITTERS=3 PASSES=2 */

#ifndef EMITTERS
#define EMITTERS	2
#endif
#ifndef PASSES
#define PASSES		1
#endif

byte running, committed;		/* transactions that wrote, an event each */
byte segment;					/* the rows, visible or not */
byte writers;					/* have a lock on the segment */
bool exclusive;
byte topic_shared;
bool topic_exclusive;
bool row_locked;				/* the suspended subscription's, to count */

/* Of each subscription: is its row there, is it suspended, has it got what */
bool subscribed[2], suspended[2];
byte got[2], missed[2];
byte all;						/* events that ever committed */

proctype emitter(byte me)
{
	atomic { !exclusive -> writers++; running = running | (1 << me) }
	segment = segment | (1 << me);
#ifdef BROKEN_EMIT_UNLOCKS
	writers--;
#endif
	atomic {
		running = running & ~(1 << me);
		committed = committed | (1 << me);
		all = all | (1 << me);
		/* A truncation beneath an open transaction takes its row. */
		assert((segment >> me) & 1)
#ifndef BROKEN_EMIT_UNLOCKS
		writers--
#endif
	}
}

/* A worker of the first subscription: cursor and events are read together. */
proctype worker()
{
	do
	:: atomic { !suspended[0] && !exclusive && (committed & segment & ~got[0]) ->
			got[0] = got[0] | (committed & segment)
		}
	:: break
	od
}

/* cqrs_subscription_start() at 'earliest', or seek(): topic lock, row, commit */
proctype subscriber()
{
	byte sees;

	atomic { !topic_exclusive -> topic_shared++ }
	/* What is retained now is promised. */
	sees = committed & segment;
	atomic {
		subscribed[1] = 1;
		topic_shared--;
		assert((sees & ~segment) == 0)
	}
}

/* cqrs_limits_apply(), cqrs_resume(): they need no lock of the topic. */
proctype suspender()
{
	suspended[0] = 1;
	atomic { !row_locked -> suspended[0] = 0 }
}

#define holds(i)	(subscribed[i] && !(looked_suspended & (1 << (i))) && \
					 (shown & segment & ~got[i]) != 0)

inline load_registry()
{
	looked_suspended = suspended[0] | (suspended[1] << 1)
}

proctype truncater()
{
	byte shown, looked_suspended, counted, n;
	bool held;

	do
	:: n < PASSES ->
		n++;
		/* cqrs_segment_hold(), without locks */
		atomic { shown = committed; load_registry(); held = (holds(0) || holds(1)); counted = looked_suspended };
#ifndef BROKEN_NO_LOOK
		if
		:: held -> goto over
		:: else
		fi;
#endif
		/* (a) the topic's lock, tried */
#ifndef BROKEN_NO_TOPIC_LOCK
		if
		:: atomic { topic_shared == 0 -> topic_exclusive = 1 }
		:: topic_shared > 0 -> goto over
		fi;
#endif
		/* cqrs_missed_lock() */
		if
		:: atomic { (counted & 1) && suspended[0] -> row_locked = 1 }
		:: (counted & 1) && !suspended[0] -> goto over
		:: !(counted & 1)
		fi;
#ifdef BROKEN_SNAPSHOT_FIRST
		shown = committed;
#endif
		/* (b) the segment's lock, tried */
		if
		:: atomic { writers == 0 -> exclusive = 1 }
		:: writers > 0 -> goto over
		fi;
		/* (c) the snapshot, and one copy of the registry to decide and record */
#ifndef BROKEN_SNAPSHOT_FIRST
		shown = committed;
#endif
		atomic { load_registry(); held = (holds(0) || holds(1)) };
#ifdef BROKEN_NO_LOOK
		held = 0;
#endif
#ifdef BROKEN_TWO_LOADS
		/* The registry is loaded anew before it is written what was missed. */
		load_registry();
#endif
		/* Another set than was counted: another time. */
		held = held || (looked_suspended != counted);
		if
		:: held -> goto over
		:: else
		fi;
		/* (d) TRUNCATE: a suspended one's are counted as missed. */
		atomic {
			assert(writers == 0 || (segment & running) == 0);
			assert(!subscribed[1] || (shown & segment & ~got[1]) == 0 || (looked_suspended & 2));
			if
			:: counted & 1 -> missed[0] = missed[0] | (segment & committed & ~got[0])
			:: else
			fi;
			assert((segment & committed & ~got[0] & ~missed[0]) == 0);
			assert(topic_shared == 0);
			segment = 0
		}
over:
		atomic { exclusive = 0; topic_exclusive = 0; row_locked = 0; shown = 0; looked_suspended = 0; counted = 0; held = 0 }
	:: else -> break
	od
}

init
{
	byte i;

	atomic {
		subscribed[0] = 1;
		do
		:: i < EMITTERS -> run emitter(i); i++
		:: else -> break
		od;
		i = 0;
		run worker();
		run subscriber();
		run suspender();
		run truncater()
	}
}
