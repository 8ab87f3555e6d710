/*
 * A saga waits twice for events of one name, the first time not for ever: what was
 * committed before that time was over counts, however late it is brought; each event
 * counts once; and once somebody has cancelled it, nothing has it go on.
 *
 * Models: machine.c (go_on, receive_wake, receive_signal, find_signal, take_signal,
 * receive_cancel, forget_wake), router.c (route, forward), release.c, steer.c.
 *
 * A step, which may have to be tried again, two waits, and a step. An emitter commits
 * one event, which the router brings, and one signal, which goes to the lane. The
 * router's queue and the lane are in the order of commits; the router may be
 * replayed, and be as late as it likes. Each message is done in one step, as it has
 * the cursor's lock.
 */
/* broken: BROKEN_DIRECT the time goes to the lane, and not by way of the router */
/* broken: BROKEN_ID an event that comes again is kept again */
/* broken: BROKEN_EARLY what comes before the wait is not kept */
/* broken: BROKEN_SEQ a time is over for whatever wait there is now */
/* broken: BROKEN_CANCEL what comes while the saga is being undone has it go on */
/* broken: BROKEN_TAKEN an event that was taken may be taken again */
/* deep: RETRIES=3 REPLAYS=3 */

#ifndef RETRIES
#define RETRIES	1
#endif
#ifndef REPLAYS
#define REPLAYS	2
#endif

mtype = { event, time, signal, wake, cancel };

chan router = [8] of { mtype, byte };
chan lane = [12] of { mtype, byte };

/* The newest entry. */
byte seq = 1, at;				/* 0, 3: at a step; 1, 2: waits; 4: over */
bool backward, over;
byte kept, taken;				/* events, by id */

byte timer;						/* row of cqrs.scheduled_command: for an entry */
byte committed;					/* events, by id */
byte in_time;					/* those that were when the time was over */
byte takes[3];
byte did, undid, retries = RETRIES, replays = REPLAYS;

#ifdef BROKEN_CANCEL
#define is_wait	(at == 1 || at == 2)
#else
#define is_wait	(!backward && (at == 1 || at == 2))
#endif

inline write_entry()
{
	/* forget_wake() */
	timer = 0;
	seq++
}

inline take(id)
{
	takes[id]++;
	assert(takes[id] == 1);
	taken = taken | (1 << id);
#ifdef BROKEN_TAKEN
	taken = 0;
#endif
	at++;
	write_entry();
	if
	:: at == 3 -> lane!wake(seq)
	:: else
	fi
}

/* go_on(), at a wait: is there something that came before? */
inline begin_wait()
{
	do
	:: at > 2 -> break
	:: at <= 2 && ((kept & ~taken) & 2) -> take(1)
	:: at <= 2 && !((kept & ~taken) & 2) && ((kept & ~taken) & 4) -> take(2)
	:: else ->
		if
		:: at == 1 -> timer = seq
		:: else
		fi;
		break
	od
}

inline go_back()
{
	backward = 1;
	write_entry();
	lane!wake(seq)
}

active proctype worker()
{
	mtype kind;
	byte n;

end:
	do
	:: atomic { lane?kind(n) ->
			if
			:: over -> skip
			:: !over && kind == wake && n == seq ->
				if
				:: backward -> undid++; assert(undid == 1); over = 1; write_entry()
				:: !backward && at == 0 && retries > 0 -> retries--; write_entry(); lane!wake(seq)
				:: !backward && at == 0 -> did++; at = 1; write_entry(); begin_wait()
				:: !backward && at == 3 -> did++; assert(undid == 0); at = 4; over = 1; write_entry()
				fi
			:: !over && kind == signal ->
				if
#ifndef BROKEN_CANCEL
				:: backward -> skip
#endif
#ifndef BROKEN_ID
				:: (kept & (1 << n)) -> skip
#endif
#ifdef BROKEN_EARLY
				:: at == 0 -> skip
#endif
				:: else ->
#ifdef BROKEN_ID
					taken = taken & ~(1 << n);
#endif
					kept = kept | (1 << n);
					if
					:: is_wait -> begin_wait()
					:: else
					fi
				fi
#ifdef BROKEN_SEQ
			:: !over && kind == time && is_wait ->
#else
			:: !over && kind == time && n == seq && is_wait ->
#endif
				/* The second wait has no time; and what came in time counts. */
				assert(at == 1 && in_time == 0);
				go_back()
			:: !over && kind == cancel && !backward -> go_back()
			:: else
			fi;
			kind = 0; n = 0
		}
	od
}

active proctype bring()
{
	mtype kind;
	byte n;

end:
	do
	:: atomic { router?kind(n) ->
			if
			:: kind == event -> lane!signal(n)
			:: kind == time -> lane!time(n)
			fi;
			/* cqrs_seek(), a batch that is done again */
			if
			:: replays > 0 && kind == event -> replays--; lane!signal(n)
			:: replays > 0 && kind == time -> replays--; lane!time(n)
			:: true
			fi;
			kind = 0; n = 0
		}
	od
}

active proctype emitter()
{
	if
	:: atomic { router!event(1); committed = committed | 2 }
	:: true
	fi;
	if
	:: atomic { lane!signal(2); committed = committed | 4 }
	:: true
	fi
}

/* The manager: the time is over, and is released. */
active proctype manager()
{
end:
	atomic { timer != 0 ->
#ifdef BROKEN_DIRECT
		lane!time(timer);
#else
		router!time(timer);
#endif
		in_time = committed;
		timer = 0
	}
}

active proctype person()
{
	if
	:: lane!cancel(0)
	:: true
	fi
}

init
{
	lane!wake(1);
	/* When nothing is on its way: it is over, or what it waits for has not come. */
	timeout ->
	assert(over || (!backward && ((at == 1 && committed == 0) || (at == 2 && (committed == 2 || committed == 4)))));
	assert(!over || (backward -> undid == 1 && did <= 1 : did == 2 && undid == 0))
}
