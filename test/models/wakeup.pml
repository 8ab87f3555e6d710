/*
 * Wake-up and poll: what is announced is found without a poll, and what nobody
 * announces by the next one.
 *
 * Models: announce.c (at_release), database.c (cqrs_shmem_wake), shmem.c
 * (cqrs_shmem_take_dirty), manager.c (cqrs_manager_main, time_to_look, look),
 * topic_poll.c (cqrs_poll_next).
 *
 * Transactions emit an event each to one of two topics. Some announce their
 * commit, others do not: a prepared one that a replication worker commits. The
 * manager looks, and sleeps; a topic may be locked by somebody who never lets
 * go. A look's number is as good as the snapshot that follows it: what is
 * committed when a topic is found to be due is delivered.
 */
/* broken: BROKEN_ASLEEP the manager looks at pending before it says that it sleeps */
/* broken: BROKEN_PENDING_FIRST an emitter sets pending before its topic's bit */
/* broken: BROKEN_CLEAR_LAST the manager takes the bits before it clears pending */
/* broken: BROKEN_POLL a poll that finds nothing by itself forgets what was announced */
/* broken: BROKEN_MARK a look that was announced moves the poll's mark */
/* broken: BROKEN_MARK_AFTER the poll's mark is taken after the topics were looked at */
/* broken: BROKEN_XMAX whatever is at or beyond xmax is overlooked */
/* broken: BROKEN_TOPIC_LOCK a poll waits for a topic's lock */
/* broken: BROKEN_LOCKED a poll's mark moves past what it could not look at */
/* broken: BROKEN_CLOCK times in the future are not over */
/* deep: SILENT=2 */

#ifndef ANNOUNCED
#define ANNOUNCED	1
#endif
#ifndef SILENT
#define SILENT		1
#endif
#ifndef POLLS
#define POLLS		1			/* before all have ended */
#endif
#define XACTS		(ANNOUNCED + SILENT)
#define topic_of(xid)	((xid) & 1)
#define event(xid)	(1 << (xid))
#define of_topic(t)	((t) -> 170 : 85)	/* events, by topic */

byte next_xid, ended, committed;	/* by xid */
byte drawn;						/* positions */
byte announced;					/* whose announcement is done */
byte finished;					/* how many have done all */
byte found;						/* events that were due */
bool locked;					/* topic 1 */
#ifdef BROKEN_CLOCK
bool set_back;					/* the clock was, after the last look */
#endif

/* The database's slot. */
bool pending, asleep, latch;
byte dirty;

proctype emitter(byte me)
{
	byte xid;

	atomic { xid = next_xid; next_xid++ }
	drawn++;
	atomic { committed = committed | event(xid); ended = ended | event(xid) }
	if
	:: me < ANNOUNCED ->
		/* at_release(), cqrs_shmem_wake() */
#ifdef BROKEN_PENDING_FIRST
		pending = 1;
		dirty = dirty | (1 << topic_of(xid));
#else
		if
		:: (dirty & (1 << topic_of(xid))) == 0 -> dirty = dirty | (1 << topic_of(xid))
		:: else
		fi;
		if
		:: !pending -> pending = 1
		:: else
		fi;
#endif
		if
		:: asleep ->
			atomic {
				if
				:: asleep -> asleep = 0; latch = 1
				:: else
				fi
			}
		:: else
		fi;
		announced = announced | event(xid)
	:: else
	fi;
	finished++
}

/* Somebody has topic 1 locked from the beginning; and the clock is set back. */
proctype disturber()
{
	if
	:: locked = 0
	:: skip						/* or never */
	fi;
#ifdef BROKEN_CLOCK
	set_back = 1;
#endif
	finished++
}

#ifdef BROKEN_CLOCK
#define may_look	(!set_back)
#else
#define may_look	true
#endif

/* The events that the poll's mark does not show, in a topic */
#define beyond_mark(t)	(committed & ~mark & of_topic(t))

inline take_mark()
{
	atomic {
		new_mark = ended;
#ifdef BROKEN_XMAX
		/* nxip: of those below the highest that has ended */
		i = 0; new_running = 0;
		do
		:: (ended >> i) > 1 ->
			new_running = new_running + !((ended >> i) & 1);
			i++
		:: else -> break
		od;
		i = 0
#else
		new_running = ((1 << next_xid) - 1) & ~ended
#endif
	}
}

