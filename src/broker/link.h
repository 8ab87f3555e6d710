/*-------------------------------------------------------------------------
 *
 * link.h
 *	  A connection to a broker, and the thread that runs its module.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_BROKER_LINK_H
#define CQRS_BROKER_LINK_H

#include "broker/link_message.h"

extern CqrsBrokerLink *cqrs_link_open(const CqrsBrokerModule *module,
									  const CqrsBrokerConnection *connection);
extern CqrsLinkState cqrs_link_state(CqrsBrokerLink *link, char *error);
extern int	cqrs_link_fd(const CqrsBrokerLink *link);
extern void cqrs_link_send(CqrsBrokerLink *link, CqrsLinkMessage *first,
						   CqrsLinkMessage *last);
extern CqrsLinkMessage *cqrs_link_take(CqrsBrokerLink *link);
extern void cqrs_link_call(CqrsBrokerLink *link, CqrsLinkCall call,
						   const char *record);
extern bool cqrs_link_answer(CqrsBrokerLink *link, bool *committed,
							 char *record);
extern void cqrs_link_close(CqrsBrokerLink *link);

/* link_source.c: of a link whose connection has a source. */
extern void cqrs_link_assign(CqrsBrokerLink *link,
							 const CqrsBrokerPosition *positions,
							 int npositions);
extern CqrsBrokerReceived *cqrs_link_receive(CqrsBrokerLink *link,
											 CqrsBrokerReceived **last,
											 CqrsLinkNotice **notices);
extern void cqrs_link_settle(CqrsBrokerLink *link, CqrsBrokerReceived *first,
							 CqrsBrokerReceived *last);

#endif							/* CQRS_BROKER_LINK_H */
