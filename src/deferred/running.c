/*-------------------------------------------------------------------------
 *
 * running.c
 *	  The commands that workers are executing, and who wants one to end.
 *
 * A signal that ends what a process is doing may come late, and end something
 * else. So what is asked for is the end of a command, by its id.
 *
 * Protocol
 *
 * 1. A worker that begins a command writes the id, and then a number, into its
 *	  slot; when the command is over, the number is 0. No number comes twice in
 *	  a slot (running_begin, running_end).
 * 2. Whoever cancels a command writes its id into the list of requests. If he
 *	  then finds a worker that has the id in its slot, he writes the number
 *	  into the slot as the one to end, and sends SIGUSR2.
 * 3. The signal's handler compares the two numbers, and only if they are the same
 *	  it has the statement end, as pg_cancel_backend() would. What was begun in
 *	  the meantime has another number.
 * 4. The worker looks at the requests once its number can be seen; so one of the
 *	  two sees the other. A command that is requested to end is not begun. That
 *	  is why the request stays until whoever cancels has the cursor's lock: the
 *	  batch that the command was in is rolled back, and may be delivered again,
 *	  by any worker, before the outcome is recorded.
 *
 * What a command meets is OB005, whatever its handler makes of being cancelled, as
 * long as it returns.
 *
 * Locking
 *
 * The shared lock protects the requests, and the processes whose slots are
 * signalled: who leaves a slot takes its pid out first.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include <signal.h>

#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "storage/latch.h"

#include "base/rethrow.h"
#include "deferred/running.h"

/* The slot of this worker; NULL: this process is none. */
static CqrsWorkerSlot *my_slot = NULL;

/* The slot shows what is executed here. */
static bool showing = false;

/* It is to end. */
static volatile sig_atomic_t canceled = false;

static void end_if_asked(SIGNAL_ARGS);
static uint32 shown_in(CqrsWorkerSlot *slot, const pg_uuid_t *command_id);
static bool is_requested(const pg_uuid_t *command_id);
pg_noreturn static void raise_canceled(const char *command_name);

/*
 * This process is the worker with this slot, which does not have its pid yet: so
 * nobody sends it a signal because of what the one before it executed.
 */
void
cqrs_running_attach(CqrsWorkerSlot *slot)
{
	my_slot = slot;
	pg_atomic_write_u32(&slot->running, 0);
	pqsignal(SIGUSR2, end_if_asked);
}

/*
 * A command is about to be executed. Returns what cqrs_running_end() is to be told.
 * One that is executed within another one is not shown, but can be kept from
 * beginning.
 */
bool
cqrs_running_begin(const pg_uuid_t *command_id)
{
	bool		began = my_slot != NULL && !showing;

	if (began)
	{
		canceled = false;
		my_slot->command_id = *command_id;
		if (++my_slot->ncommands == 0)
			my_slot->ncommands = 1;
		showing = true;
		pg_write_barrier();
		pg_atomic_write_u32(&my_slot->running, my_slot->ncommands);
	}
	if (cqrs_shared == NULL)
		return began;
	pg_memory_barrier();
	if (pg_atomic_read_u32(&cqrs_shared->ncancels) > 0 &&
		is_requested(command_id))
		canceled = true;
	return began;
}

/*
 * Raises OB005 if the command is to end.
 */
void
cqrs_running_check(const char *command_name)
{
	if (unlikely(canceled))
		raise_canceled(command_name);
}

/*
 * The command is over. Whoever wants it to end comes too late.
 */
void
cqrs_running_end(bool began)
{
	if (began)
	{
		pg_atomic_write_u32(&my_slot->running, 0);
		showing = false;
	}

	/* The end of one within another says nothing of that. */
	if (!showing)
		canceled = false;
}

/*
 * In PG_CATCH(): the command raised an error. Raises OB005 instead, if it was to
 * end.
 */
void
cqrs_running_failed(bool began, const char *command_name)
{
	bool		was_canceled;

	if (began)
		pg_atomic_write_u32(&my_slot->running, 0);
	was_canceled = canceled;
	cqrs_running_end(began);
	if (!was_canceled)
		return;
	canceled = false;

	/* The next one does not take over what is pending. */
	QueryCancelPending = false;
	FlushErrorState();
	raise_canceled(command_name);
}

