# An application with asyncpg, which asks the server for the type of each
# parameter, and takes only values of it.

import asyncio
import datetime
import json
import os
import uuid

import asyncpg

meeting = uuid.UUID("00000000-0000-4000-8000-000000000017")
event_id = uuid.UUID("00000000-0000-4000-8000-000000000018")
later = datetime.datetime(2100, 1, 1, tzinfo=datetime.timezone.utc)


def show(value):
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


async def run(label, sql, *arguments):
    rows = await connection.fetch(sql, *arguments)
    for row in rows:
        print(label, *map(show, row), sep=" | ")
    return rows


async def main():
    global connection
    connection = await asyncpg.connect(os.environ["DATABASE_URL"])

    await run("event", "SELECT cqrs_register_event($1, $2)", "joined", "meetings")
    await run("event", "SELECT cqrs_register_event($1, $2, $3)", "typed", None, "named")
    for _ in range(2):
        await run("command", "SELECT cqrs_register_command($1, $2, $3)", "Join", "join_meeting", None)
    await run("chain", "SELECT cqrs_register_chain($1, $2)", "Chain", ["join_meeting", "pass_on"])
    await run("subscribe", "SELECT cqrs_subscribe($1, $2, $3, retry_delay => $4)",
              "handled", ["meetings"], "ignore", datetime.timedelta(seconds=1))
    await run("subscribe", "SELECT cqrs_subscribe($1, $2, $3, $4, $5, $6, $7)",
              "pulled", ["meetings"], None, None, None, None, None)

    for payload, key in (json.dumps({"n": 1}), "once"), (json.dumps({"n": 1}), "once"), (None, None):
        await run("send", "SELECT cqrs_send($1, $2, $3)", "Join", payload, key)
    try:
        await run("send", "SELECT cqrs_send($1, $2, $3)", "Unknown", None, None)
    except asyncpg.PostgresError as error:
        print("error", error.sqlstate, sep=" | ")

    for key in "text", str(17), str(meeting), None:
        await run("emit", "SELECT cqrs_emit($1, $2, $3, $4)", "joined", json.dumps({"n": 2}), key, None)
    await run("emit", "SELECT cqrs_emit($1, $2, $3, $4)", "joined", None, "text", json.dumps({"tenant": "a"}))
    insert = ("INSERT INTO cqrs_topics.meetings (event_name, key, payload, headers, event_id)"
              " VALUES ($1, $2, $3, $4, $5) RETURNING event_id, position")
    for key in "text", str(17), str(meeting), None:
        await run("insert", insert, "joined", key, json.dumps({"n": 3}), None, None)
    await run("insert", insert, "joined", "text", None, json.dumps({"tenant": "a"}), event_id)

    acknowledged = 0
    while acknowledged < 10:
        async with connection.transaction():
            batch = await run("receive", "SELECT event_name, key, payload, headers, position, receipt"
                              " FROM cqrs_receive($1, $2)", "pulled", 100)
            if batch:
                acknowledged += await connection.fetchval("SELECT cqrs_ack($1, $2, $3)", "pulled",
                                                          [row["position"] for row in batch], batch[0]["receipt"])
    print("acknowledged", acknowledged, sep=" | ")
    await run("receive", "SELECT position FROM cqrs_receive($1, $2)", "pulled", None)

    for parameter, key in ("$3", "text"), ("$3::bigint", 17), ("$3::uuid", meeting):
        await run("enqueue", f"SELECT cqrs_enqueue($1, $2, {parameter}, $4)", "Join", json.dumps({"n": 4}), key, later)
    await run("enqueue", "SELECT cqrs_enqueue($1, $2, $3, $4)", "Join", None, None, None)
    await run("enqueued", "SELECT command_name, key, payload, state, run_at = $1"
              " FROM cqrs_enqueued_commands ORDER BY command_id", later)

    values = await connection.fetchrow("SELECT payload, event_id, position FROM cqrs_topics.meetings LIMIT 1")
    assert all(map(isinstance, values, (str, uuid.UUID, int))), values
    await connection.close()


asyncio.run(main())
