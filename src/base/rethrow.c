/*-------------------------------------------------------------------------
 *
 * rethrow.c
 *	  Errors that go on after what they passed through was cleaned up.
 *
 * Whoever catches an error, and frees memory before it throws the error again,
 * takes the error first, then frees, then rethrows what was taken. PG_RE_THROW()
 * is only for who frees nothing: neither a subtransaction, nor a context.
 *
 * Why
 *
 * An error that somebody has rethrown with ReThrowError() points to strings
 * of who did: the names of file and function, the text domains and the message's
 * id are not copied back, as if they were constants. PL/pgSQL does that for
 * each error that an EXCEPTION clause is not for. Those strings are in memory
 * of a function, or of a subtransaction, further down; and when that is freed on
 * the way up, the one who reports the error reads what is there then. For the
 * same reason, what is rethrown here has these strings in ErrorContext, where
 * they are as long as the error is.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "utils/memutils.h"

#include "base/rethrow.h"

/*
 * In PG_CATCH(): take the error that was caught, in this context, which outlives
 * whatever is cleaned up now. It is current no more: the caller handles it, or
 * has it go on with cqrs_error_rethrow(). The current context is the one
 * given.
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
 * Have an error go on that was taken.
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
