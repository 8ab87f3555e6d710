/*
 * A saga's steps: each is done once, or undone, however often it is woken, and
 * whatever is thrown away.
 *
 * Models: run.c (run_event, run_step, record_failure), machine.c (go_on, go_back,
 * cqrs_saga_step_failed), steer.c (resume), entry.c (the primary key).
 *
 * A saga of STEPS steps; its lane, with wake-ups, each for one entry; two workers,
 * as when partitions change; somebody who throws wake-ups away, and somebody who
 * resumes the saga, at any time, and once more after that. A wake-up may come
 * again. The cursor's lock makes one step of: read the newest entry, call the
 * function, write the next entry, send what wakes that. A function may fail, or its
 * transaction be rolled back. It is tried ATTEMPTS times.
 */
/* broken: BROKEN_FENCE a wake-up does what the entry said that it is for, if that is not the newest, too */
/* broken: BROKEN_EARLY the newest entry is read before the lock, and there is no primary key */
/* broken: BROKEN_APART what a step did is committed before the entry that says so */
/* broken: BROKEN_RESUME resuming sends nothing for a saga that is being undone */
/* broken: BROKEN_SEEN resuming sends nothing if there is a wake-up, for whatever entry */
/* broken: BROKEN_FORGETS what is to be undone is forgotten when an attempt at that fails */
/* deep: STEPS=3 FAILURES=4 */

#ifndef STEPS
#define STEPS		2
#endif
#ifndef FAILURES
#define FAILURES	3
#endif
#define ATTEMPTS	2

/* The newest entry. */
byte seq = 1, next, attempt;
bool backward, over;

byte did[STEPS], undid[STEPS];	/* what is committed */
int wakes = 2;					/* wake-ups in the lane, by entry */
bool locked;
byte failures = FAILURES, losses = 1, again = 2, rollbacks = 1, resumes = 2;
bool lost;						/* nobody has resumed it since */

#define has(w)	((wakes >> (w)) & 1)

#ifdef BROKEN_FENCE
byte step_of[32];
bool backward_of[32];
#endif

/*
 * cqrs_saga_write(), cqrs_saga_wake(): the entry behind the one that was read. The
 * primary key lets only one of them.
 */
inline write_entry()
{
#ifdef BROKEN_EARLY
	seq = my_seq + 1;
#else
	assert(seq == my_seq);
	seq++;
#endif
	assert(seq < 31);
	next = my_next; backward = my_backward; attempt = my_attempt;
#ifdef BROKEN_FENCE
	step_of[seq] = next; backward_of[seq] = backward;
#endif
	wakes = wakes | (over -> 0 : 1 << seq)
}

inline go_back()
{
	my_attempt = 0;
	if
	:: my_next == 0 -> over = 1
	:: else -> my_next--
	fi;
	write_entry()
}

/* Nothing of what the function did is left. */
inline fail()
{
	failures--;
	my_attempt++;
	if
	:: !my_backward && my_attempt >= ATTEMPTS -> my_backward = 1; go_back()
#ifdef BROKEN_FORGETS
	:: my_backward -> go_back()
#endif
	:: else -> write_entry()
	fi
}

inline act()
{
	did[my_next]++;
	assert(did[my_next] == 1 && !backward)
}

inline undo()
{
	undid[my_next]++;
	assert(undid[my_next] == 1 && did[my_next] == 1)
}

/* The function is called. */
inline call()
{
	if
	:: failures > 0 -> fail()
	:: rollbacks > 0 -> rollbacks--;
#ifdef BROKEN_APART
		if
		:: my_backward -> undo()
		:: else -> act()
		fi;
#endif
		wakes = wakes | (1 << w)
	:: !my_backward ->
		act();
		my_attempt = 0;
		my_next++;
		over = (my_next == STEPS);
		write_entry()
	:: my_backward -> undo(); go_back()
	fi
}

inline read_entry()
{
	my_seq = seq; my_next = next; my_backward = backward; my_attempt = attempt
}

proctype worker()
{
	byte w, my_seq, my_next, my_attempt;
	bool my_backward;

	do
	:: over -> break
	:: atomic { wakes != 0 && !over && !locked ->
#ifndef BROKEN_EARLY
			locked = 1;
#endif
			w = 1;
			do
			:: has(w) -> break
			:: else -> w++
			od;
			/* It may come again. */
			if
			:: again > 0 -> again--
			:: true -> wakes = wakes & ~(1 << w)
			fi;
			read_entry()
		};
		atomic {
			/* is_call() */
			if
			:: !over && w == my_seq -> call()
#ifdef BROKEN_FENCE
			:: !over && w != my_seq ->
				my_next = step_of[w]; my_backward = backward_of[w];
				call()
#endif
			:: else
			fi;
			locked = 0; w = 0;
			my_seq = 0; my_next = 0; my_backward = 0; my_attempt = 0
		}
	od
}

/* Who truncates, discards, or restores. */
proctype loser()
{
	if
	:: atomic { !over && losses > 0 -> losses--; wakes = 0; lost = 1 }
	:: atomic { !over && losses > 0 -> losses--; wakes = wakes & ~(1 << seq); lost = 1 }
	:: true
	fi
}

/* resume(): the newest entry is read without the lock. */
proctype resumer()
{
	byte newest;

	do
	:: atomic { resumes > 0 && !over -> resumes--; newest = seq };
		atomic {
			if
#ifdef BROKEN_RESUME
			:: backward -> skip
#endif
#ifdef BROKEN_SEEN
			:: wakes != 0 -> skip
#endif
			:: else -> wakes = wakes | (1 << newest)
			fi;
			newest = 0
		}
	:: atomic { lost && !over && resumes == 0 -> lost = 0; resumes = 1 }
	:: over -> break
	od
}

init
{
	byte i;

	atomic {
		run worker();
		run worker();
		run loser();
		run resumer()
	}
	atomic {
		over ->
		i = 0;
		do
		:: i == STEPS -> break
		:: else ->
			assert(backward -> did[i] == undid[i] : did[i] == 1 && undid[i] == 0);
			i++
		od
	}
}
