/*-------------------------------------------------------------------------
 *
 * link_message.h
 *	  What goes over a connection to a broker, and how that is.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_LINK_MESSAGE_H
#define CQRS_LINK_MESSAGE_H

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

/* A notice, and how many messages the link had received before it. */
typedef struct CqrsLinkNotice
{
	CqrsBrokerNotice notice;
	uint64		behind;
	struct CqrsLinkNotice *next;
} CqrsLinkNotice;

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

#endif							/* CQRS_LINK_MESSAGE_H */
