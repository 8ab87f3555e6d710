# An application's driver: events emitted by psycopg, which leaves it to the server
# to bind parameters, with every argument a bare parameter. Text goes without a
# type, other values with one; NULL stands for what is not given.

use strict;
use warnings;

use CqrsTest;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('psycopg');
my $program = PostgreSQL::Test::Utils::tempdir . '/emit.py';

$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('joined', 'meetings'), cqrs_create_topic('elsewhere');
));
append_to_file($program, <<~'P');
	import datetime
	import os
	import uuid
	import psycopg
	from psycopg.types.json import Json, Jsonb

	connection = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
	event_id = uuid.UUID("01890a5d-ac96-774b-bcce-b302099a8057")
	occurred_at = datetime.datetime(2024, 12, 31, 23, 59, 59, 500000, datetime.timezone.utc)
	emit = "SELECT cqrs_emit(%s, %s, %s, %s, %s, %s)"
	insert = ("INSERT INTO cqrs_topics.meetings (event_name, payload, key, headers, event_id, occurred_at)"
	          " VALUES (%s, %s, %s, %s, %s, %s) RETURNING event_id, position, emitted_at, occurred_at")


	def run(sql, *arguments):
	    return connection.execute(sql, arguments, prepare=prepare).fetchone()


	for prepare in False, True:
	    for key in "text", 17, -70000, 2**40, event_id, None:
	        assert run(emit, "joined", Jsonb({"by": "emit"}), key, None, None, None)[0].version == 7
	        assert run(insert, "joined", Jsonb({"by": "insert"}), key, None, None, None)[0].version == 7
	    assert run(emit, "joined", '{"by": "all"}', "a", Jsonb({"h": 1}), "elsewhere", event_id) == (event_id,)
	    assert run(emit, "joined", None, None, '{"h": 2}', None, str(event_id)) == (event_id,)
	    row = run(insert, "joined", Json({"by": "all"}), "a", Json({"h": 3}), event_id, occurred_at)
	    assert row[0] == event_id and row[1] > 0 and row[2] > occurred_at and row[3] == occurred_at, row
	    run(insert, "joined", '{"by": "text"}', None, '{"h": 4}', str(event_id), "2024-12-31T23:59:59.5Z")
	    assert [i.version for i in run("SELECT cqrs_emit_many(%s, %s, %s, %s, %s, %s)", "joined",
	            [Jsonb({"by": "many"}), Jsonb({})], ["a", None], None, "elsewhere", None)[0]] == [7, 7]
	    try:
	        run(emit, "joined", Jsonb({}), 1.5, None, None, None)
	        raise AssertionError("a float is no key")
	    except psycopg.errors.InvalidParameterValue as error:
	        assert "cannot be of type double precision" in str(error), error

	# Of a list, the server is not told the type: without a cast, it is one id.
	assert run("SELECT cqrs_consumed(%s, %s::text[])", "queue", ["m1", "m2", "m1"]) == ([True, True, False],)
	assert run("SELECT cqrs_consumed(%s, %s::text[])", "queue", []) == ([],)
	assert run("SELECT cqrs_consumed(%s, %s)", "queue", ["m1", "m2"]) == (True,)
	assert run("SELECT cqrs_consumed(%s, %s)", "queue", "{m1,m2}") == (False,)

	# Many at once: in one message, and by COPY.
	connection.cursor().executemany("INSERT INTO cqrs_topics.elsewhere (event_name, key) VALUES (%s, %s)",
	                                [("joined", f"many {n}") for n in range(100)])
	with connection.cursor().copy("COPY cqrs_topics.elsewhere (event_name, key, payload) FROM STDIN") as copy:
	    for n in range(100):
	        copy.write_row(("joined", f"copied {n}", Jsonb({"n": n})))
	print("done")
	P

my $output = '';
local $ENV{DATABASE_URL} = $node->connstr('postgres');
IPC::Run::run([ '/usr/bin/python3', $program ], '<', \undef, '>', \$output, '2>&1',
	IPC::Run::timer($PostgreSQL::Test::Utils::timeout_default));
is($output, "done\n", 'the program');

# Of what the two halves emitted, which are the same:
my $id = '01890a5d-ac96-774b-bcce-b302099a8057';
my $by = sub { $node->safe_psql('postgres',
	"SELECT coalesce(key, '-') FROM cqrs_topics.meetings WHERE payload->>'by' = '$_[0]' ORDER BY position") };
my $keys = join "\n", ('text', 17, -70000, 1099511627776, $id, '-') x 2;
is($by->('emit'), $keys, 'keys of each type, emitted');
is($by->('insert'), $keys, '... and inserted');
is($node->safe_psql('postgres', "SELECT DISTINCT payload, key, headers, occurred_at AT TIME ZONE 'UTC', count(*) OVER (PARTITION BY headers->>'h')
	FROM (SELECT * FROM cqrs_topics.meetings UNION ALL SELECT * FROM cqrs_topics.elsewhere) e WHERE event_id = '$id' ORDER BY headers"), <<~'E' =~ s/\n\z//r,
	{"by": "all"}|a|{"h": 1}||2
	||{"h": 2}||2
	{"by": "all"}|a|{"h": 3, "occurred_at": "2024-12-31T23:59:59.500000+00:00"}|2024-12-31 23:59:59.5|2
	{"by": "text"}||{"h": 4, "occurred_at": "2024-12-31T23:59:59.500000+00:00"}|2024-12-31 23:59:59.5|2
	E
	'every argument');
is($node->safe_psql('postgres', "SELECT array_agg(key ORDER BY position) = ARRAY(SELECT format('%s %s', how, n) FROM unnest(ARRAY['many', 'copied']) WITH ORDINALITY h (how, i), generate_series(0, 99) n ORDER BY i, n)
	FROM cqrs_topics.elsewhere WHERE key ~ '^(many|copied) '"), 't', 'many at once, in order');

$node->stop;
done_testing();
