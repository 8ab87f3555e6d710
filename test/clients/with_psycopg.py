# An application with psycopg, which sends a string without a type, and any other
# value with its own.

import datetime
import json
import os
import uuid

import psycopg
from psycopg.types.json import Jsonb

connection = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
meeting = uuid.UUID("00000000-0000-4000-8000-000000000017")
event_id = uuid.UUID("00000000-0000-4000-8000-000000000018")
later = datetime.datetime(2100, 1, 1, tzinfo=datetime.timezone.utc)


def show(value):
    return json.dumps(value) if value is None or isinstance(value, (bool, dict)) else str(value)


def run(label, sql, *arguments):
    rows = connection.execute(sql, arguments).fetchall()
    for row in rows:
        print(label, *map(show, row), sep=" | ")
    return rows


run("event", "SELECT cqrs_register_event(%s, %s)", "joined", "meetings")
run("event", "SELECT cqrs_register_event(%s, %s, %s)", "typed", None, "named")
for _ in range(2):
    run("command", "SELECT cqrs_register_command(%s, %s, %s)", "Join", "join_meeting", None)
run("chain", "SELECT cqrs_register_chain(%s, %s)", "Chain", ["join_meeting", "pass_on"])
run("subscribe", "SELECT cqrs_subscribe(%s, %s, %s, retry_delay => %s)",
    "handled", ["meetings"], "ignore", datetime.timedelta(seconds=1))
run("subscribe", "SELECT cqrs_subscribe(%s, %s, %s, %s, %s, %s, %s)",
    "pulled", ["meetings"], None, None, None, None, None)

for payload, key in (Jsonb({"n": 1}), "once"), (Jsonb({"n": 1}), "once"), (None, None):
    run("send", "SELECT cqrs_send(%s, %s, %s)", "Join", payload, key)
try:
    run("send", "SELECT cqrs_send(%s, %s, %s)", "Unknown", None, None)
except psycopg.Error as error:
    print("error", error.sqlstate, sep=" | ")

for key in "text", 17, meeting, None:
    run("emit", "SELECT cqrs_emit(%s, %s, %s, %s)", "joined", Jsonb({"n": 2}), key, None)
run("emit", "SELECT cqrs_emit(%s, %s, %s, %s)", "joined", None, "text", Jsonb({"tenant": "a"}))
insert = ("INSERT INTO cqrs_topics.meetings (event_name, key, payload, headers, event_id)"
          " VALUES (%s, %s, %s, %s, %s) RETURNING event_id, position")
for key in "text", 17, meeting, None:
    run("insert", insert, "joined", key, Jsonb({"n": 3}), None, None)
run("insert", insert, "joined", "text", None, Jsonb({"tenant": "a"}), event_id)

acknowledged = 0
while acknowledged < 10:
    with connection.transaction():
        batch = run("receive", "SELECT event_name, key, payload, headers, position, receipt FROM cqrs_receive(%s, %s)",
                    "pulled", 100)
        if batch:
            acknowledged += connection.execute("SELECT cqrs_ack(%s, %s, %s)",
                                               ("pulled", [row[4] for row in batch], batch[0][5])).fetchone()[0]
print("acknowledged", acknowledged, sep=" | ")
run("receive", "SELECT position FROM cqrs_receive(%s, %s)", "pulled", None)

for key in "text", 17, meeting:
    run("enqueue", "SELECT cqrs_enqueue(%s, %s, %s, %s)", "Join", Jsonb({"n": 4}), key, later)
run("enqueue", "SELECT cqrs_enqueue(%s, %s, %s, %s)", "Join", None, None, None)
run("enqueued", "SELECT command_name, key, payload, state, run_at = %s FROM cqrs_enqueued_commands ORDER BY command_id",
    later)

values = connection.execute("SELECT payload, event_id, position FROM cqrs_topics.meetings LIMIT 1").fetchone()
assert [type(value) for value in values] == [dict, uuid.UUID, int], values
