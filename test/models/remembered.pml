/*
 * What a process remembers between batches: a window, and references to its
 * rows. Nothing is lost, nor delivered twice, whatever happened meanwhile.
 *
 * Models: relay.c (open_window, close_window), window.c (cqrs_window_attach,
 * load_chunk, fetch, cqrs_window_is), operation.c (seek), topic_drop.c
 * (cqrs_topic_drop).
 *
 * A session receives from three topics, one of which is empty, an event at a
 * time. Meanwhile a topic is dropped, a row that was rolled back is vacuumed
 * and its place taken by another event, a table is rewritten, and somebody
 * seeks to 'earliest'. Transactions commit in turn here (windows.pml has the
 * others), so a snapshot is the number of those that it shows.
 *
 * A row is a byte: 0, a free place; else its position, and DEAD if it was
 * rolled back. Position p is of transaction trans(p).
 */
/* broken: BROKEN_GENERATION the window is kept under the registry of the batch's end */
/* broken: BROKEN_PROOF a row is believed to be the one that was referred to */
/* broken: BROKEN_LOWER the kept window is not asked for its lower bound */
/* broken: BROKEN_POSITION the kept window is not asked how far it was read */
/* broken: BROKEN_REWRITE a rewritten table's references are used */
/* deep: LATER=2 HAPPENS=4 CHUNK=3 */

#ifndef LATER
#define LATER	1				/* events that are emitted meanwhile */
#endif
#ifndef HAPPENS
#define HAPPENS	2				/* drops, vacuums, rewrites, seeks */
#endif
#ifndef CHUNK
#define CHUNK	2				/* references kept at once */
#endif

/* Topics: 0 is empty, 1 has positions 1, 2 (rolled back) and 3; 2 has 4. */
#define TOPICS	3
#define PLACES	3
#define LAST	(4 + LATER)
#define DEAD	64
#define trans(p)	((p) <= 2 -> 1 : (p) - 1)	/* 1 and 2 together */

byte row[9];					/* by topic * PLACES + place */
byte filenode[TOPICS];
byte locked[TOPICS];			/* ACCESS SHARE, by the batch */
byte topics = 7;				/* of the subscription */
byte generation = 1;			/* of the registry */
byte committed = 3;				/* transactions, positions 1 to 4 */
byte newest_tick = 1;			/* shows so many of them */
byte batch_runs, happens = HAPPENS;
bool done;						/* the others are */
bool parked = 1;				/* an event that is due */

/* The cursor. */
byte lower, upper, position;	/* upper 0: in no window */

byte delivered;					/* since the last seek, by position */

/* The window, kept or in use. */
bool kept;
byte w_generation, w_lower, w_upper, w_after, w_topics, w_needed;
bool w_loaded, w_complete;
byte w_next, w_n;
byte e_position[CHUNK], e_place[CHUNK], e_source[CHUNK];
byte w_filenode[TOPICS];		/* by source */

/* While attached: the topics that are open. */
byte nsources, source[TOPICS];

#define in_window(p)	(trans(p) > w_lower && trans(p) <= w_upper)

/* cqrs_window_is() */
#ifdef BROKEN_LOWER
#define same_lower	true
#else
#define same_lower	(w_lower == lower)
#endif
#ifdef BROKEN_POSITION
#define same_place	true
#else
#define same_place	(w_after == position)
#endif
#ifdef BROKEN_GENERATION
#define same_topics	(w_generation == generation)
#define keep_generation	w_generation = generation
#define new_generation	generation++
#else
#define same_topics	(w_topics == topics)
#define keep_generation	skip
#define new_generation	skip
#endif
#define window_is	(w_upper == upper && same_lower && same_place && same_topics)

/* Which of the topics has this index, as the registry has them now? */
inline topic_at(index, result)
{
	k = 0; result = 0;
	do
	:: result < TOPICS ->
		if
		:: (topics >> result) & 1 ->
			if
			:: k == index -> break
			:: else -> k++
			fi
		:: else
		fi;
		result++
	:: else -> break
	od
}

