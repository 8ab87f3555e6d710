/*-------------------------------------------------------------------------
 *
 * diagram_sequence.h
 *	  What happens when a command is sent, as a picture.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_DIAGRAM_SEQUENCE_H
#define CQRS_DIAGRAM_SEQUENCE_H

extern char *cqrs_diagram_sequence(const char *name);

#endif							/* CQRS_DIAGRAM_SEQUENCE_H */
