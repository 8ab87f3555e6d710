"""What bench/pull measures: a client that takes everything, in batches.

    pull_client.py HOST HOW BATCH EVENTS

Prints the milliseconds that it took. HOW is transaction, lease, or one of
these with queue_ before it.
"""

import json
import sys
import time

import psycopg2

host, how, batch, events = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
connection = psycopg2.connect(host=host, port=5432, user="postgres", dbname="postgres")
cursor = connection.cursor()


def take(sql, arguments, done):
    """Receive a batch, decode it, and say what is done, as done() has it."""
    cursor.execute(sql, arguments)
    rows = cursor.fetchall()
    for row in rows:
        json.loads(row[2])
    if rows:
        done(rows)
    connection.commit()
    return len(rows)


def ack(rows):
    cursor.execute("SELECT cqrs_ack('bench')")


def ack_later(rows):
    connection.commit()
    cursor.execute("SELECT cqrs_ack('bench', %s::bigint[], %s::uuid)", ([row[0] for row in rows], rows[0][3]))


def delete(rows):
    cursor.execute("DELETE FROM queue WHERE msg_id = ANY (%s)", ([row[0] for row in rows],))


def delete_later(rows):
    connection.commit()
    delete(rows)


NEXT = "SELECT msg_id FROM queue WHERE vt <= clock_timestamp() ORDER BY msg_id LIMIT %s FOR UPDATE SKIP LOCKED"
WAYS = {
    "transaction": ("SELECT position, key, payload::text FROM cqrs_receive('bench', %s)", ack),
    "lease": ("SELECT position, key, payload::text, receipt::text FROM cqrs_receive('bench', %s, lease => '1 min')", ack_later),
    "queue_transaction": (f"SELECT msg_id, key, message::text FROM queue WHERE msg_id IN ({NEXT}) ORDER BY msg_id", delete),
    "queue_lease": (f"WITH next AS ({NEXT}) UPDATE queue q SET vt = clock_timestamp() + interval '1 min', read_ct = read_ct + 1"
                    " FROM next WHERE q.msg_id = next.msg_id RETURNING q.msg_id, key, message::text", delete_later),
}
sql, done = WAYS[how]
taken = 0
started = time.monotonic()
while taken < events:
    taken += take(sql, (batch,), done)
print((time.monotonic() - started) * 1000)
