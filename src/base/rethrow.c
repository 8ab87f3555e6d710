/*-------------------------------------------------------------------------
 *
 * rethrow.c
 *	  Errors that are raised again after a cleanup.
 *
 * Code that catches an error, and frees memory before it raises the error again,
 * takes the error first, then frees, then rethrows it. PG_RE_THROW() is only for
 * code that frees nothing: neither a subtransaction nor a context.
 *
 * Why
 *
 * An error that was rethrown with ReThrowError() points to strings of the
 * rethrower: the names of file and function, the text domains and the message's
 * id are not copied, as if they were constants. PL/pgSQL does that for each
 * error that an EXCEPTION clause is not for. Those strings are in memory of a
 * function, or of a subtransaction, further down; if that is freed on the way
 * up, whoever reports the error reads freed memory. So what is rethrown here
 * has these strings in ErrorContext, where they live as long as the error.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "utils/memutils.h"

#include "base/rethrow.h"

/*
 * In PG_CATCH(): copy the caught error to this context, which must outlive the
 * cleanup. The error is no longer current: the caller handles it, or raises it
 * again with cqrs_error_rethrow(). The context becomes the current one.
 */
ErrorData *
cqrs_error_take(MemoryContext context)
{
	ErrorData  *error;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	FlushErrorState();
	return error;
}

/*
 * Raise an error again that was taken.
 */
void
cqrs_error_rethrow(ErrorData *error)
{
	const char **strings[] = {
		&error->filename, &error->funcname, &error->domain,
		&error->context_domain, &error->message_id
	};
	int			i;

	for (i = 0; i < lengthof(strings); i++)
		if (*strings[i] != NULL)
			*strings[i] = MemoryContextStrdup(ErrorContext, *strings[i]);
	ReThrowError(error);
}