proctype manager()
{
	byte mark, mark_drawn, mark_running, topics, position, ending, i;
	byte new_mark, new_running;
	byte polls = POLLS;
	bool poll, timer, first = 1, passed;

	do
	:: true ->
		/* time_to_look() */
		atomic {
			if
			:: first || (pending && may_look) -> poll = 0; timer = 0
			:: !first && !pending && timer -> poll = 1; timer = 0
			:: else -> goto sleep
			fi
		}

		/* look() */
#ifdef BROKEN_CLEAR_LAST
		atomic { topics = dirty; dirty = 0 }
		atomic { poll = poll && !pending; pending = 0 }
#else
#ifdef BROKEN_POLL
		pending = 0;
#else
		/* What found anything announced is no poll. */
		atomic { poll = poll && !pending; pending = 0 }
#endif
		atomic { topics = dirty; dirty = 0 }
#endif
#ifndef BROKEN_POLL
		poll = poll && topics == 0;
#endif
		position = drawn;
#ifndef BROKEN_MARK_AFTER
		/* The mark is older than what the topics are looked at with. */
		take_mark();
#endif
		if
		:: first -> topics = 3
		:: poll && position == mark_drawn && mark_running == 0 ->
			topics = 0;
			goto sleep
		:: poll && !(position == mark_drawn && mark_running == 0) ->
			/* find_topics(), with one snapshot; a locked one is passed by */
#ifdef BROKEN_TOPIC_LOCK
			!locked;
#endif
			atomic {
				topics = 0;
				if
				:: beyond_mark(0) -> topics = topics | 1
				:: else
				fi;
				if
				:: locked -> passed = 1
				:: !locked && beyond_mark(1) -> topics = topics | 2
				:: else
				fi;
				if
				:: topics == 0 -> goto sleep
				:: else
				fi
			}
		:: else
		fi;
		/* The snapshot, and the cursors on these topics */
		atomic {
			if
			:: topics & 1 -> found = found | (committed & of_topic(0))
			:: else
			fi;
			if
			:: topics & 2 -> found = found | (committed & of_topic(1))
			:: else
			fi;
#ifdef BROKEN_LOCKED
			passed = 0;
#endif
#ifndef BROKEN_MARK
			if
			:: (first || poll) && !passed ->
#endif
#ifdef BROKEN_MARK_AFTER
				take_mark();
#endif
				mark = new_mark;
				mark_drawn = position;
				mark_running = new_running;
#ifndef BROKEN_MARK
			:: else
			fi;
#endif
			first = 0
		}
sleep:
		atomic {
			poll = 0; topics = 0; position = 0; passed = 0;
			new_mark = 0; new_running = 0;
			if
			:: ending == 2 -> break
			:: else
			fi
		}
#ifdef BROKEN_ASLEEP
		if
		:: may_look && pending -> goto again
		:: may_look && !pending -> asleep = 1
		:: else
		fi;
#else
		if
		:: may_look ->
			asleep = 1;
			if
			:: pending -> asleep = 0; goto again
			:: else
			fi
		:: else
		fi;
#endif
		/* cqrs_process_wait() */
		if
		:: atomic { latch -> latch = 0 }
		:: atomic { !latch && polls > 0 && finished < XACTS + 1 -> polls--; timer = 1 }
		:: atomic { !latch && finished == XACTS + 1 && ending == 0 ->
				/* All is quiet: what was announced was found, without a poll. */
				assert((announced & ~found) == 0);
				ending = 1; timer = 1
			}
		:: atomic { !latch && ending == 1 -> ending = 2; timer = 1 }
		fi;
		asleep = 0;
again:
		skip
	od;
	/* The poll has found the rest. */
	assert((committed & ~found & (locked -> of_topic(0) : 255)) == 0)
}

init
{
	byte i;

	atomic {
		if
		:: locked = 0
		:: locked = 1
		fi;
		do
		:: i < XACTS -> run emitter(i); i++
		:: else -> break
		od;
		i = 0;
		run disturber();
		run manager()
	}
}
