# What must be known about a worker that was lost, or is only starting, is not
# lost with its slot, or with the manager that asked for it.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main', "cqrs_outbox.max_workers = 1\n");

$node->start;
$node->safe_psql('postgres', "CREATE DATABASE $_") for qw(one other brokers);
set_up_recording($node, $_) for qw(one other);

sub emit
{
	my ($dbname, $n) = @_;

	$node->safe_psql($dbname, "SELECT cqrs_emit('happened', '{\"n\": $n}')");
}

for my $dbname (qw(one other))
{
	emit($dbname, 1);
	ok(wait_recorded($node, $dbname, 1), "$dbname delivers");
}

# in_handler(DATABASE): the worker that waits in a handler there
sub in_handler
{
	my ($dbname) = @_;
	my $waits = "FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox worker' AND wait_event_type = 'Lock' AND datname = '$dbname'";

	$node->poll_query_until('postgres', "SELECT count(*) = 1 $waits") or die 'no worker is in a handler';
	return $node->safe_psql('postgres', "SELECT pid $waits");
}

# The only slot is needed by another database before the manager of the one that
# lost its worker has noted it.
my $holder = new_session($node, 'one');

$holder->query('SELECT pg_advisory_lock(1)');
emit('one', 2);
my $worker = in_handler('one');
my ($manager) = processes($node, 'manager', 'one');

kill 'STOP', $manager;
$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker, 60000)");
emit('other', 2);
ok(wait_recorded($node, 'other', 2), 'the other database has the slot');
kill 'CONT', $manager;
in_handler('one');
is($node->safe_psql('one', 'SELECT max(attempts) FROM cqrs.retry'), '1',
	'the event is delivered carefully again: its attempt was counted before');
$holder->quit;
ok(wait_recorded($node, 'one', 2), 'and is delivered');

# The worker of a broker is asked for, and comes when the extension was dropped.
# There is no connection while the postmaster is stopped, but these.
my ($ours, $watcher) = (new_session($node, 'brokers'), new_session($node, 'postgres'));

$ours->query(q(
	SET client_min_messages = error;
	CREATE EXTENSION cqrs_outbox;
	CREATE EXTENSION cqrs_outbox_example;
	SELECT cqrs_register_event('happened', 'things');
	CREATE SERVER peer FOREIGN DATA WRAPPER cqrs_example OPTIONS (host '127.0.0.1', port '1')));
wait_managers($node, qw(one other brokers));
$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox worker'");
$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox worker'");
my ($postmaster) = slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/;
my $before = $ours->query('SELECT coalesce(max(tick_id), 0) FROM cqrs.tick');

# until(SESSION, QUERY): it answers t
sub until_true
{
	my ($session, $query) = @_;

	for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		return 1 if $session->query($query) eq 't';
		$session->query('SELECT pg_sleep(0.1)');
	}
	return 0;
}

kill 'STOP', $postmaster;
$ours->query("SELECT cqrs_subscribe('sender', ARRAY['things'], server => 'peer', format => 'raw')");
ok(until_true($ours, "SELECT max(tick_id) > $before FROM cqrs.tick"), 'a worker is asked for, and then ticked');
$ours->query('DROP EXTENSION cqrs_outbox CASCADE');
ok(until_true($watcher, "SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = 'brokers' AND backend_type = 'cqrs_outbox manager'"),
	'the manager ends with the extension');
kill 'CONT', $postmaster;
$ours->quit;
my ($result, $out, $err) = $node->psql('postgres', 'DROP DATABASE brokers');
is($err, '', 'the database can be dropped');
emit('other', 3);
ok(wait_recorded($node, 'other', 3), 'and the slot is free for others');

$node->stop;
done_testing();
