/*
 * pull.pml: clients that pull, see src/pull/pull.c, pull_ack.c and
 * src/subscription/receipt.c.
 *
 * Two clients pull from one partition with a few events. Each receives, under
 * a lease, or in a transaction with savepoints; acknowledges any of what it
 * was handed out, in any order, or refuses it; and may go on after its lease
 * ran out. The subscription may be moved once; once, a failover loses what was
 * committed last, and gives its positions out again, to other events.
 *
 * What must hold: an event is settled only by whoever was handed out this very
 * event, under the receipt that is shown; so none is settled unseen.
 *
 * Lanes and order by key are not in here; test/t/060_pull_clients.pl has them.
 */
/* deep: DEEP=1 */
/* broken: BROKEN_RECEIPT a position is enough to settle an event */
/* broken: BROKEN_SAVEPOINT what a savepoint takes back stays in memory */

#ifdef DEEP					/* a minute, 10 million states */
#define ALL		7			/* three events, a bit each */
#define RECEIPTS	6
#else
#define ALL		3
#define RECEIPTS	5
#endif
#define NOBODY	2

/* The cursor's row: what is committed. Positions are bits. */
byte settled = 0;		/* acknowledged */
byte failed = 0;		/* parked by a nack, to be handed out again */
byte covered = 0;		/* handed out last ... */
byte receipt = 0;		/* ... with this receipt; 0: none */
bool leased = false;

byte next_receipt = 1;
byte holder = NOBODY;		/* who has the partition's lock */

/* Which event is at a position: it is another one after a failover. */
bit other = 0;

/* What clients have seen: the positions, by receipt, and of which event. */
typedef Client {
	byte handed;			/* still to be worked on */
	byte shown;				/* the receipt */
	bit shown_other;
	bool in_xact
};
Client client[2];

bool moved = false;
bool failed_over = false;

#define FREE		(!leased || receipt == 0)
#define OPEN		(ALL & ~settled)

/*
 * Settle the positions in which, which client c presents.
 */
inline settle(c, which, ack)
{
	if
#ifdef BROKEN_RECEIPT
	:: true ->
#else
	:: client[c].shown != 0 && client[c].shown == receipt ->
#endif
		/* What is acknowledged here, c was handed out; the same event. */
		assert((which & covered & ~settled & ~client[c].handed) == 0);
		assert((which & covered & ~settled) == 0 || client[c].shown_other == other);
		assert((which & covered & ~settled) == 0 || client[c].shown == receipt);
		if
		:: ack -> settled = settled | (which & covered)
		:: !ack -> failed = failed | (which & covered & ~settled)
		fi;
		if
		:: ((covered & ~settled & ~failed) == 0) -> leased = false
		:: else
		fi
	:: else				/* OB003 */
	fi
}

proctype Puller(byte me)
{
	byte which, before_handed, before_covered, before_receipt, before_failed;
	byte xact_receipt;

end:
	do
	/* Receive under a lease: one transaction. */
	:: atomic { holder == NOBODY && FREE && OPEN != 0 && next_receipt <= RECEIPTS ->
			covered = OPEN; failed = 0;
			receipt = next_receipt; next_receipt++;
			leased = true;
			client[me].handed = covered; client[me].shown = receipt;
			client[me].shown_other = other }

	/* Receive only some of it. */
	:: atomic { holder == NOBODY && FREE && OPEN != 0 && next_receipt <= RECEIPTS ->
			if
			:: (OPEN & 1) -> covered = 1
			:: (OPEN & 2) -> covered = 2
			:: (OPEN & 3) -> covered = OPEN & 3
			:: (OPEN & 4) -> covered = 4
			fi;
			failed = 0;
			receipt = next_receipt; next_receipt++;
			leased = true;
			client[me].handed = covered; client[me].shown = receipt;
			client[me].shown_other = other }

	/* Acknowledge, or refuse, any of what it has, whenever. */
	:: atomic { holder == NOBODY && client[me].handed != 0 ->
			select (which : 1 .. ALL);
			which = which & client[me].handed;
			if
			:: true -> settle(me, which, true)
			:: true -> settle(me, which, false)
			fi;
			which = 0 }

	/* It dies, or forgets. */
	:: atomic { client[me].handed != 0 ->
			client[me].handed = 0; client[me].shown = 0 }

	/*
	 * In a transaction: receive within a savepoint, maybe roll back to it,
	 * and acknowledge what this transaction received. Nobody else has the
	 * lock meanwhile; after a rollback to the savepoint, others may have it.
	 */
	:: atomic { holder == NOBODY && FREE && OPEN != 0 && next_receipt <= RECEIPTS &&
			client[me].handed == 0 ->
			holder = me;
			before_covered = covered; before_receipt = receipt; before_failed = failed;
			covered = OPEN; failed = 0;
			receipt = next_receipt; next_receipt++;
			client[me].handed = covered; client[me].shown = receipt;
			client[me].shown_other = other;
			xact_receipt = receipt };
		if
		:: atomic { true ->		/* ROLLBACK TO SAVEPOINT */
				covered = before_covered; receipt = before_receipt; failed = before_failed;
				holder = NOBODY;
				client[me].handed = 0; client[me].shown = 0;
#ifndef BROKEN_SAVEPOINT
				xact_receipt = 0
#endif
			}
		:: true
		fi;
		if
		:: atomic { xact_receipt != 0 && (holder == me || holder == NOBODY) ->
				/* cqrs_ack(subscription) */
				if
#ifdef BROKEN_SAVEPOINT
				:: true ->
#else
				:: xact_receipt == receipt ->
#endif
					assert((covered & ~settled & ~client[me].handed) == 0);
					settled = settled | covered
				:: else
				fi }
		:: xact_receipt == 0	/* OB003 */
		:: true
		fi;
		atomic {
			if
			:: holder == me -> holder = NOBODY
			:: else
			fi;
			client[me].handed = 0; client[me].shown = 0;
			xact_receipt = 0; which = 0;
			before_covered = 0; before_receipt = 0; before_failed = 0 }
	od
}

proctype World()
{
end:
	do
	/* A lease runs out. */
	:: atomic { leased -> leased = false }

	/* cqrs_seek(): waits for the lock. */
	:: atomic { !moved && holder == NOBODY ->
			moved = true;
			settled = 0; failed = 0; covered = 0; receipt = 0; leased = false }

	/*
	 * A failover: the last commits are lost, with the receipt among them, and
	 * positions are given out to other events. The clients live on.
	 */
	:: atomic { !failed_over && holder == NOBODY ->
			failed_over = true;
			other = 1;
			settled = 0; failed = 0; covered = 0; receipt = 0; leased = false }
	od
}

init
{
	atomic { run Puller(0); run Puller(1); run World() }
}