/* cqrs_window_attach() */
inline attach(first)
{
	nsources = 0; i = 0;
	do
	:: i == TOPICS -> break
	:: else ->
		topic_at(i, t);
		if
		:: t == TOPICS -> break
		:: else
		fi;
		if
		:: first ->
			/* has_entries(): rows there or not */
			j = 0; found = 0;
			do
			:: j == PLACES -> break
			:: else ->
				if
				:: row[t * PLACES + j] != 0 &&
				   in_window(row[t * PLACES + j] % DEAD) -> found = 1
				:: else
				fi;
				j++
			od;
			if
			:: found -> w_needed = w_needed | (1 << i)
			:: else
			fi
		:: else
		fi;
		if
		:: (w_needed >> i) & 1 ->
			locked[t] = 1;
			source[nsources] = t;
#ifndef BROKEN_REWRITE
			if
			:: w_loaded && w_filenode[nsources] != filenode[t] -> w_loaded = 0
			:: else
			fi;
#endif
			nsources++
		:: else
		fi;
		i++
	od;
	i = 0; j = 0; t = 0; k = 0; found = 0
}

/* load_chunk(): the lowest positions behind w_after, from the index alone */
inline load_chunk()
{
	w_n = 0; w_next = 0; w_complete = 1; p = w_after + 1;
	do
	:: p > LAST -> break
	:: else ->
		i = 0;
		do
		:: i == nsources -> break
		:: else ->
			t = source[i];
			w_filenode[i] = filenode[t];
			j = 0;
			do
			:: j == PLACES -> break
			:: else ->
				if
				:: row[t * PLACES + j] != 0 &&
				   row[t * PLACES + j] % DEAD == p && in_window(p) ->
					if
					:: w_n < CHUNK ->
						e_position[w_n] = p; e_place[w_n] = j; e_source[w_n] = i;
						w_n++
					:: else -> w_complete = 0
					fi
				:: else
				fi;
				j++
			od;
			i++
		od;
		p++
	od;
	w_loaded = 1;
	i = 0; j = 0; t = 0; p = 0
}

/* cqrs_window_next(), fetch(): p is the event's position, or 0 at the end */
inline next()
{
	p = 0;
	do
	:: p == 0 ->
		if
		:: !w_loaded -> load_chunk()
		:: else
		fi;
		if
		:: w_next == w_n && w_complete -> break
		:: w_next == w_n && !w_complete -> w_loaded = 0
		:: else ->
			w_after = e_position[w_next];
			/* A reference to a table that is not open: a crash. */
			assert(e_source[w_next] < nsources);
			p = row[source[e_source[w_next]] * PLACES + e_place[w_next]];
			if
			:: p >= DEAD -> p = 0
#ifndef BROKEN_PROOF
			:: p < DEAD && (p != e_position[w_next] || !in_window(p)) -> p = 0
#endif
			:: else
			fi;
			w_next++
		fi
	:: else -> break
	od
}

inline create()
{
	w_lower = lower; w_upper = upper; w_after = position;
	keep_generation; w_topics = topics; w_needed = 0;
	w_loaded = 0; w_complete = 0; w_next = 0; w_n = 0;
	attach(true)
}

