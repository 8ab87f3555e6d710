/*
 * Release of deferred commands: each is released once, without a full pass
 * unless nobody told of it, and none that was passed by is forgotten.
 *
 * Models: release.c (cqrs_release_next, begin_pass, release_range, release,
 * end_pass), shmem.c (cqrs_shmem_lower_next_run_at), announce.c (at_xact_end,
 * at_release), enqueue.c (schedule, remove_scheduled).
 *
 * Commands are due from the beginning, each for a time of its own, its number.
 * One is scheduled in time, one by a prepared transaction of which nobody
 * tells, one is about to be cancelled by a transaction that may be rolled
 * back, and two are of a role whose topic is locked for a while. NEVER is DT_NOEND.
 */
/* broken: BROKEN_EXCHANGE_LATE next_run_at is cleared after the pass has its snapshot */
/* broken: BROKEN_TOLD_FIRST a command's time is told before its commit */
/* broken: BROKEN_CANCEL whoever cancels in vain tells nobody */
/* broken: BROKEN_PASSED_BY a later pass's retry_from replaces an earlier one's */
/* broken: BROKEN_FULL no pass begins at the first row */
/* broken: BROKEN_TWO_STEPS the row is deleted in one transaction, the event is emitted in another */

/* deep: KILLS=1 */

#ifndef KILLS
#define KILLS	0
#endif
#ifdef BROKEN_TWO_STEPS
#undef KILLS
#define KILLS	1
#endif
#define COMMANDS	4
#define NEVER		9
#define LOCKED		0
#define CANCELLED	1
#define PREPARED	2
#define SCHEDULED	3

#define of_locked(c)	((c) == LOCKED || (c) == SCHEDULED)

byte row;						/* committed rows, by command */
byte row_lock;					/* deleted by who has not ended yet */
byte released;
byte removed;					/* cancelled for good */
byte next_run_at = 0;
bool latch, topic_locked = 1;
byte done, killed;

/* cqrs_shmem_lower_next_run_at(), and the latch if that was lower */
inline tell(run_at)
{
	atomic {
		if
		:: run_at < next_run_at -> next_run_at = run_at; latch = 1
		:: else
		fi
	}
}

proctype scheduler()
{
#ifdef BROKEN_TOLD_FIRST
	tell(SCHEDULED);
	row = row | (1 << SCHEDULED);
#else
	row = row | (1 << SCHEDULED);
	tell(SCHEDULED);
#endif
	done++
}

/* COMMIT PREPARED by who knows nothing of us */
proctype silent()
{
	row = row | (1 << PREPARED);
	done++
}

proctype canceller()
{
	if
	:: atomic { (row & ~row_lock) & (1 << CANCELLED) -> row_lock = row_lock | (1 << CANCELLED) };
		atomic {
			row_lock = row_lock & ~(1 << CANCELLED);
			if
			:: row = row & ~(1 << CANCELLED); removed = removed | (1 << CANCELLED)
			:: skip				/* rolled back */
			fi
		};
#ifndef BROKEN_CANCEL
		tell(CANCELLED);
#endif
		skip
	:: skip
	fi;
	done++
}

proctype locker()
{
	topic_locked = 0;
	done++
}

proctype manager()
{
	byte from, passed_from, snapshot, command, retry_from = NEVER, end_passes, kills = KILLS;
	bool entire;

	do
	:: true ->
		/* begin_pass() */
		if
		:: end_passes == 2 -> entire = 1
		:: else
		fi;
#ifdef BROKEN_FULL
		entire = 0;
#endif
#ifdef BROKEN_EXCHANGE_LATE
		snapshot = row;
#endif
		atomic { from = next_run_at; next_run_at = NEVER }
		atomic {
			/* retry_at is over whenever it suits. */
			if
			:: true ->
				from = (retry_from < from -> retry_from : from);
				retry_from = NEVER
			:: end_passes == 0
			fi;
			if
			:: entire -> from = 0; entire = 0
			:: else
			fi;
			passed_from = NEVER
		}
#ifndef BROKEN_EXCHANGE_LATE
		snapshot = row;
#endif
		/* release_batch(): from there on */
		command = from;
		do
		:: command >= COMMANDS -> break
		:: else ->
			if
			:: !((snapshot >> command) & 1)
			:: ((snapshot >> command) & 1) && of_locked(command) && topic_locked ->
				/* find_topic() */
				passed_from = (command < passed_from -> command : passed_from)
			:: ((snapshot >> command) & 1) && !(of_locked(command) && topic_locked) ->
				/* release(): the row's lock is not waited for */
#ifdef BROKEN_TWO_STEPS
				if
				:: atomic { ((row & ~row_lock) >> command) & 1 -> row = row & ~(1 << command) };
					if
					:: released = released | (1 << command)
					:: kills > 0 -> kills--; goto again
					fi
				:: else
				fi
#else
				atomic {
					if
					:: ((row & ~row_lock) >> command) & 1 ->
						assert(!((released >> command) & 1));
						row = row & ~(1 << command);
						released = released | (1 << command)
					/* Killed: nothing was done; another manager begins anew. */
					:: kills > 0 -> kills--; next_run_at = 0; goto again
					:: else
					fi
				}
#endif
			fi;
			command++
		od;
		/* end_pass(): none of these is in the future */
		atomic {
			if
			:: passed_from != NEVER ->
#ifdef BROKEN_PASSED_BY
				retry_from = passed_from
#else
				retry_from = (passed_from < retry_from -> passed_from : retry_from)
#endif
			:: else
			fi;
			passed_from = NEVER; snapshot = 0; command = 0; from = 0
		}
		/* wait_for_pass() */
		if
		:: atomic { latch || next_run_at != NEVER -> latch = 0 }
		:: atomic { !latch && next_run_at == NEVER && retry_from != NEVER && done < 4 -> skip }
		:: atomic { !latch && next_run_at == NEVER && done == 4 && end_passes == 0 -> end_passes = 1 }
		:: atomic { !latch && next_run_at == NEVER && end_passes == 1 ->
				/* All is quiet, and the retry is over: what was told of is done. */
				assert((row & ~(1 << PREPARED)) == 0);
				end_passes = 2
			}
		:: atomic { !latch && next_run_at == NEVER && end_passes == 2 -> break }
		fi;
again:
		skip
	od;
	assert(row == 0);
	assert((released | removed) == 15 && (released & removed) == 0)
}

init
{
	atomic {
		row = (1 << LOCKED) | (1 << CANCELLED);
		run scheduler();
		run silent();
		run canceller();
		run locker();
		run manager()
	}
}
