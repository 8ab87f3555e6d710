/*-------------------------------------------------------------------------
 *
 * place.h
 *	  How far a source is consumed.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_PLACE_H
#define CQRS_PLACE_H

#include "utils/snapshot.h"
#include "utils/timestamp.h"

typedef enum CqrsStopped
{
	CQRS_STOPPED_NOT,
	CQRS_STOPPED_GAP,			/* what was to be consumed next is gone */
	CQRS_STOPPED_OTHER			/* it is not the partition that it was */
} CqrsStopped;

/* Of a partition; see table cqrs.consumer_position. */
typedef struct CqrsPlace
{
	int32		consumer_id;
	int32		partition;
	int64		seq;			/* of the row that was read; 0: none yet */
	int64		next_offset;	/* or one of CQRS_BROKER_OFFSET_... */
	TimestampTz start_at;		/* for CQRS_BROKER_OFFSET_TIME */
	int64		last_offset;	/* -1: none */
	int64		last_hash;
	int64		end_offset;		/* -1: unknown */
	int64		consumed;
	int64		repeated;
	int64		dead;
	TimestampTz last_time;		/* DT_NOBEGIN: unknown */
	CqrsStopped stopped;
	bool		native;			/* false: restored, and not adopted */
} CqrsPlace;

extern CqrsPlace *cqrs_places_read(int32 consumer_id, int *nplaces);
extern void cqrs_places_create(int32 consumer_id);
extern bool cqrs_places_are_restored(int32 consumer_id);
extern bool cqrs_places_adopt(int32 consumer_id);
extern bool cqrs_place_lock(const CqrsPlace *place);
extern void cqrs_place_init(CqrsPlace *place, int32 consumer_id,
							int32 partition);
extern void cqrs_place_append(CqrsPlace *place);
extern void cqrs_places_delete(int32 consumer_id);

#endif							/* CQRS_PLACE_H */
