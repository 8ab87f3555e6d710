/*-------------------------------------------------------------------------
 *
 * session.h
 *	  What a handler leaves in its session.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_SESSION_H
#define CQRS_SESSION_H

#include "nodes/nodes.h"

extern void cqrs_session_init_worker(void);
extern void cqrs_session_note_utility(const Node *stmt);

extern int	cqrs_session_begin_event(bool in_worker);
extern void cqrs_session_fire_deferred(void);
extern void cqrs_session_end_event(int level, bool in_worker);
extern void cqrs_session_after_failure(void);
extern bool cqrs_session_event_was_alone(void);
extern int	cqrs_session_subtransactions(void);
extern void cqrs_session_keep_search_path(const char *path);
extern void cqrs_session_after_transaction(void);

#endif							/* CQRS_SESSION_H */
