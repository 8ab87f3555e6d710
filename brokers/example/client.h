/*-------------------------------------------------------------------------
 *
 * client.h
 *	  What speaks to the peer.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EXAMPLE_CLIENT_H
#define EXAMPLE_CLIENT_H

#include "cqrs_broker.h"

/*
 * The server loads libraries so that a symbol of one is everybody's. Two
 * modules that both have a client_connect() would not get along: let symbols
 * be static, or hidden, or have the module's name in them.
 */
#pragma GCC visibility push(hidden)

extern const CqrsBrokerModule example_module;

#pragma GCC visibility pop

#endif							/* EXAMPLE_CLIENT_H */
