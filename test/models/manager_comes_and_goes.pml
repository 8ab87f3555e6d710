/*
 * Managers come when something is announced or due, and go when there is
 * nothing: what was announced while one was ending is found, and so is what a
 * worker has left to do.
 *
 * Models: database.c (cqrs_database_rest, cqrs_database_due, cqrs_shmem_wake),
 * launcher.c (start_next, next_in_line, make_room), manager.c
 * (cqrs_manager_main, time_to_rest, manager_exit), worker.c (deliver).
 *
 * Two databases share one place for a manager. Transactions emit, one after the
 * other, to any of them. A manager looks, has a worker deliver, and ends when it
 * has been idle, or is asked to; its worker may still be at it, and may leave
 * something to do for later: a retry. Times come at any time. What is done
 * under the lock in shared memory is one step.
 */
/* broken: BROKEN_ASLEEP a manager that ends does not have emitters wake anybody */
/* broken: BROKEN_WAKE_FIRST it wakes the launcher before it rests */
/* broken: BROKEN_PENDING the launcher, woken, looks only at what is due */
/* broken: BROKEN_RESET the launcher resets its latch after it has looked */
/* broken: BROKEN_NEXT_DUE a manager that ends writes over what a worker wrote */
/* broken: BROKEN_NOTE a manager raises next_due after it has noted what workers did */
/* broken: BROKEN_WORKER a worker tells only a manager that is there */
/* deep: EMITTERS=3 RETRIES=2 */

#define DATABASES	2
#ifndef EMITTERS
#define EMITTERS	2
#endif
#ifndef RETRIES
#define RETRIES		1			/* in all */
#endif

#define RESTING		0
#define RUNNING		1

/* The slots. */
bool running[DATABASES];
bool has_latch[DATABASES], latch[DATABASES], asked[DATABASES];
bool pending[DATABASES], asleep[DATABASES];
bool next_due[DATABASES];		/* there is one */

bool launcher_latch;

byte committed[DATABASES], found[DATABASES], delivered[DATABASES];
bool left[DATABASES];			/* by a worker, for later */
bool at_work[DATABASES];		/* a worker, ... */
byte wanted[DATABASES];			/* which is to deliver this */
byte retries = RETRIES;

proctype emitter()
{
	bool d, mine;

	if
	:: d = 0
	:: d = 1
	fi;
	committed[d]++;

	/* cqrs_shmem_wake() */
	pending[d] = 1;
	atomic { mine = asleep[d]; asleep[d] = 0 };
	if
	:: mine && has_latch[d] -> latch[d] = 1
	:: mine && !has_latch[d] -> launcher_latch = 1
	:: else
	fi
}

/* deliver(), of what was found when it was asked to */
proctype worker(bool d)
{
end:
	do
	:: atomic { at_work[d] ->
			delivered[d] = wanted[d];
			wanted[d] = 0;
			at_work[d] = 0;
			if
			:: retries > 0 ->
				/* cqrs_database_due() */
				retries--;
				left[d] = 1;
				next_due[d] = 1;
				if
				:: has_latch[d] -> latch[d] = 1
#ifndef BROKEN_WORKER
				:: !has_latch[d] && !running[d] -> launcher_latch = 1
#endif
				:: else
				fi
			:: true
			fi
		}
	od
}

proctype manager(bool d)
{
	bool retry;					/* a cursor's, that is due later */

	/* manager_attach() */
end:
	atomic { running[d] -> has_latch[d] = 1; next_due[d] = 0; asleep[d] = 0; asked[d] = 0 };
	do
	:: true ->
		/* look() */
		pending[d] = 0;
		found[d] = committed[d];

		/* cqrs_assign_workers() */
		atomic {
#ifndef BROKEN_NOTE
			next_due[d] = 0;
#endif
			retry = retry || left[d];
			left[d] = 0;
			if
			:: found[d] > delivered[d] ->
				at_work[d] = 1;
				wanted[d] = found[d]
			:: else
			fi;

			/* The time of a retry may have come. */
			if
			:: retry -> retry = 0
			:: true
			fi
		};
#ifdef BROKEN_NOTE
		next_due[d] = 0;
#endif

		/* time_to_rest() */
		if
		:: asked[d] -> break
		:: !pending[d] -> break
		:: !asked[d]
		fi;
		asleep[d] = 1;
		if
		:: pending[d]
		:: else ->
			/* cqrs_process_wait(), which ends at times by itself */
			if
			:: latch[d] -> latch[d] = 0
			:: !latch[d]
			fi
		fi;
		asleep[d] = 0
	od;

	/* manager_exit(), cqrs_database_rest() */
#ifdef BROKEN_WAKE_FIRST
	launcher_latch = 1;
#endif
	has_latch[d] = 0;
	atomic {
		running[d] = 0;
		left[d] = left[d] || retry;		/* the next one finds it */
#ifdef BROKEN_NEXT_DUE
		next_due[d] = retry;
#else
		next_due[d] = next_due[d] || retry;
#endif
		retry = 0
	};
#ifndef BROKEN_ASLEEP
	asleep[d] = 1;
#endif
#ifndef BROKEN_WAKE_FIRST
	launcher_latch = 1;
#endif
	goto end
}

#ifdef BROKEN_PENDING
#define is_due(d)	(!running[d] && next_due[d])
#else
#define is_due(d)	(!running[d] && (next_due[d] || pending[d]))
#endif

proctype launcher()
{
	bool waits[DATABASES];
	bool timer;					/* it waits for a time */

end:
	do
	:: launcher_latch || timer ->
#ifndef BROKEN_RESET
		launcher_latch = 0;
#endif
		atomic {
			waits[0] = is_due(0);
			waits[1] = is_due(1);
			if
			:: waits[0] && !running[1] -> running[0] = 1
			:: waits[1] && !running[0] -> running[1] = 1
			/* make_room() */
			:: waits[0] && running[1] && !asked[1] -> asked[1] = 1; latch[1] = 1
			:: waits[1] && running[0] && !asked[0] -> asked[0] = 1; latch[0] = 1
			:: else
			fi;
			timer = (next_due[0] && !running[0]) || (next_due[1] && !running[1]);
			waits[0] = 0;
			waits[1] = 0
		}
#ifdef BROKEN_RESET
		launcher_latch = 0
#endif
	od
}

init
{
	byte i;

	atomic {
		asleep[0] = 1;
		asleep[1] = 1;
		do
		:: i < EMITTERS -> run emitter(); i++
		:: else -> break
		od;
		i = 0;
		run manager(0);
		run manager(1);
		run worker(0);
		run worker(1);
		run launcher()
	};

	/* All is quiet. */
	timeout;
	assert(!running[0] && !running[1]);
	assert(found[0] == committed[0] && found[1] == committed[1]);
	assert(delivered[0] == committed[0] && delivered[1] == committed[1]);
	assert(!left[0] && !left[1])
}
