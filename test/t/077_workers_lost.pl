# That a worker was lost is counted even if another database takes its slot
# before its manager looks; and a worker that is only starting when its
# extension is dropped keeps neither the slot nor the database.

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

for my $dbname (qw(one other))
{
	emit_numbers($node, $dbname, 1);
	ok(wait_recorded($node, $dbname, 1), "$dbname delivers");
}

# The only slot is needed by another database before the manager of the one that
# lost its worker has noted it.
my $holder = hold_handlers($node, 'one');
emit_numbers($node, 'one', 2);
my $worker = in_handler($node, 'one');
my ($manager) = processes($node, 'manager', 'one');

kill 'STOP', $manager;
$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker, 60000)");
emit_numbers($node, 'other', 2);
ok(wait_recorded($node, 'other', 2), 'the other database has the slot');
kill 'CONT', $manager;
in_handler($node, 'one');
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

kill 'STOP', $postmaster;
$ours->query("SELECT cqrs_subscribe('sender', ARRAY['things'], server => 'peer', format => 'raw')");
ok(wait_until(sub { $ours->query("SELECT max(tick_id) > $before FROM cqrs.tick") eq 't' }), 'a worker is asked for, and then ticked');
$ours->query('DROP EXTENSION cqrs_outbox CASCADE');
ok(wait_until(sub { $watcher->query("SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = 'brokers' AND backend_type = 'cqrs_outbox manager'") eq 't' }),
	'the manager ends with the extension');
kill 'CONT', $postmaster;
$ours->quit;
my ($result, $out, $err) = $node->psql('postgres', 'DROP DATABASE brokers');
is($err, '', 'the database can be dropped');
emit_numbers($node, 'other', 3);
ok(wait_recorded($node, 'other', 3), 'and the slot is free for others');

$node->stop;
done_testing();
