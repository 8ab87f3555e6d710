# Everything that has handlers can have them in PL/Python. SPI runs each of
# their statements in a subtransaction, and errors come to them as exceptions: a
# query writes nothing all the same, and what leaves a handler keeps its
# SQLSTATE and has the traceback in its context.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main');

# placed(): who placed which orders, and the events of them, since the last time
sub placed
{
	return query($node, q(
		SELECT coalesce((SELECT string_agg(by || ' ' || id, ', ' ORDER BY seq) FROM placed), ''),
			   coalesce((SELECT string_agg(payload->>'id', ' ' ORDER BY position) FROM cqrs_events('orders')), '');
		SELECT FROM cqrs_drop_topic('orders', cascade => true);
		SELECT FROM cqrs_create_topic('orders');
		TRUNCATE placed)) =~ s/\n+$//r;
}

$node->start;
query($node, q(
	CREATE EXTENSION cqrs_outbox;
	CREATE EXTENSION plpython3u;
	CREATE EXTENSION jsonb_plpython3u;
	CREATE TABLE placed (seq serial, id int, by text);
	SELECT cqrs_create_topic('orders');
	SELECT cqrs_register_event('placed', NULL);
	SELECT cqrs_register_event('delivered', 'deliveries');
	CREATE FUNCTION place(id int, by text) RETURNS void LANGUAGE sql AS $$
		INSERT INTO placed (id, by) VALUES (id, by);
		SELECT cqrs_emit('placed', jsonb_build_object('id', id), topic => 'orders')
	$$;
	CREATE FUNCTION by_sql(c jsonb) RETURNS jsonb LANGUAGE sql AS $$
		SELECT place((c->>'id')::int, 'by_sql'); SELECT '"by_sql"'::jsonb
	$$;
));

# ----------------------------------------------------------------------
# Commands, and their errors
# ----------------------------------------------------------------------

query($node, q(
	CREATE FUNCTION by_python(c jsonb) RETURNS jsonb LANGUAGE plpython3u AS $$
import json
order = json.loads(c)
if "emit" not in SD:
    SD["emit"] = plpy.prepare("SELECT cqrs_emit('placed', $1, $2, topic => 'orders') AS id", ["jsonb", "text"])
plpy.execute(plpy.prepare("INSERT INTO placed (id, by) VALUES ($1, 'by_python')", ["int"]), [order["id"]])
event_id = plpy.execute(SD["emit"], [json.dumps({"id": order["id"]}), "key"])[0]["id"]
error = order.get("error")
if error == "sqlstate":
    plpy.error("no seats left", sqlstate="P0042", hint="Come back later.")
elif error == "sql":
    plpy.execute("SELECT 1 / 0")
elif error == "python":
    raise KeyError("seat")
elif error == "commit":
    plpy.commit()
return json.dumps({"id": order["id"], "event_id": len(event_id)})
	$$;
	SELECT cqrs_register_command('Place', 'by_python(jsonb)');
	CREATE TYPE new_order AS (id int, by text);
	CREATE FUNCTION by_composite(o new_order) RETURNS new_order LANGUAGE plpython3u AS $$
plpy.execute(plpy.prepare("SELECT place($1, $2)", ["int", "text"]), [o["id"], o["by"]])
return {"id": o["id"] + 1, "by": plpy.execute("SELECT (cqrs_context()).name")[0]["name"]}
	$$;
	SELECT cqrs_register_command('PlaceComposite', 'by_composite(new_order)');
	CREATE FUNCTION by_transform(c jsonb) RETURNS jsonb TRANSFORM FOR TYPE jsonb LANGUAGE plpython3u AS $$
return {"keys": sorted(c.keys()), "n": c["n"] + 1}
	$$;
	SELECT cqrs_register_command('Transform', 'by_transform(jsonb)');
	CREATE FUNCTION by_none(c jsonb) RETURNS void LANGUAGE plpython3u AS 'pass';
	SELECT cqrs_register_command('Nothing', 'by_none(jsonb)');
));
is(query($node, q(SELECT cqrs_send('Place', '{"id": 1}'))), '{"id": 1, "event_id": 36}', 'a command');
is(query($node, q(SELECT cqrs_send('Place', '{"id": 2}') FROM generate_series(1, 2))),
	qq({"id": 2, "event_id": 36}\n{"id": 2, "event_id": 36}), 'with a prepared plan, again');
