# Drivers of several languages: the same calls with psycopg, asyncpg, node-postgres
# and JDBC, as docs/commands.md says, with each argument a parameter. What is not
# given is NULL. All of them get the same.

use strict;
use warnings;

use CqrsTest;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $clients = $ENV{CQRS_CLIENTS} // die "CQRS_CLIENTS must name the folder of test/clients, with its packages installed\n";
my $node = new_server('drivers', "listen_addresses = '127.0.0.1'");
my %programs = (
	psycopg => [ '/usr/bin/python3', "$clients/with_psycopg.py" ],
	asyncpg => [ '/usr/bin/python3', "$clients/with_asyncpg.py" ],
	pg => [ 'node', "$clients/with_pg.js" ],
	jdbc => [ 'java', '-cp', "$clients/java/*", "$clients/WithJdbc.java" ],
);

# What each program prints. An id that the server made is "<id>".
my $expected = <<'E';
event | true
event | true
command | true
command | false
chain | true
subscribe | true
subscribe | true
send | {"n": 1, "joined": true}
send | {"n": 1, "joined": true}
send | {"joined": true}
error | OB001
emit | <id>
emit | <id>
emit | <id>
emit | <id>
emit | <id>
insert | <id> | 6
insert | <id> | 7
insert | <id> | 8
insert | <id> | 9
insert | 00000000-0000-4000-8000-000000000018 | 10
receive | joined | text | {"n": 2} | null | 1 | <id>
receive | joined | 17 | {"n": 2} | null | 2 | <id>
receive | joined | 00000000-0000-4000-8000-000000000017 | {"n": 2} | null | 3 | <id>
receive | joined | null | {"n": 2} | null | 4 | <id>
receive | joined | text | null | {"tenant": "a"} | 5 | <id>
receive | joined | text | {"n": 3} | null | 6 | <id>
receive | joined | 17 | {"n": 3} | null | 7 | <id>
receive | joined | 00000000-0000-4000-8000-000000000017 | {"n": 3} | null | 8 | <id>
receive | joined | null | {"n": 3} | null | 9 | <id>
receive | joined | text | null | {"tenant": "a"} | 10 | <id>
acknowledged | 10
enqueue | <id>
enqueue | <id>
enqueue | <id>
enqueue | <id>
enqueued | Join | text | {"n": 4} | scheduled | true
enqueued | Join | 17 | {"n": 4} | scheduled | true
enqueued | Join | 00000000-0000-4000-8000-000000000017 | {"n": 4} | scheduled | true
enqueued | Join | null | {} | ready | false
E

local $ENV{PYTHONPATH} = "$clients/python";
$node->start;
my $user = $node->safe_psql('postgres', 'SELECT current_user');
for my $driver (sort keys %programs)
{
	my $output = '';

	$node->safe_psql('postgres', "CREATE DATABASE $driver");
	$node->safe_psql($driver, q(
		CREATE EXTENSION cqrs_outbox;
		CREATE TYPE named AS (name text);
		CREATE FUNCTION join_meeting(command jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT command || '{"joined": true}'$$;
		CREATE FUNCTION pass_on(command jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT cqrs_next()';
		CREATE FUNCTION ignore(event cqrs_event) RETURNS void LANGUAGE sql AS '';
		SELECT cqrs_create_command_queue(), cqrs_pause('commands_of_' || current_user);
	));
	local $ENV{DATABASE_URL} = 'postgresql://127.0.0.1:' . $node->port . "/$driver?user=$user";
	IPC::Run::run($programs{$driver}, '<', \undef, '>', \$output, '2>&1',
		IPC::Run::timer($PostgreSQL::Test::Utils::timeout_default));
	$output =~ s/\b(?!00000000)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b/<id>/g;
	is($output, $expected, $driver);
	is($node->safe_psql($driver, "SELECT retry_delay FROM cqrs.subscription WHERE subscription = 'handled'"),
		'00:00:01', "$driver: an interval");
}

$node->stop;
done_testing();
