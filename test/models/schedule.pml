/*
 * The schedule and the worker slots: what is due is delivered, a lost worker
 * is remembered by its database, and a process that is asked to end does.
 *
 * Models: assign.c (cqrs_assign_workers, note_results, assign_worker),
 * worker.c (worker_attach, worker_exit, deliver), manager.c (manager_exit).
 *
 * Two databases have a cursor each, and share SLOTS slots. A worker may be
 * lost while it delivers: then the next delivery of that cursor is a careful
 * one. What is done under the lock in shared memory is one step. The extension
 * of database 0 may be dropped while a worker starts.
 */
/* broken: BROKEN_REUSE a slot that failed is reused before its manager has noted that */
/* broken: BROKEN_DRAINED a worker says it has drained what was due when it was done */
/* broken: BROKEN_STARTING a manager that ends stops only those that have attached */
/* deep: SLOTS=2 LOSSES=2 */

#ifndef SLOTS
#define SLOTS	1
#endif
#ifndef LOSSES
#define LOSSES	1
#endif
#ifndef LOOKS
#define LOOKS	2				/* of each manager; an event is found by each */
#endif

#define FREE		0
#define FAILED		1
#define STARTING	2
#define DELIVERING	3
#define IDLE		4

/* The slots; the cursor is its database's. */
byte state[SLOTS], db[SLOTS], request[SLOTS], served[SLOTS];
byte wanted[SLOTS], drained[SLOTS];
bool stop[SLOTS], attached[SLOTS], careful[SLOTS], noted[SLOTS];

byte losses = LOSSES;
byte committed[2], delivered[2];	/* events of each database */
bool lost[2];					/* a worker was; not delivered carefully since */
bool forgotten[2];				/* cqrs_database slot: whose slot was needed */
bool gone;						/* the extension of database 0 */
byte looks[2], manager_done;
bool wake[2];

proctype worker(byte s)
{
	byte mine, did;
	bool with_care;

	/* worker_attach(); a slot has one worker after the other. */
endattach:
	atomic { state[s] == STARTING && !attached[s] -> attached[s] = 1 };
	do
	:: atomic {
			!stop[s] && request[s] != served[s] && state[s] != DELIVERING ->
			state[s] = DELIVERING;
			mine = request[s]; did = wanted[s]; with_care = careful[s]
		}
		if
		:: atomic { gone && db[s] == 0 -> skip }	/* begin_delivery(): not there */
		:: atomic { !(gone && db[s] == 0) ->
				/* After a loss, whoever delivers next is careful. */
				assert(!lost[db[s]] || with_care);
				lost[db[s]] = 0;
				delivered[db[s]] = committed[db[s]]
			}
		:: atomic { losses > 0 && !(gone && db[s] == 0) ->
				/* worker_exit() */
				assert(!lost[db[s]] || with_care);
				losses--;
				lost[db[s]] = 1;
				state[s] = FAILED; attached[s] = 0;
				wake[0] = 1; wake[1] = 1;
				goto endattach
			}
		fi;
		atomic {
#ifdef BROKEN_DRAINED
			drained[s] = wanted[s];
			served[s] = request[s];
#else
			drained[s] = did;
			served[s] = mine;
#endif
			careful[s] = 0; noted[s] = 0;
			state[s] = IDLE;
			wake[0] = 1; wake[1] = 1;
			mine = 0; did = 0; with_care = 0
		}
	:: atomic { stop[s] && state[s] != DELIVERING ->
			state[s] = FREE; attached[s] = 0;
			wake[0] = 1; wake[1] = 1;
			goto endattach
		}
	:: atomic { !stop[s] && request[s] == served[s] && state[s] == STARTING -> state[s] = IDLE }
	/* The server stops. A worker for a broker ends for nothing else. */
	:: atomic { manager_done == 2 && !(gone && db[s] == 0) -> break }
	od
}

proctype manager(byte me)
{
	byte due, done_to, s, found;
	bool careful_next;

	do
	:: atomic { looks[me] < LOOKS ->
			/* look(): something was committed */
			looks[me]++; committed[me]++;
			due = looks[me]
		};
assign:
		atomic {
			wake[me] = 0;
			/* note_results() */
			s = 0;
			do
			:: s == SLOTS -> break
			:: else ->
				if
				:: state[s] == FAILED && db[s] == me ->
					careful_next = 1; state[s] = FREE
				:: state[s] >= STARTING && db[s] == me && !noted[s] && served[s] != 0 ->
					noted[s] = 1;
					if
					:: drained[s] > done_to -> done_to = drained[s]; careful_next = careful[s]
					:: else
					fi
				:: else
				fi;
				s++
			od;
			if
			:: forgotten[me] -> forgotten[me] = 0; careful_next = 1
			:: else
			fi;
			/* assign_worker(): ours, or an unused one, or have an idle one end */
			found = SLOTS; s = 0;
			do
			:: s == SLOTS || due <= done_to -> break
			:: else ->
				if
				:: state[s] >= STARTING && db[s] == me && !stop[s] -> found = s
				:: else
				fi;
				s++
			od;
			s = 0;
			do
			:: s == SLOTS || due <= done_to || found < SLOTS -> break
			:: else ->
				if
				:: state[s] == FREE || state[s] == FAILED ->
#ifndef BROKEN_REUSE
					/* Another database's: have its manager know. */
					if
					:: state[s] == FAILED -> forgotten[db[s]] = 1
					:: else
					fi;
#endif
					state[s] = STARTING; db[s] = me; attached[s] = 0;
					stop[s] = 0; request[s] = 0; served[s] = 0; wanted[s] = 0;
					drained[s] = 0; noted[s] = 0; careful[s] = 0;
					found = s
				:: else
				fi;
				s++
			od;
			if
			:: found < SLOTS && due > done_to &&
			   !(request[found] != served[found] && wanted[found] == due) ->
				wanted[found] = due; careful[found] = careful_next;
				request[found]++
			:: found == SLOTS && due > done_to ->
				/* A foreign one that is idle */
				s = 0;
				do
				:: s == SLOTS -> break
				:: else ->
					if
					:: state[s] == IDLE && db[s] != me && !stop[s] && request[s] == served[s] -> stop[s] = 1
					:: else
					fi;
					s++
				od
			:: else
			fi;
			s = 0; found = 0
		}
	:: atomic { wake[me] -> goto assign }
	:: atomic { me == 0 ->
			/* DROP EXTENSION; manager_exit() */
			gone = 1;
			s = 0;
			do
			:: s == SLOTS -> break
			:: else ->
				if
#ifdef BROKEN_STARTING
				:: attached[s] && db[s] == me -> stop[s] = 1
#else
				:: state[s] >= STARTING && db[s] == me -> stop[s] = 1
#endif
				:: else
				fi;
				s++
			od;
			break
		}
	:: atomic { looks[me] == LOOKS && due <= done_to && !wake[me] -> break }
	od;
	assert(delivered[me] == committed[me] || (gone && me == 0));
	manager_done++
}

init
{
	byte i;

	atomic {
		do
		:: i < SLOTS -> run worker(i); i++
		:: else -> break
		od;
		i = 0;
		run manager(0);
		run manager(1)
	}
}
