# Every database that has the extension gets its manager without being
# configured; commits wake the worker, which delivers each event once; and what
# a DBA does to databases and extension works as if our processes were not
# there. The manager does not find anything by polling here: poll_interval is
# an hour.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main');
$node->start;

# One that has it not, before the others.
$node->safe_psql('postgres', "CREATE DATABASE $_") for qw(without one two);
$node->safe_psql($_, 'CREATE EXTENSION cqrs_outbox') for qw(one two);
ok(wait_managers($node, 'one', 'two'), 'CREATE EXTENSION brings a manager, and only it does');
is(scalar(processes($node, 'launcher')), 1, 'there is one launcher');

$node->safe_psql('postgres', 'CREATE DATABASE later');
$node->safe_psql('later', 'BEGIN; CREATE EXTENSION cqrs_outbox; ROLLBACK');
$node->safe_psql('two', 'BEGIN; DROP EXTENSION cqrs_outbox; ROLLBACK');
$node->safe_psql('postgres', 'CREATE EXTENSION cqrs_outbox');
ok(wait_managers($node, 'one', 'postgres', 'two'), 'what is rolled back changes nothing');
$node->safe_psql('postgres', 'DROP EXTENSION cqrs_outbox');
$node->safe_psql('later', 'CREATE EXTENSION cqrs_outbox');
ok(wait_managers($node, 'later', 'one', 'two'), 'DROP EXTENSION ends the manager; a later database has one');
$node->restart;
ok(wait_managers($node, 'later', 'one', 'two'), 'all are back after a restart');
is($node->safe_psql('one', "SELECT string_agg(concat_ws('/', kind, database, state), ' ' ORDER BY kind, database) FROM cqrs_worker_status"),
	'launcher/running manager/later/running manager/one/running manager/two/running',
	'and cqrs_worker_status shows them');

# Delivery.
set_up_recording($node, 'one');
$node->safe_psql('one', "SELECT cqrs_emit('happened', '{\"n\": 1}', key => 'k')");
ok(wait_recorded($node, 'one', 1), 'the commit wakes the worker');
$node->safe_psql('one', "BEGIN; SELECT cqrs_emit('happened', '{\"n\": -1}'); ROLLBACK");
$node->safe_psql('one', q(
	BEGIN;
	SELECT cqrs_emit('happened', '{"n": 2}');
	SAVEPOINT s;
	SELECT cqrs_emit('happened', '{"n": -2}');
	ROLLBACK TO s;
	SELECT cqrs_emit('happened', '{"n": 3}');
	COMMIT));
emit_numbers($node, 'one', 4 .. 300);
ok(wait_recorded($node, 'one', 300), 'transactions of one and of many events are delivered');
is(recorded($node, 'one'), join(' ', 1 .. 300), 'each once, in order, and none that was rolled back');
is($node->safe_psql('one', 'SELECT lag_events, state FROM cqrs_subscription_status'), '0|idle', 'nothing is left');
is($node->safe_psql('one', "SELECT count(*) FROM cqrs_events('things')"), '0', 'everything is produced');

# A transaction that stays open holds up nobody else's events.
my $open = new_session($node, 'one');
$open->query("BEGIN; SELECT cqrs_emit('happened', '{\"n\": 302}')");
emit_numbers($node, 'one', 301);
ok(wait_recorded($node, 'one', 301), 'an open transaction holds up nobody');
$open->query('COMMIT');
ok(wait_recorded($node, 'one', 302), 'and its event is delivered when it commits');
$open->quit;
is(recorded($node, 'one'), join(' ', 1 .. 302), 'in the order in which they became visible');

# A copy of a database that has the extension. Its handler serves the copy.
$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE one');
ok(wait_managers($node, 'copy', 'later', 'one', 'two'), 'CREATE DATABASE TEMPLATE works, and its copy has a manager');
$node->safe_psql('copy', 'SELECT cqrs_adopt()');
emit_numbers($node, $_, 303) for qw(one copy);
for my $dbname (qw(one copy))
{
	ok(wait_recorded($node, $dbname, 303), "database $dbname delivers");
	is(recorded($node, $dbname), join(' ', 1 .. 303), 'its own events, each once');
}

