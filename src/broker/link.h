/*-------------------------------------------------------------------------
 *
 * link.h
 *	  A connection to a broker, and the thread that runs its module.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_BROKER_LINK_H
#define CQRS_BROKER_LINK_H

#include "include/cqrs_broker.h"

typedef struct CqrsBrokerLink CqrsBrokerLink;

/*
 * A message on its way. From cqrs_link_send() until cqrs_link_take() returns
 * it, or the link is closed, it belongs to the thread.
 */
typedef struct CqrsLinkMessage
{
	CqrsBrokerMessage message;	/* first: all that the module knows */
	CqrsBrokerLink *link;
	CqrsBrokerOutcome outcome;	/* set once taken */
	char	   *error;			/* likewise; NULL, or to be freed with free() */
	struct CqrsLinkMessage *next;
} CqrsLinkMessage;

typedef enum CqrsLinkState
{
	CQRS_LINK_CONNECTING,
	CQRS_LINK_OPEN,
	CQRS_LINK_LOST
} CqrsLinkState;

/* What the module is to do beside publishing, with a transactional_id. */
typedef enum CqrsLinkCall
{
	CQRS_LINK_READ,				/* read_record() */
	CQRS_LINK_FENCE,
	CQRS_LINK_COMMIT,
	CQRS_LINK_ABORT
} CqrsLinkCall;

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

#endif							/* CQRS_BROKER_LINK_H */
