/*-------------------------------------------------------------------------
 *
 * guc.c
 *	  Settings.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include <limits.h>

#include "utils/guc.h"

bool		cqrs_deliver = true;
int			cqrs_tick_interval = 2;
int			cqrs_poll_interval = 1000;
int			cqrs_batch_duration = 50;
int			cqrs_manager_idle_timeout = 300000;
int			cqrs_max_databases = 1000;
int			cqrs_max_managers = 2;
int			cqrs_max_workers = 4;
int			cqrs_max_breakers = 128;
int			cqrs_max_command_depth = 64;
int			cqrs_max_event_depth = 64;
int			cqrs_segment_size = 256 * 1024;
int			cqrs_segment_age = 10 * 60 * 1000;
int			cqrs_idempotency_retention = 24 * 60 * 60;
int			cqrs_consumed_retention = 24 * 60 * 60;
int			cqrs_saga_retention = 7 * 24 * 60 * 60;
char	   *cqrs_traceparent = "";
char	   *cqrs_correlation_id = "";

static bool check_correlation_id(char **newval, void **extra,
								 GucSource source);
static bool check_traceparent(char **newval, void **extra, GucSource source);
static bool is_hex(const char *str, int len);

/*
 * Define the settings; called once in each process. If the library is not
 * preloaded, those of the background workers can be seen, but have no effect;
 * the server does not allow settings that are fixed at its start to be defined
 * later.
 */
void
cqrs_guc_define(void)
{
	GucContext	at_start = process_shared_preload_libraries_in_progress ?
	PGC_POSTMASTER : PGC_SIGHUP;

	DefineCustomIntVariable("cqrs_outbox.max_command_depth",
							"Sets how many commands can be handled one within the other.",
							NULL, &cqrs_max_command_depth,
							64, 1, 10000, PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("cqrs_outbox.max_event_depth",
							"Sets how long a chain of events can be, each emitted by a handler of the one before.",
							NULL, &cqrs_max_event_depth,
							64, 1, 10000, PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("cqrs_outbox.segment_size",
							"Sets how large a topic's current segment gets before the next one is written.",
							NULL, &cqrs_segment_size,
							256 * 1024, 8, MAX_KILOBYTES, PGC_SUSET,
							GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable("cqrs_outbox.segment_age",
							"Sets how long a topic's current segment is written before the next one is.",
							NULL, &cqrs_segment_age,
							10 * 60 * 1000, 1, INT_MAX, PGC_SUSET,
							GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("cqrs_outbox.idempotency_retention",
							"Sets how long at least the answer of a command sent with an idempotency key is kept.",
							NULL, &cqrs_idempotency_retention,
							24 * 60 * 60, 0, INT_MAX, PGC_SUSET,
							GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("cqrs_outbox.consumed_retention",
							"Sets for how long of its source's time at least the id of a consumed message is kept.",
							"A source's time passes only while messages of it are consumed.",
							&cqrs_consumed_retention,
							24 * 60 * 60, 0, INT_MAX, PGC_SUSET,
							GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("cqrs_outbox.saga_retention",
							"Sets how long at least a saga that is over is kept.",
							NULL, &cqrs_saga_retention,
							7 * 24 * 60 * 60, 0, INT_MAX, PGC_SUSET,
							GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomStringVariable("cqrs_outbox.traceparent",
							   "Sets the W3C trace context that emitted events belong to.",
							   "It becomes the header traceparent of events that have none.",
							   &cqrs_traceparent,
							   "", PGC_USERSET, 0,
							   check_traceparent, NULL, NULL);
	DefineCustomStringVariable("cqrs_outbox.correlation_id",
							   "Sets the correlation id of what is handled and emitted.",
							   "It becomes the header correlation_id of events that have none. If it is empty, the outermost command is the origin of what it leads to.",
							   &cqrs_correlation_id,
							   "", PGC_USERSET, 0,
							   check_correlation_id, NULL, NULL);
	DefineCustomBoolVariable("cqrs_outbox.deliver",
							 "Has the background workers tick and deliver.",
							 "Turn it off in a copy of a production database.",
							 &cqrs_deliver, true, PGC_SIGHUP, 0,
							 NULL, NULL, NULL);
	DefineCustomIntVariable("cqrs_outbox.tick_interval",
							"Sets the shortest time between two looks at what was committed in a database.",
							NULL, &cqrs_tick_interval,
							2, 0, 60000, PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("cqrs_outbox.poll_interval",
							"Sets how often to look for events that nobody announced.",
							"Events announce themselves when their transaction commits, except if it was prepared and is committed by a session without this library.",
							&cqrs_poll_interval,
							1000, 10, INT_MAX, PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("cqrs_outbox.batch_duration",
							"Sets after how long a transaction of a worker's that delivers events to a handler takes no further event.",
							"So long locks are held that a handler takes, besides the time of one event.",
							&cqrs_batch_duration,
							50, 1, 60000, PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("cqrs_outbox.manager_idle_timeout",
							"Sets after how long without anything to do a database's manager ends.",
							"Another is started when there is something to do. -1 has it stay.",
							&cqrs_manager_idle_timeout,
							300000, -1, INT_MAX, PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("cqrs_outbox.max_databases",
							"Sets how many databases can have the extension.",
							"Each takes less than 400 bytes of shared memory.",
							&cqrs_max_databases,
							1000, 1, 10000, at_start, 0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("cqrs_outbox.max_managers",
							"Sets how many databases can have a manager at the same time.",
							"Each needs one of max_worker_processes. Those that wait for one have it by turns.",
							&cqrs_max_managers,
							2, 1, 10000, at_start, 0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("cqrs_outbox.max_workers",
							"Sets how many workers can deliver and consume at the same time.",
							"Each needs one of max_worker_processes.",
							&cqrs_max_workers,
							4, 1, 1000, at_start, 0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("cqrs_outbox.max_breakers",
							"Sets how many circuit breakers can have failures to remember at the same time.",
							NULL, &cqrs_max_breakers,
							128, 1, 100000, at_start, 0,
							NULL, NULL, NULL);
	MarkGUCPrefixReserved("cqrs_outbox");
}

/*
 * Allow an empty string, or a traceparent of W3C's version 00.
 */
static bool
check_traceparent(char **newval, void **extra, GucSource source)
{
	const char *value = *newval;

	if (value[0] == '\0')
		return true;
	if (strlen(value) == CQRS_TRACEPARENT_LEN &&
		strncmp(value, "00-", 3) == 0 &&
		is_hex(value + 3, 32) && value[35] == '-' &&
		is_hex(value + 36, 16) && value[52] == '-' &&
		is_hex(value + 53, 2) &&
		strspn(value + 3, "0") < 32 && strspn(value + 36, "0") < 16)
		return true;

	GUC_check_errhint("It is 00-<trace id>-<parent id>-<flags>, in 32, 16 and 2 lower-case hexadecimal digits, no id all zeros; or empty.");
	return false;
}

/*
 * Allow what is safe in any encoding, and in a header.
 */
static bool
check_correlation_id(char **newval, void **extra, GucSource source)
{
	const char *value = *newval;
	int			i;

	for (i = 0; value[i] != '\0'; i++)
		if (value[i] < ' ' || value[i] > '~')
			break;
	if (i <= CQRS_CORRELATION_ID_LEN && value[i] == '\0')
		return true;

	GUC_check_errhint("It is up to %d printable ASCII characters.",
					  CQRS_CORRELATION_ID_LEN);
	return false;
}

static bool
is_hex(const char *str, int len)
{
	return strspn(str, "0123456789abcdef") >= len;
}