is(query($node, q(SELECT cqrs_send('PlaceComposite', '{"id": 3, "by": "me"}'))), '{"by": "PlaceComposite", "id": 4}', 'a composite type');
is(query($node, q(SELECT cqrs_send(ROW(5, 'me')::new_order))), '{"by": "PlaceComposite", "id": 6}', 'and a value of it');
is(query($node, q(SELECT cqrs_send('Transform', '{"b": [], "n": 1, "a": null}'))), '{"n": 2, "keys": ["a", "b", "n"]}', 'jsonb as a dictionary');
is(query($node, q(SELECT cqrs_send('Nothing') IS NULL)), 't', 'no answer');
is(placed(), 'by_python 1, by_python 2, by_python 2, me 3, me 5|1 2 2 3 5', 'what they wrote and emitted');

my $at = qr/Traceback \(most recent call last\):\n  PL\/Python function "by_python", line \d+, in <module>/;
my $of = qr/PL\/Python function "by_python"\nhandler public\.by_python\(pg_catalog\.jsonb\) of command "Place"/;
like(error_of($node, 'postgres', q(SELECT cqrs_send('Place', '{"id": 1, "error": "sqlstate"}'))),
	qr/^ERROR:  P0042: plpy\.Error: no seats left\nHINT:  Come back later\.\nCONTEXT:  $at\n    plpy\.error.*\n$of/, 'an error that is raised');
like(error_of($node, 'postgres', q(SELECT cqrs_send('Place', '{"id": 1, "error": "sql"}'))),
	qr/^ERROR:  22012: .*division by zero\nCONTEXT:  $at\n    plpy\.execute.*\n$of/, 'of a statement');
like(error_of($node, 'postgres', q(SELECT cqrs_send('Place', '{"id": 1, "error": "python"}'))),
	qr/^ERROR:  38000: KeyError: 'seat'\nCONTEXT:  $at\n    raise KeyError.*\n$of/, 'of Python');
like(error_of($node, 'postgres', q(SELECT cqrs_send('Place', '{"id": 1, "error": "commit"}'))),
	qr/^ERROR:  2D000: .*invalid transaction termination/, 'no handler commits');
is(placed(), '|', 'nothing of them is left');

# ----------------------------------------------------------------------
# Queries
# ----------------------------------------------------------------------

query($node, q(
	CREATE FUNCTION ask(c jsonb) RETURNS text LANGUAGE plpython3u AS $$
import json
write = json.loads(c)["write"]
how = json.loads(c).get("how")
if how is None:
    return plpy.execute(write)[0]["n"]
try:
    if how == "subtransaction":
        with plpy.subtransaction():
            plpy.execute(write)
    else:
        plpy.execute(write)
except plpy.SPIError as e:
    return "caught " + e.sqlstate
return "not caught"
	$$;
	SELECT cqrs_register_query('Ask', 'ask(jsonb)');
));
is(query($node, q(SELECT cqrs_query('Ask', '{"write": "SELECT 42 AS n"}'))), '"42"', 'a query');
my $attempts = q((VALUES ('INSERT INTO placed (id) VALUES (1)'), ('SELECT place(1, ''ask'')'), ('SELECT nextval(''placed_seq_seq'')'),
	('SELECT cqrs_emit(''placed'', ''{}'')'), ('SELECT cqrs_send(''Place'', ''{"id": 1}'')'),
	('SET transaction_read_only = off')) v(write));
is(query($node, qq(SELECT DISTINCT cqrs_query('Ask', jsonb_build_object('how', how, 'write', write))
	FROM $attempts, unnest('{try,subtransaction}'::text[]) how WHERE write NOT LIKE 'SET%')), '"caught 25006"',
	'that writes fails, within try and subtransaction() too');
is(query($node, qq(SELECT DISTINCT cqrs_query('Ask', jsonb_build_object('how', how, 'write', write))
	FROM $attempts, unnest('{try,subtransaction}'::text[]) how WHERE write LIKE 'SET%')), '"caught 25001"',
	'and cannot be had to');
like(error_of($node, 'postgres', q(SELECT cqrs_query('Ask', '{"write": "INSERT INTO placed (id) VALUES (1)"}'))),
	qr/^ERROR:  25006: .*cannot execute INSERT in a read-only transaction\n.*Traceback.*of query "Ask"/s, 'caught or not');
is(query($node, q(BEGIN; INSERT INTO placed (id, by) VALUES (1, 'before');
	SELECT cqrs_query('Ask', '{"how": "try", "write": "DELETE FROM placed"}');
	INSERT INTO placed (id, by) VALUES (2, 'after'); COMMIT)), '"caught 25006"', 'also in a transaction that writes');
is(placed(), 'before 1, after 2|', 'which goes on');

# ----------------------------------------------------------------------
# Streams: a generator goes on when a row is asked for
# ----------------------------------------------------------------------