proctype session()
{
	byte i, j, k, t, p;
	bool found, last, is_parked;

	do
	:: atomic { batch_runs == 0 && (done || newest_tick > lower) ->
			/* The cursor's lock; the registry; the newest tick */
			batch_runs = 1;
			last = done;
			if
			:: last -> newest_tick = committed
			:: else
			fi;
			if
			:: upper == 0 && newest_tick > lower -> upper = newest_tick; position = 0
			:: else
			fi
		}
		atomic {
			/* open_window(); cqrs_window_is() */
			p = 0;
			if
			:: upper == 0
			:: upper != 0 && kept && window_is ->
				kept = 0;
				attach(false)
			:: else -> kept = 0; create()
			fi;
			if
			:: upper != 0 -> next()
			:: upper != 0 && parked && !last ->
				/* A parked event is handed out; the window stays where it is. */
				parked = 0;
				is_parked = 1
			:: else
			fi
		}
		/* The handler runs, or the client works: others do, too. */
		atomic {
			if
			:: p != 0 ->
				assert(((delivered >> p) & 1) == 0);
				assert(trans(p) > lower && trans(p) <= upper);
				delivered = delivered | (1 << p);
				position = p;
#ifdef BROKEN_GENERATION
				w_generation = generation;
#endif
				kept = !(w_loaded && w_complete && w_next == w_n);
				if
				:: !kept -> lower = upper; upper = 0; position = 0
				:: else
				fi
			:: p == 0 && is_parked -> is_parked = 0; kept = 1
			:: p == 0 && !is_parked && upper != 0 ->
				lower = upper; upper = 0; position = 0; kept = 0; found = 1
			:: else -> found = 1
			fi;
			/* Detached; what is not kept need not be told apart. */
			nsources = 0; source[0] = 0; source[1] = 0; source[2] = 0;
			locked[0] = 0; locked[1] = 0; locked[2] = 0;
			if
			:: !kept ->
				w_generation = 0; w_lower = 0; w_upper = 0; w_after = 0;
				w_topics = 0; w_needed = 0; w_loaded = 0; w_complete = 0;
				w_next = 0;
				do
				:: w_n > 0 ->
					w_n--;
					e_position[w_n] = 0; e_place[w_n] = 0; e_source[w_n] = 0
				:: else -> break
				od;
				w_filenode[0] = 0; w_filenode[1] = 0; w_filenode[2] = 0
			:: else
			fi;
			batch_runs = 0; p = 0;
			if
			:: last && found && lower == committed -> break
			:: else -> found = 0; last = 0
			fi
		}
	od;
	atomic {
		p = 1;
		do
		:: p > LAST -> break
		:: else ->
			i = 0;
			do
			:: i == TOPICS * PLACES -> break
			:: else ->
				/* What is there, and in a topic of the subscription, was delivered. */
				assert(row[i] != p || !((topics >> (i / PLACES)) & 1) ||
					   ((delivered >> p) & 1));
				i++
			od;
			p++
		od
	}
}

/*
 * The others, each step a transaction: in any order, as often as the bounds
 * let them.
 */
proctype others()
{
	byte t, j, emitted;

	do
	/* The ticker */
	:: atomic { newest_tick < committed -> newest_tick = committed }
	/* An emitter: it takes a free place in a topic of the subscription. */
	:: atomic { emitted < LATER && (topics & 6) != 0 ->
			t = (topics & 2 -> 1 : 2);
			do
			:: j < PLACES && row[t * PLACES + j] != 0 -> j++
			:: else -> break
			od;
			if
			:: j < PLACES ->
				row[t * PLACES + j] = 5 + emitted;
				committed++;
				emitted++
			:: else -> emitted = LATER
			fi;
			t = 0; j = 0
		}
	/* VACUUM works beside ACCESS SHARE; it cleans the index, too. */
	:: atomic { happens > 0 && row[PLACES + 1] >= DEAD ->
			happens--;
			row[PLACES + 1] = 0
		}
	/* VACUUM FULL, CLUSTER: the dead are gone, the others elsewhere */
	:: atomic { happens > 0 && locked[1] == 0 && filenode[1] == 0 ->
			happens--;
			filenode[1]++;
			if
			:: row[PLACES + 1] >= DEAD -> row[PLACES + 1] = 0
			:: else
			fi;
			row[PLACES] = 3; row[PLACES + 2] = 1
		}
	/* cqrs_drop_topic(): ACCESS EXCLUSIVE on its tables */
	:: atomic { happens > 0 && locked[0] == 0 && (topics & 1) ->
			happens--;
			topics = topics & ~1; new_generation
		}
	:: atomic { happens > 0 && locked[1] == 0 && (topics & 2) ->
			happens--;
			topics = topics & ~2; new_generation
		}
	/* cqrs_seek('earliest'), under the cursor's lock */
	:: atomic { batch_runs == 0 && happens > 0 ->
			happens--;
			lower = 0; upper = 0; position = 0; delivered = 0
		}
	:: break
	od;
	done = 1
}

init
{
	atomic {
		row[PLACES] = 1; row[PLACES + 1] = 2 + DEAD; row[PLACES + 2] = 3;
		row[2 * PLACES] = 4;
		run session();
		run others()
	}
}
