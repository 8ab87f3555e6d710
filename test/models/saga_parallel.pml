/*
 * Steps side by side: the saga waits for all of them, whatever happens to one; only
 * then is anything undone, and no step runs any more.
 *
 * Models: machine.c (begin_branches, branch_ended, stop_branches, end_branch,
 * receive_cancel, fail), run.c (run_step, record_failure), steer.c (resume).
 *
 * BRANCHES branches, each in a lane of its own, which is in the order of commits, as
 * is the saga's. One of them may fail for good, another one again and again;
 * somebody may cancel the saga, and messages may come again, as when somebody resumes
 * it. Each message is done in
 * one step, as it has its cursor's lock.
 */
/* broken: BROKEN_COUNT the ends that came are counted, and not which they are of */
/* broken: BROKEN_FIRST what was done is undone as soon as one has failed */
/* broken: BROKEN_STOP the others are not stopped when one has failed */
/* broken: BROKEN_STOPPED a branch that was stopped is tried again by a wake-up on its way */
/* broken: BROKEN_END a branch that had ended says so anew, but as stopped, when it is stopped */
/* broken: BROKEN_CANCEL cancelling stops no branch */
/* deep: BRANCHES=3 */

#ifndef BRANCHES
#define BRANCHES	2
#endif
#ifndef REPLAYS
#define REPLAYS		2
#endif

mtype = { wake, stop, ended, cancel };
mtype = { running, completed, failed, cancelled };

chan lane[BRANCHES] = [6] of { mtype, byte };
chan trunk = [10] of { mtype, byte };

/* The branches' newest entries. */
mtype status[BRANCHES];
byte seq[BRANCHES];

/* The saga's. */
byte ends, nends, done;			/* sets of branches */
bool cancel_asked, backward, over;

byte acts[BRANCHES], undos[BRANCHES];
byte replays = REPLAYS, failures = 1, tries = 1;
bool endless;					/* branch 0 fails again and again */

#define all	((1 << BRANCHES) - 1)

inline end_branch(how)
{
	status[b] = how;
	seq[b]++;
	trunk!ended(b)
}

proctype branch(byte b)
{
	mtype kind;
	byte n;

end:
	do
	:: atomic { lane[b]?kind(n) ->
			if
#ifdef BROKEN_STOPPED
			:: kind == wake && (status[b] == running || status[b] == cancelled) ->
#else
			:: kind == wake && status[b] == running && n == seq[b] ->
#endif
				/* The function is called. */
				assert(!backward && !over);
				if
				:: !(endless && b == 0) -> acts[b]++;
					assert(acts[b] == 1);
					end_branch(completed)
				:: failures > 0 && b != 0 -> failures--; end_branch(failed)
				:: tries > 0 -> tries--; seq[b]++; lane[b]!wake(seq[b])
				/* It will be tried again, but not before long. */
				:: endless && b == 0 -> seq[b]++
				fi
#ifdef BROKEN_END
			:: kind == stop -> end_branch(cancelled)
#else
			:: kind == stop && status[b] == running -> end_branch(cancelled)
#endif
			:: else
			fi;
			kind = 0; n = 0
		}
	od
}

inline stop_branches()
{
	i = 0;
	do
	:: i == BRANCHES -> break
	:: !(ends & (1 << i)) && i < BRANCHES -> lane[i]!stop(0); i++
	:: else -> i++
	od;
	i = 0
}

/* The rest of it is undone at once: that is another model. */
inline undo()
{
	backward = 1;
	i = 0;
	do
	:: i == BRANCHES -> break
	:: i < BRANCHES && (done & (1 << i)) -> undos[i]++; i++
	:: else -> i++
	od;
	i = 0;
	over = 1
}

proctype saga()
{
	mtype kind;
	byte n, i;

end:
	do
	:: atomic { trunk?kind(n) ->
			if
			:: over -> skip
			:: !over && kind == ended && status[n] != running ->
				if
#ifndef BROKEN_COUNT
				:: ends & (1 << n) -> skip
#endif
				:: else ->
					ends = ends | (1 << n);
					nends++;
					if
					:: status[n] == completed -> done = done | (1 << n)
					:: else ->
#ifndef BROKEN_STOP
						stop_branches();
#endif
#ifdef BROKEN_FIRST
						undo()
#endif
						skip
					fi;
					/* All have: branch_ended() looks at each. */
					if
					:: over -> skip
					:: !over && nends < BRANCHES -> skip
					:: !over && nends >= BRANCHES ->
						i = 0;
						do
						:: i == BRANCHES -> break
						:: else -> assert(status[i] != running); i++
						od;
						i = 0;
						if
						:: done == all && !cancel_asked -> over = 1
						:: else -> undo()
						fi
					fi
				fi
			:: !over && kind == cancel && !cancel_asked ->
				cancel_asked = 1;
#ifndef BROKEN_CANCEL
				stop_branches()
#endif
				skip
			:: else
			fi;
			kind = 0; n = 0
		}
	od
}

/* What comes again; resume() sends what the newest entries need. */
proctype replay()
{
	byte b;

	do
	:: atomic { replays > 0 && !over ->
			replays--;
			if
			:: b = 0
			:: b = 1
			fi;
			if
			:: status[b] == running && nfull(lane[b]) -> lane[b]!wake(seq[b])
			:: status[b] != running && nfull(trunk) -> trunk!ended(b)
			fi;
			b = 0
		}
	:: true -> break
	od
}

proctype person()
{
	if
	:: trunk!cancel(0)
	:: true
	fi
}

init
{
	byte i;

	atomic {
		i = 0;
		do
		:: i == BRANCHES -> break
		:: else -> status[i] = running; lane[i]!wake(0); run branch(i); i++
		od;
		if
		:: endless = 1
		:: true
		fi;
		run saga();
		run replay();
		run person()
	}
	atomic {
		timeout ->
		assert(over || (endless && failures == 1 && !cancel_asked));
		i = 0;
		do
		:: i == BRANCHES -> break
		:: else ->
			assert(!over || (backward -> acts[i] == undos[i] : acts[i] == 1 && undos[i] == 0));
			i++
		od
	}
}