query($node, q(
	CREATE FUNCTION place_each(c jsonb) RETURNS SETOF jsonb LANGUAGE plpython3u AS $$
import json
for n in range(json.loads(c)["orders"]):
    plpy.execute(plpy.prepare("SELECT place($1, 'stream')", ["int"]), [n])
    yield None if n == 1 else json.dumps({"row": n})
	$$;
	CREATE FUNCTION count_placed() RETURNS bigint LANGUAGE plpgsql AS $$
	BEGIN
		RETURN (SELECT count(*) FROM cqrs_events('orders'));
	END $$;
	SELECT cqrs_register_command('PlaceEach', 'place_each(jsonb)');
));
is(query($node, q(SELECT row, count_placed() FROM (SELECT cqrs_stream('PlaceEach', '{"orders": 3}') AS row OFFSET 0) s)),
	qq({"row": 0}|1\n|2\n{"row": 2}|3), 'a stream: what was emitted for a row is there with it');
is(placed(), 'stream 0, stream 1, stream 2|0 1 2', 'each once');
is(query($node, q(SELECT cqrs_stream('PlaceEach', '{"orders": 1000000}') LIMIT 2)), qq({"row": 0}\n), 'no more rows than are asked for');
is(placed(), 'stream 0, stream 1|0 1', 'are made');
is(query($node, q(BEGIN; DECLARE c CURSOR FOR SELECT cqrs_stream('PlaceEach', '{"orders": 3}'); FETCH 1 FROM c; CLOSE c; COMMIT)),
	'{"row": 0}', 'a cursor');
is(placed(), 'stream 0|0', 'closed early');
is(query($node, q(SELECT cqrs_stream('PlaceEach', '{"orders": 0}'))), '', 'no row');
is(query($node, q(SELECT * FROM cqrs_stream('PlaceEach', '{"orders": 2}'))), qq({"row": 0}\n), 'in FROM');
is(placed(), 'stream 0, stream 1|0 1', 'all of them');
like(error_of($node, 'postgres', q(SELECT cqrs_stream('PlaceEach', '{}'))), qr/^ERROR:  38000: .*KeyError: 'orders'.*of stream "PlaceEach"/s, 'an error of a generator');

# ----------------------------------------------------------------------
# Chains and fallbacks
# ----------------------------------------------------------------------

query($node, q(
	CREATE FUNCTION pass_on(c jsonb) RETURNS jsonb LANGUAGE plpython3u AS $$
import json
order = json.loads(c)
plpy.execute(plpy.prepare("SELECT place($1, 'pass_on')", ["int"]), [order["id"]])
if order["id"] < 10:
    return '"pass_on"'
return plpy.execute("SELECT cqrs_next() AS answer")[0]["answer"]
	$$;
	SELECT cqrs_register_chain('Chain', ARRAY['pass_on(jsonb)', 'by_python(jsonb)']);
	SELECT cqrs_register_chain('ChainOfSql', ARRAY['pass_on(jsonb)', 'by_sql(jsonb)']);
	CREATE FUNCTION sql_fails(c jsonb) RETURNS jsonb LANGUAGE sql AS $$
		SELECT place(1, 'sql_fails'); SELECT to_jsonb(1 / (c->>'by')::int)
	$$;
	CREATE FUNCTION python_fails(c jsonb) RETURNS jsonb LANGUAGE plpython3u AS $$
import json
plpy.execute("SELECT place(1, 'python_fails')")
if "sleep" in json.loads(c):
    plpy.execute("SELECT pg_sleep(600)")
raise ValueError("always")
	$$;
	CREATE FUNCTION instead(c jsonb) RETURNS jsonb LANGUAGE plpython3u AS $$
plpy.execute("SELECT place(2, 'instead')")
return '"instead"'
	$$;
	SELECT cqrs_register_command('SqlFails', 'sql_fails(jsonb)'), cqrs_register_fallback('sql_fails(jsonb)', 'instead(jsonb)', '{22}', max_failures => 0),
		   cqrs_register_command('PythonFails', 'python_fails(jsonb)'), cqrs_register_fallback('python_fails(jsonb)', 'instead(jsonb)', '{38,57014}', max_failures => 0);
));
is(query($node, q(SELECT cqrs_send('Chain', '{"id": 1}'))), '"pass_on"', 'a chain: the first answers');
is(placed(), 'pass_on 1|1', 'and no other');
is(query($node, q(SELECT cqrs_send('Chain', '{"id": 10}'))), '{"id": 10, "event_id": 36}', 'it passes on');
is(query($node, q(SELECT cqrs_send('ChainOfSql', '{"id": 11}'))), '"by_sql"', 'to another language too');
is(placed(), 'by_python 10, by_sql 11|10 11', 'and leaves nothing behind');
is(query($node, q(SELECT cqrs_send('SqlFails', '{"by": 1}'))), '1', 'a handler with a fallback succeeds');
is(query($node, q(SELECT cqrs_send('SqlFails', '{"by": 0}'))), '"instead"', 'a fallback');
is(query($node, q(SELECT cqrs_send('PythonFails'))), '"instead"', 'for an exception of Python');
is(placed(), 'sql_fails 1, instead 2, instead 2|1 2 2', 'what failed leaves nothing behind');
like(error_of($node, 'postgres', q(SET statement_timeout = '50ms'; SELECT cqrs_send('PythonFails', '{"sleep": true}'))), qr/^ERROR:  57014: /, 'a cancel goes through');

