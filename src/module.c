/*-------------------------------------------------------------------------
 *
 * module.c
 *	  Loading.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "fmgr.h"

#include "base/debug_point.h"
#include "mediator/middleware.h"
#include "process/launcher.h"
#include "process/utility.h"
#include "registry/handler.h"
#include "registry/registry.h"
#include "shared/shmem.h"

CQRS_MODULE_MAGIC;

void		_PG_init(void);

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
		cqrs_shmem_init();
		cqrs_utility_init();
		cqrs_launcher_register();
	}
	cqrs_shmem_init_process();
}
