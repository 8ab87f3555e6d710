/*-------------------------------------------------------------------------
 *
 * search_path.h
 *	  The search_path that a subscription's handler is called with.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_SEARCH_PATH_H
#define CQRS_SEARCH_PATH_H

extern char *cqrs_search_path_now(void);
extern void cqrs_search_path_check(const char *path);
extern void cqrs_search_path_warn(const char *subscription, Oid owner,
								  const char *path, Oid handler);

#endif							/* CQRS_SEARCH_PATH_H */
