/*-------------------------------------------------------------------------
 *
 * event_id.c
 *	  Ids of events: UUIDs of version 7, or 8 (RFC 9562).
 *
 * An id is 48 bits of Unix time in milliseconds, the version (4 bits), and a
 * counter of 74 bits with the variant (2 bits) in its middle:
 *
 *		high	milliseconds << 16 | 7 << 12 | the counter's upper 12 bits
 *		low		2 << 62 | the counter's lower 62 bits
 *
 * The counter is random at the first id of a millisecond and goes up by one
 * for each further one, so that libuuid, which enters the kernel, is asked at
 * most once a millisecond. Its top bit starts as zero, to leave room.
 *
 * A backend's ids always increase. If the clock stands still or steps back,
 * the last millisecond is kept until the clock has passed it.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include <uuid/uuid.h>

#include "catalog/pg_type.h"
#include "common/cryptohash.h"
#include "common/hashfn.h"
#include "common/sha2.h"
#include "port/pg_bswap.h"
#include "utils/array.h"

#include "base/event_id.h"

#define UNIX_EPOCH_OFFSET_USEC \
	((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY)

#define TIME_SHIFT		16
#define MAX_UNIX_MS		((INT64CONST(1) << 48) - 1)
#define VERSION_7		(UINT64CONST(7) << 12)
#define VARIANT_RFC		(UINT64CONST(2) << 62)
#define COUNTER_HIGH	UINT64CONST(0x0FFF)
#define COUNTER_LOW		((UINT64CONST(1) << 62) - 1)
#define COUNTER_ROOM	UINT64CONST(0x0800) /* the top bit of COUNTER_HIGH */

StaticAssertDecl(UUID_LEN == 2 * sizeof(uint64), "a UUID is two words");

/* The last id, if last_pid is this process; else there was none yet. */
static int	last_pid = 0;
static int64 last_ms = 0;
static uint64 counter_high = 0;
static uint64 counter_low = 0;

static int	compare_ids(const void *a, const void *b);
static void counter_randomize(void);
static void counter_increment(void);

/*
 * Make an id that is greater than all that this process made before.
 *
 * now is the clock's time, from 1970 to 10889. *result gets the id, in network
 * byte order. Allocates nothing and raises no error.
 */
void
cqrs_event_id_generate(TimestampTz now, pg_uuid_t *result)
{
	int64		unix_ms = (now + UNIX_EPOCH_OFFSET_USEC) / 1000;
	uint64		words[2];

	Assert(unix_ms >= 0 && unix_ms <= MAX_UNIX_MS);

	/* A process does not go on with its parent's counter. */
	if (last_pid != MyProcPid || unix_ms > last_ms)
	{
		last_pid = MyProcPid;
		last_ms = unix_ms;
		counter_randomize();
	}
	else
		counter_increment();

	words[0] = pg_hton64((uint64) last_ms << TIME_SHIFT | VERSION_7 |
						 counter_high);
	words[1] = pg_hton64(VARIANT_RFC | counter_low);
	memcpy(result->data, words, UUID_LEN);
}

/*
 * Make an id that follows from a time, from 1970 to 10889, and what it is the id
 * of then: for the same, the same.
 */
void
cqrs_event_id_derive(TimestampTz time, const char *what, pg_uuid_t *result)
{
	int64		unix_ms = (time + UNIX_EPOCH_OFFSET_USEC) / 1000;
	uint64		words[2];

	words[0] = hash_bytes_extended((const unsigned char *) what, strlen(what), 0);
	words[1] = hash_bytes_extended((const unsigned char *) what, strlen(what), 1);
	words[0] = pg_hton64((uint64) unix_ms << TIME_SHIFT | VERSION_7 |
						 (words[0] & COUNTER_HIGH));
	words[1] = pg_hton64(VARIANT_RFC | (words[1] & COUNTER_LOW));
	memcpy(result->data, words, UUID_LEN);
}

/*
 * Make an id that follows from what it is the id of, without a time: a UUID of
 * version 8, the beginning of a SHA-256. Raises 53200.
 */