# ----------------------------------------------------------------------
# Domain events; commands in commands, with an error caught at some level
# ----------------------------------------------------------------------

query($node, q(
	CREATE TABLE handled (seq serial, what text);
	CREATE FUNCTION on_placed(e cqrs_event) RETURNS void LANGUAGE plpython3u AS $$
import json
order = json.loads(e["payload"])
plpy.execute(plpy.prepare("INSERT INTO handled (what) VALUES ($1)", ["text"]), ["%s %s" % (e["event_name"], order.get("id"))])
if order.get("id") == 0:
    raise ValueError("not this one")
if order.get("id") == 1:
    plpy.execute("SELECT cqrs_emit('placed', '{\"id\": 100}')")
	$$;
	SELECT cqrs_register_event_handler('placed', 'on_placed(cqrs_event)');
	CREATE FUNCTION nest(c jsonb) RETURNS jsonb LANGUAGE plpython3u AS $$
import json
n = json.loads(c)["n"]
plpy.execute(plpy.prepare("SELECT place($1, 'nest')", ["int"]), [n])
if n == 0:
    raise KeyError("innermost")
try:
    inner = plpy.execute(plpy.prepare("SELECT cqrs_send('Nest', $1) AS answer", ["jsonb"]), [json.dumps({"n": n - 1})])
    return json.dumps([n, json.loads(inner[0]["answer"])])
except plpy.SPIError as e:
    return json.dumps([n, e.sqlstate])
	$$;
	SELECT cqrs_register_command('Nest', 'nest(jsonb)');
));
is(query($node, q(SELECT cqrs_send('Nest', '{"n": 3}'))), '[3, [2, [1, "38000"]]]', 'commands in commands');
is(query($node, q(SELECT string_agg(what, ', ' ORDER BY seq) FROM handled)), 'placed 3, placed 2, placed 1, placed 100',
	'domain events, follow-ups too, but none of what was rolled back');
is(placed(), 'nest 3, nest 2, nest 1|3 2 1', 'of which nothing is left');
like(error_of($node, 'postgres', q(SELECT cqrs_send('Place', '{"id": 0}'))),
	qr/^ERROR:  38000: ValueError: not this one\nCONTEXT:  Traceback.*PL\/Python function "on_placed"\n.*of event "placed"/s, 'an error of a domain event\'s handler');
is(placed(), '|', 'takes back the command');

# ----------------------------------------------------------------------
# Subscriptions
# ----------------------------------------------------------------------

query($node, q(
	CREATE TABLE delivered (seq serial, what text);
	CREATE FUNCTION deliver(e cqrs_event) RETURNS void LANGUAGE plpython3u AS $$
import json
n = json.loads(e["payload"])["n"]
plpy.execute(plpy.prepare("INSERT INTO public.delivered (what) VALUES ($1)", ["text"]), ["%s %s" % (e["key"], n)])
if n == 2:
    raise KeyError("delivery")
	$$;
	SELECT cqrs_subscribe('deliveries', ARRAY['deliveries'], 'deliver(cqrs_event)', max_attempts => 1);
	SELECT cqrs_emit_many('delivered', ARRAY['{"n": 1}', '{"n": 2}', '{"n": 3}']::jsonb[], ARRAY['a', 'b', 'c']);
));
ok($node->poll_query_until('postgres',
		"SELECT lag_events = 0 AND dead = 1 FROM cqrs_subscription_status WHERE subscription = 'deliveries'"), 'a subscription');
is(query($node, q(SELECT string_agg(what, ', ' ORDER BY seq) FROM delivered)), 'a 1, c 3', 'what the worker has it handle');
like(query($node, q(SELECT payload, error_sqlstate, error FROM cqrs_dead_letters WHERE subscription = 'deliveries')), qr/^{"n": 2}\|38000\|KeyError: 'delivery'/, 'and what failed');

$node->stop;
done_testing();