/*
 * Is a worker executing this command?
 */
bool
cqrs_running_shows(const pg_uuid_t *command_id)
{
	bool		found = false;
	int			i;

	if (cqrs_shared == NULL)
		return false;
	LWLockAcquire(cqrs_shared->lock, LW_SHARED);
	for (i = 0; !found && i < cqrs_shared->nworkers; i++)
		found = shown_in(&cqrs_shared->workers[i], command_id) != 0;
	LWLockRelease(cqrs_shared->lock);
	return found;
}

/*
 * Have whoever executes this command end it, and nobody begin it. Returns the
 * number of a request that is to be forgotten in any case; -1: there are too many of
 * them, and the command is left alone. *running gets whether a worker was executing
 * it.
 */
int
cqrs_running_cancel(const pg_uuid_t *command_id, bool *running)
{
	int			request = -1;
	int			i;

	*running = false;
	if (cqrs_shared == NULL)
		return -1;
	LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
	for (i = 0; request < 0 && i < CQRS_MAX_CANCELS; i++)
		if (!OidIsValid(cqrs_shared->cancels[i].dboid))
			request = i;
	if (request >= 0)
	{
		cqrs_shared->cancels[request].dboid = MyDatabaseId;
		cqrs_shared->cancels[request].command_id = *command_id;
		(void) pg_atomic_fetch_add_u32(&cqrs_shared->ncancels, 1);
		pg_memory_barrier();
	}
	for (i = 0; request >= 0 && i < cqrs_shared->nworkers; i++)
	{
		CqrsWorkerSlot *slot = &cqrs_shared->workers[i];
		uint32		number = shown_in(slot, command_id);

		if (number == 0)
			continue;
		*running = true;
		pg_atomic_write_u32(&slot->to_end, number);
		pg_memory_barrier();
		if (kill(slot->pid, SIGUSR2) < 0)
			elog(DEBUG1, "could not send signal to process %d: %m", slot->pid);
	}
	LWLockRelease(cqrs_shared->lock);
	return request;
}

void
cqrs_running_forget(int request)
{
	if (request < 0)
		return;
	LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
	cqrs_shared->cancels[request].dboid = InvalidOid;
	(void) pg_atomic_fetch_sub_u32(&cqrs_shared->ncancels, 1);
	LWLockRelease(cqrs_shared->lock);
}

/*
 * Runs in the signal handler of SIGUSR2.
 */
static void
end_if_asked(SIGNAL_ARGS)
{
	int			save_errno = errno;
	uint32		running = pg_atomic_read_u32(&my_slot->running);

	if (running != 0 && running == pg_atomic_read_u32(&my_slot->to_end))
	{
		canceled = true;
		InterruptPending = true;
		QueryCancelPending = true;
		SetLatch(MyLatch);
	}
	errno = save_errno;
}

/*
 * The number of the command in the slot, if it is this one; otherwise 0. The lock is
 * held. If the id is another one's by now, so is the slot's number.
 */
static uint32
shown_in(CqrsWorkerSlot *slot, const pg_uuid_t *command_id)
{
	uint32		number = pg_atomic_read_u32(&slot->running);

	if (slot->pid == 0 || slot->dboid != MyDatabaseId || number == 0)
		return 0;
	pg_read_barrier();
	return memcmp(&slot->command_id, command_id, UUID_LEN) == 0 ? number : 0;
}

static bool
is_requested(const pg_uuid_t *command_id)
{
	bool		found = false;
	int			i;

	LWLockAcquire(cqrs_shared->lock, LW_SHARED);
	for (i = 0; !found && i < CQRS_MAX_CANCELS; i++)
		found = cqrs_shared->cancels[i].dboid == MyDatabaseId &&
			memcmp(&cqrs_shared->cancels[i].command_id, command_id,
				   UUID_LEN) == 0;
	LWLockRelease(cqrs_shared->lock);
	return found;
}

static void
raise_canceled(const char *command_name)
{
	ereport(ERROR,
			(errcode(ERRCODE_CQRS_CANCELED),
			 errmsg("command \"%s\" was canceled", command_name),
			 errdetail("By cqrs_cancel_command(), while it was being executed.")));
}
