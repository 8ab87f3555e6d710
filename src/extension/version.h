/*-------------------------------------------------------------------------
 *
 * version.h
 *	  Do the library and the extension fit each other?
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_VERSION_H
#define CQRS_VERSION_H

extern bool cqrs_version_fits(void);
extern void cqrs_version_report(int elevel, const char *message);

#endif							/* CQRS_VERSION_H */