# With a worker in the middle of a handler.
sub handler_waits
{
	my ($dbname) = @_;
	my $holder = hold_handlers($node, $dbname);

	emit_numbers($node, $dbname, 304);
	in_handler($node, $dbname);
	return $holder;
}

my $holder = handler_waits('copy');
$holder->quit;
ok(wait_recorded($node, 'copy', 304), 'a handler may wait');
$node->safe_psql('postgres', 'ALTER DATABASE copy RENAME TO renamed');
ok(wait_managers($node, 'later', 'one', 'renamed', 'two'), 'ALTER DATABASE RENAME works');
emit_numbers($node, 'renamed', 305);
ok(wait_recorded($node, 'renamed', 305), 'and the database delivers under its new name');
is(recorded($node, 'renamed'), join(' ', 1 .. 305), 'each once');

# DROP DATABASE does not wait for the handler. (Not for a lock, this time: who
# held it would be connected.)
$node->safe_psql('renamed', q(
	CREATE OR REPLACE FUNCTION record_event(event cqrs_event) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(1000)'));
$node->safe_psql('renamed', "SELECT cqrs_emit('happened', '{}')");
ok($node->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox worker' AND datname = 'renamed' AND wait_event = 'PgSleep'"),
	'a handler sleeps');
$node->safe_psql('postgres', 'DROP DATABASE renamed');
ok(wait_managers($node, 'later', 'one', 'two'), 'DROP DATABASE works while a handler runs');
$node->safe_psql('postgres', 'CREATE DATABASE renamed TEMPLATE two');
ok(wait_managers($node, 'later', 'one', 'renamed', 'two'), 'and another of that name is another database');
$node->safe_psql('postgres', 'DROP DATABASE renamed');

# A command that fails gives the database back.
isnt($node->psql('postgres', 'ALTER DATABASE two RENAME TO one'), 0, 'a command may fail');
ok(wait_managers($node, 'later', 'one', 'two'), 'and the manager comes back');

# DROP EXTENSION waits for the handler, and takes manager and worker with it.
$holder = handler_waits('one');
my $dropper = new_session($node, 'one');
$dropper->begin('DROP EXTENSION cqrs_outbox CASCADE');
ok($node->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'DROP EXTENSION%' AND wait_event_type = 'Lock'"),
	'DROP EXTENSION waits for the handler');
$holder->quit;
unlike($dropper->finish, qr/ERROR/, 'and works');
$dropper->quit;
ok(wait_managers($node, 'later', 'two'), 'the manager leaves');
ok($node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox worker' AND datname = 'one'"),
	'so does the worker');
is(recorded($node, 'one'), join(' ', 1 .. 304), 'what the handler did stays');
$node->safe_psql('one', 'TRUNCATE recorded');
set_up_recording($node, 'one');
emit_numbers($node, 'one', 1);
ok(wait_recorded($node, 'one', 1), 'CREATE EXTENSION again delivers again');

# Dropped and created in one transaction.
$node->safe_psql('one', 'BEGIN; DROP EXTENSION cqrs_outbox CASCADE; CREATE EXTENSION cqrs_outbox; COMMIT; TRUNCATE recorded');
set_up_recording($node, 'one');
emit_numbers($node, 'one', 1);
ok(wait_recorded($node, 'one', 1), 'also when it was dropped and created at once');

# Shutdown does not wait for a handler, and loses nothing.
$holder = handler_waits('one');
$node->stop('fast');
pass('the server shuts down while a handler runs');
$holder->quit;
$node->start;
ok(wait_recorded($node, 'one', 2), 'what was being delivered is delivered after the restart');
is(recorded($node, 'one'), '1 304', 'once');
unlike(slurp_file($node->logfile), qr/(PANIC|TRAP|terminated by signal)/, 'no process crashed');
$node->stop;

done_testing();
