# A copy that CREATE DATABASE ... TEMPLATE made delivers nothing, and says so, until
# cqrs_adopt() makes it a database of its own; the original and a renamed database go on.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main');
$node->start;
$node->safe_psql('postgres', 'CREATE DATABASE original');
$node->safe_psql('original', q(
	CREATE EXTENSION cqrs_outbox;
	CREATE TABLE recorded (n integer, database name DEFAULT current_database());
	CREATE FUNCTION on_thing(event cqrs_event) RETURNS void LANGUAGE sql SET search_path = public AS
		$$ INSERT INTO recorded (n) VALUES ((event.payload->>'n')::integer) $$;
	CREATE FUNCTION later(command jsonb) RETURNS void LANGUAGE sql SET search_path = public AS
		$$ INSERT INTO recorded (n) VALUES ((command->>'n')::integer) $$;
	SELECT cqrs_register_event('happened', 'things');
	SELECT cqrs_register_command('Later', 'later(jsonb)');
	SELECT cqrs_create_command_queue();
	SELECT cqrs_subscribe('things', ARRAY['things'], 'on_thing(cqrs_event)');
	SELECT cqrs_subscribe('pulled', ARRAY['things']);
));
$node->safe_psql('original', q(SELECT cqrs_emit('happened', '{"n": 1}')));
is($node->safe_psql('original', q(SELECT cqrs_wait('things', '60 s'))), 't', 'the original delivers');

# What is copied undelivered: an event, and a command that is due.
$node->safe_psql('original', q(SELECT cqrs_pause('things')));
$node->safe_psql('original', q(SELECT cqrs_emit('happened', '{"n": 2}')));
$node->safe_psql('original', q(SELECT cqrs_enqueue('Later', '{"n": 3}', run_at => now() + interval '1 day')));
my ($position, $receipt) = split /\|/, $node->safe_psql('original', "SELECT position, receipt FROM cqrs_receive('pulled', 1)");
my $settle = "SELECT cqrs_ack('pulled', ARRAY[$position], '$receipt')";
my $log = -s $node->logfile;
$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE original');
$node->safe_psql('copy', q(
	UPDATE cqrs.scheduled_command SET run_at = now();
	SELECT cqrs_resume('things');
	SELECT cqrs_emit('happened', '{"n": 4}')));
ok($node->poll_query_until('postgres', "SELECT count(*) = 2 FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox manager'"),
	'the copy has a manager');
ok($node->wait_for_log(qr/cqrs_outbox delivers nothing in database "copy"/, $log), "the log says so, once");

is($node->safe_psql('copy', "SELECT problem, object FROM cqrs_health('1 day', '1 day') WHERE problem = 'copied'"),
	'copied|database "copy"', 'health names the copy');
is($node->safe_psql('copy', 'SELECT DISTINCT state FROM cqrs_subscription_status'), 'copied',
	'so does the status of each subscription');
for my $call ("cqrs_receive('pulled')", "cqrs_drain('things')")
{
	like(error_of($node, 'copy', "SELECT $call"), qr/ERROR: .*database "copy" is a copy of another one/, "$call is refused, and says why");
}

like(error_of($node, 'copy', $settle), qr/ERROR:  OB003/, 'what the original handed out is not settled in the copy');

# The manager has looked at it (it said so), and a worker at nothing.
$node->safe_psql('original', q(SELECT cqrs_resume('things')));
is($node->safe_psql('original', q(SELECT cqrs_wait('things', '60 s'))), 't', 'the original goes on');
is($node->safe_psql('copy', q(SELECT cqrs_wait('things', '1 ms'))), 'f', 'nothing is delivered in the copy');
is($node->safe_psql('copy', "SELECT string_agg(n || ' ' || database, ', ' ORDER BY n) FROM recorded"), '1 original',
	'its handler was not called');

$node->safe_psql('copy', q(SELECT * FROM cqrs_adopt()));
like(error_of($node, 'copy', $settle), qr/ERROR:  OB003/, 'nor once it is adopted');
is($node->safe_psql('original', $settle), '1', 'but in the original');
is($node->safe_psql('copy', q(SELECT cqrs_wait('things', '60 s'))), 't', 'once adopted, the copy delivers');
ok($node->poll_query_until('copy', "SELECT string_agg(n || ' ' || database, ', ' ORDER BY n) = '1 original, 2 copy, 3 copy, 4 copy' FROM recorded"),
	'what the original had not got, the command that was due, and its own');
is($node->safe_psql('copy', "SELECT count(*) FROM cqrs_health('1 day', '1 day') WHERE problem = 'copied'"), '0',
	'and health is content');
is($node->safe_psql('original', "SELECT string_agg(n || ' ' || database, ', ' ORDER BY n) FROM recorded"),
	'1 original, 2 original', 'the original has each once');

# A name is no identity; a copy of an adopted copy is a copy again.
$node->safe_psql('postgres', 'ALTER DATABASE original RENAME TO renamed');
$node->safe_psql('renamed', q(SELECT cqrs_emit('happened', '{"n": 5}')));
is($node->safe_psql('renamed', q(SELECT cqrs_wait('things', '60 s'))), 't', 'a renamed database delivers');
$node->safe_psql('postgres', 'CREATE DATABASE second TEMPLATE copy');
is($node->safe_psql('second', 'SELECT DISTINCT state FROM cqrs_subscription_status'), 'copied', 'a copy of a copy is one');

# The copy of a template, which delivers nothing, is no copy, also once that is no template any more.
$node->safe_psql('postgres', 'ALTER DATABASE copy IS_TEMPLATE true');
$node->safe_psql('postgres', 'CREATE DATABASE third TEMPLATE copy');
$node->safe_psql('third', q(SELECT cqrs_emit('happened', '{"n": 6}')));
is($node->safe_psql('third', q(SELECT cqrs_wait('things', '60 s'))), 't', 'the copy of a template delivers');
$node->safe_psql('postgres', 'ALTER DATABASE copy IS_TEMPLATE false');
$node->restart;
$node->safe_psql('third', q(SELECT cqrs_emit('happened', '{"n": 7}')));
is($node->safe_psql('third', q(SELECT cqrs_wait('things', '60 s'))), 't', 'and goes on when that is no template any more');

$node->stop;
done_testing();
