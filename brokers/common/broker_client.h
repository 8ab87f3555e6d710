/*-------------------------------------------------------------------------
 *
 * broker_client.h
 *	  What the clients of this repository's broker modules share: options,
 *	  templates, texts of errors.
 *
 * No header of PostgreSQL is included, here or where this is included: what
 * runs in a module's callbacks cannot call the server.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BROKER_CLIENT_H
#define BROKER_CLIENT_H

#include "cqrs_broker.h"

/*
 * Each module has its own copy of this, perhaps of another version. The server
 * loads libraries so that the first one's symbols are everybody's, and these
 * must not be among them.
 */
#pragma GCC visibility push(hidden)

extern bool broker_error(char *error, const char *format,...)
			__attribute__((format(printf, 2, 3)));

extern const char *broker_option(const CqrsBrokerConnection *connection,
								 const char *name);
extern int	broker_option_int(const CqrsBrokerConnection *connection,
							  const char *name, int otherwise);
extern bool broker_option_bool(const CqrsBrokerConnection *connection,
							   const char *name, bool otherwise);

extern bool broker_check_int(const char *value, int min, int max, char *error);
extern bool broker_check_bool(const char *value, char *error);
extern bool broker_check_not_empty(const char *value, char *error);

extern bool broker_template_check(const char *template, char *error);
extern size_t broker_template_expand(const char *template,
									 const CqrsBrokerMessage *message,
									 char *buffer, size_t size);

#pragma GCC visibility pop

#endif							/* BROKER_CLIENT_H */
