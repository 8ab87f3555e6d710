/*-------------------------------------------------------------------------
 *
 * module.c
 *	  Loading, and what concerns the library as a whole.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "fmgr.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"

#include "base/debug_point.h"
#include "extension/catalog.h"
#include "mediator/breaker.h"
#include "mediator/middleware.h"
#include "process/launcher.h"
#include "process/utility.h"
#include "registry/handler.h"
#include "registry/registry.h"
#include "shared/announce.h"
#include "shared/shmem.h"

CQRS_MODULE_MAGIC;

static shmem_startup_hook_type prev_shmem_startup_hook = NULL;
static shmem_request_hook_type prev_shmem_request_hook = NULL;

void		_PG_init(void);

static void ask_for_shared_memory(void);
static void shmem_request(void);
static void shmem_startup(void);

PG_FUNCTION_INFO_V1(cqrs_announce);

/*
 * Preloaded, this runs in the postmaster; otherwise in each backend that
 * first calls one of our functions. Without preloading there is no shared
 * memory and no background worker; all else works.
 */
void
_PG_init(void)
{
	cqrs_debug_point_define();
	cqrs_guc_define();
	cqrs_registry_init();
	cqrs_handler_init_process();
	cqrs_middleware_init();
	if (process_shared_preload_libraries_in_progress)
	{
		ask_for_shared_memory();
		cqrs_utility_init();
		cqrs_launcher_register();
	}
	cqrs_announce_init();
}

/*
 * cqrs.announce(): called at the end of the extension's scripts.
 */
Datum
cqrs_announce(PG_FUNCTION_ARGS)
{
	cqrs_catalog_invalidate_registry();
	cqrs_shmem_changed();
	cqrs_shmem_announce(MyDatabaseId);
	PG_RETURN_VOID();
}

static void
ask_for_shared_memory(void)
{
	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = shmem_request;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = shmem_startup;
}

static void
shmem_request(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
	cqrs_shmem_request();
	cqrs_breaker_shmem_request();
}

static void
shmem_startup(void)
{
	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	cqrs_shmem_startup();
	cqrs_breaker_shmem_startup();
	LWLockRelease(AddinShmemInitLock);
}