void
cqrs_event_id_from(const char *what, pg_uuid_t *result)
{
	uint8		hash[PG_SHA256_DIGEST_LENGTH];
	pg_cryptohash_ctx *context = pg_cryptohash_create(PG_SHA256);
	bool		done;

	done = context != NULL && pg_cryptohash_init(context) >= 0 &&
		pg_cryptohash_update(context, (const uint8 *) what, strlen(what)) >= 0 &&
		pg_cryptohash_final(context, hash, sizeof(hash)) >= 0;
	if (context != NULL)
		pg_cryptohash_free(context);
	if (!done)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("could not compute a SHA-256")));
	memcpy(result->data, hash, UUID_LEN);
	result->data[6] = (result->data[6] & 0x0F) | 0x80;
	result->data[8] = (result->data[8] & 0x3F) | 0x80;
}

/*
 * A UUID as text, in a buffer that has room for it. Returns the buffer.
 */
char *
cqrs_uuid_text(const pg_uuid_t *uuid, char *text)
{
	static const char digits[] = "0123456789abcdef";
	char	   *next = text;
	int			i;

	for (i = 0; i < UUID_LEN; i++)
	{
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*next++ = '-';
		*next++ = digits[uuid->data[i] >> 4];
		*next++ = digits[uuid->data[i] & 15];
	}
	*next = '\0';
	return text;
}

/*
 * A UUID as cqrs_uuid_text() writes it. Returns false if it is none.
 */
bool
cqrs_uuid_read(const char *text, int len, pg_uuid_t *id)
{
	int			digits = 0;
	int			i;

	if (len != CQRS_UUID_TEXT_LEN)
		return false;
	memset(id, 0, sizeof(*id));
	for (i = 0; i < len; i++)
	{
		char		c = text[i];
		int			digit = c >= '0' && c <= '9' ? c - '0' :
		c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;

		if (i == 8 || i == 13 || i == 18 || i == 23)
		{
			if (c != '-')
				return false;
			continue;
		}
		if (digit < 0)
			return false;
		id->data[digits / 2] |= digits % 2 == 0 ? digit << 4 : digit;
		digits++;
	}
	return true;
}

/*
 * The ids that an argument, a uuid[], names; none if it is NULL. Raises 22004 if
 * an element is.
 */
CqrsEventIds *
cqrs_event_ids_arg(FunctionCallInfo fcinfo, int argno)
{
	CqrsEventIds *ids;
	Datum	   *values;
	bool	   *nulls;
	int			i;

	ids = palloc0(sizeof(CqrsEventIds));
	if (PG_ARGISNULL(argno))
		return ids;
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(argno), UUIDOID, UUID_LEN, false,
					  TYPALIGN_CHAR, &values, &nulls, &ids->n);
	ids->ids = palloc(sizeof(pg_uuid_t) * Max(ids->n, 1));
	for (i = 0; i < ids->n; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("event ids must not contain null")));
		ids->ids[i] = *DatumGetUUIDP(values[i]);
	}
	qsort(ids->ids, ids->n, sizeof(pg_uuid_t), compare_ids);
	return ids;
}

bool
cqrs_event_ids_contain(const CqrsEventIds *ids, const pg_uuid_t *id)
{
	return ids->n > 0 &&
		bsearch(id, ids->ids, ids->n, sizeof(pg_uuid_t), compare_ids) != NULL;
}

static int
compare_ids(const void *a, const void *b)
{
	return memcmp(a, b, UUID_LEN);
}

static void
counter_randomize(void)
{
	uuid_t		random;
	uint64		words[2];

	/* The fixed bits of version 4 are where version 7 has them. */
	uuid_generate_random(random);
	memcpy(words, random, sizeof(words));
	counter_high = pg_ntoh64(words[0]) & COUNTER_HIGH & ~COUNTER_ROOM;
	counter_low = pg_ntoh64(words[1]) & COUNTER_LOW;
}

static void
counter_increment(void)
{
	if (counter_low < COUNTER_LOW)
	{
		counter_low++;
		return;
	}
	counter_low = 0;
	if (counter_high < COUNTER_HIGH)
	{
		counter_high++;
		return;
	}
	counter_high = 0;
	last_ms++;
}
