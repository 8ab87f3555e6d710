"""What bench/percentiles compares with: a client that waits for a NOTIFY, and takes
what is in table listen.event, as consume_queue() does from queue.event.
"""

import select

import psycopg2

connection = psycopg2.connect("")
connection.autocommit = True
cursor = connection.cursor()
cursor.execute("LISTEN event")
while True:
    while True:
        cursor.execute("""
            WITH taken AS (
                DELETE FROM listen.event
                WHERE id IN (SELECT id FROM listen.event ORDER BY id LIMIT 1000 FOR UPDATE SKIP LOCKED)
                RETURNING payload)
            INSERT INTO sink SELECT clock_timestamp(), (payload->>'at')::timestamptz, (payload->>'xid')::xid8 FROM taken""")
        if cursor.rowcount == 0:
            break
    connection.poll()
    if not connection.notifies:
        select.select([connection], [], [])
        connection.poll()
    connection.notifies.clear()
