/*
 * The thread of a broker's connection: what it reports reaches the worker, the
 * last reports of a connection that is lost, too, and nobody sleeps while
 * there is something for him.
 *
 * Models: link.c (cqrs_link_send, cqrs_link_take, cqrs_link_state,
 * cqrs_link_close, thread_main, thread_cycle, thread_hand_back, thread_wait,
 * wake, drain_pipe), target_broker.c (cqrs_target_broker_task).
 *
 * What is done under the mutex is one step. A pipe is readable as long as it
 * has a byte in it; written says that no second one is needed. Waiting has no
 * time limit here: what is found only when one is over is an error.
 */
/* broken: BROKEN_DRAIN_LATE the thread looks at the list, and then empties its pipe */
/* broken: BROKEN_FLAG whoever empties the pipe forgets the flag */
/* broken: BROKEN_STATE_FIRST the worker looks at the state before it empties its pipe */
/* broken: BROKEN_LAST_REPORTS a lost connection's last reports are forgotten */
/* broken: BROKEN_LOST_FIRST the state is lost before the last reports are handed back */
/* broken: BROKEN_STOP_SILENT a link is closed without waking the thread */
/* broken: BROKEN_FREE a link is freed before the thread has ended */
/* deep: MESSAGES=4 */

#ifndef MESSAGES
#define MESSAGES	2
#endif

mtype = { connecting, open, lost };

/* Under the mutex */
mtype state = connecting;
byte todo, reported;			/* how many are in the lists */
bool stop, ended;

/* The pipes: a byte in it, and its flag */
bool to_thread, to_thread_written, to_worker, to_worker_written;

byte outstanding, reports;		/* the thread's own */
byte broker;					/* answers that are in its socket */
bool broken;					/* the connection is; decided by the broker */
bool freed;

inline wake_thread()
{
	if
	:: !to_thread_written -> to_thread = 1; to_thread_written = 1
	:: else
	fi
}

inline wake_worker()
{
	if
	:: !to_worker_written -> to_worker = 1; to_worker_written = 1
	:: else
	fi
}

inline drain_worker()
{
	to_worker = 0;
#ifndef BROKEN_FLAG
	to_worker_written = 0;
#endif
	skip
}

/* thread_hand_back() */
inline hand_back()
{
	atomic {
		if
		:: reports > 0 || state != open -> wake_worker()
		:: else
		fi;
		reported = reported + reports;
		reports = 0;
		state = open
	}
}

active proctype thread()
{
	byte mine;
	bool my_stop;

	/* startup() */
	if
	:: hand_back()
	:: goto end_of_it			/* refused */
	fi;
	do
	:: true ->
		/* thread_cycle() */
#ifdef BROKEN_DRAIN_LATE
		atomic { mine = todo; todo = 0; my_stop = stop }
		atomic { to_thread = 0; to_thread_written = 0 }
#else
		atomic {
			to_thread = 0; to_thread_written = 0;
			mine = todo; todo = 0;
			my_stop = stop
		}
#endif
		if
		:: my_stop -> break
		:: else
		fi;
		/* publish() and poll() */
		assert(!freed);
		outstanding = outstanding + mine;
		if
		:: broken ->
			/* What had been answered was read before the error. */
			atomic { reports = reports + broker; outstanding = outstanding - broker; broker = 0 };
			break
		:: !broken ->
			atomic { reports = reports + broker; outstanding = outstanding - broker; broker = 0 };
			hand_back()
		fi;
		if
		:: mine > 0 -> mine = 0
		:: else ->
			/* thread_wait() */
			(to_thread || broker > 0 || broken)
		fi
	od;
	/* What was reported last counts. */
#ifdef BROKEN_LOST_FIRST
	atomic { state = lost; wake_worker() };
#endif
#ifndef BROKEN_LAST_REPORTS
	hand_back();
#endif
	/* shutdown() */
	assert(!freed);
end_of_it:
	atomic { state = lost; ended = 1; wake_worker() }
}

/* Answers what was published, and may break the connection. */
active proctype peer()
{
	bool breaks;

	if
	:: breaks = 1
	:: skip
	fi;
end:
	do
	:: atomic { outstanding > broker && !broken -> broker++ }
	:: atomic { breaks && !broken && !ended -> broken = 1 }
	od
}

active proctype worker()
{
	byte sent, got, taken;
	mtype seen;

	do
	:: true ->
		/* cqrs_target_broker_task() */
#ifdef BROKEN_STATE_FIRST
		seen = state;
		atomic { drain_worker(); taken = reported; reported = 0 }
#else
		/* The pipe is emptied first: what changes after that can be read. */
		atomic { drain_worker(); seen = state; taken = reported; reported = 0 }
#endif
		got = got + taken;
		taken = 0;
		if
		:: seen == lost -> break
		:: seen == open && sent < MESSAGES ->
			/* cqrs_link_send() */
			atomic { todo++; wake_thread() };
			sent++
		:: seen == open && got == MESSAGES -> break		/* or for ever idle */
		:: else ->
			/* cqrs_process_wait() */
			to_worker
		fi
	od;
	/* A lost one has handed back all that it ever will. */
	if
	:: seen == lost -> assert(reported == 0 && reports == 0)
	:: else
	fi;
	/* cqrs_link_close() */
	atomic {
		stop = 1;
#ifndef BROKEN_STOP_SILENT
		wake_thread();
#endif
		skip
	}
#ifndef BROKEN_FREE
	do
	:: ended -> break
	:: else -> to_worker; drain_worker()
	od;
#endif
	freed = 1
}
