# Without enough processes, the server's or ours, that is logged once, and
# nothing spins; what runs goes on, and the rest gets its turn. And delivery
# can be switched off.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

# The server's own launcher of logical replication takes one, ours one, and
# two are left: for a manager and a worker.
my $node = new_server('main', q(
max_worker_processes = 4
max_parallel_workers = 0
cqrs_outbox.max_workers = 3
cqrs_outbox.max_databases = 3
));
my $full = qr/out of background worker slots for cqrs_outbox/;
my %emitted;

# delivers(DATABASE): one more event
sub delivers
{
	my ($dbname) = @_;
	my $n = ++$emitted{$dbname};

	emit_numbers($node, $dbname, $n);
	return wait_recorded($node, $dbname, $n);
}

# restart_with(PROCESSES)
sub restart_with
{
	my ($processes) = @_;

	$node->append_conf('postgresql.conf', "max_worker_processes = $processes\n");
	my $offset = -s $node->logfile;
	$node->restart;
	return $offset;
}

$node->start;
$node->safe_psql('postgres', "CREATE DATABASE $_") for qw(two three four);
set_up_recording($node, $_) for qw(postgres two);

# They take turns.
my $offset = -s $node->logfile;
for (1 .. 5)
{
	ok(delivers($_), "one manager and one worker deliver in $_") for qw(postgres two);
}
unlike(slurp_file($node->logfile, $offset), $full, 'and nothing is wrong');

# No worker: the manager says it, once, and goes on ticking.
$node->safe_psql('postgres', 'DROP EXTENSION cqrs_outbox CASCADE; DROP TABLE recorded');
$offset = restart_with(3);
$node->safe_psql('two', "SELECT cqrs_subscribe('puller', ARRAY['things'], start => 'latest')");
emit_numbers($node, 'two', 6);
ok($node->wait_for_log(qr/$full in database "two"/, $offset), 'no worker can be had: said');
$offset = -s $node->logfile;
my $tick = $node->safe_psql('two', 'SELECT max(tick_id) FROM cqrs.tick');
for my $n (7 .. 10)
{
	emit_numbers($node, 'two', $n);
	ok($node->poll_query_until('two', "SELECT max(tick_id) > $tick FROM cqrs.tick"), 'the manager still ticks') if $n == 7;
}
is($node->safe_psql('two', "SELECT lag_events, state FROM cqrs_subscription_status WHERE subscription = 'recorder'"), '5|no_worker', 'and events wait');
unlike(slurp_file($node->logfile, $offset), $full, 'which is said once');

# Nor a manager.
$offset = restart_with(2);
ok($node->wait_for_log($full, $offset), 'no manager can be had: said');
$offset = -s $node->logfile;
emit_numbers($node, 'two', 11);
$node->poll_query_until('two', "SELECT count(*) > 0 FROM cqrs_health() WHERE problem = 'no_manager'");
unlike(slurp_file($node->logfile, $offset), $full, 'which is said once');
restart_with(4);
ok(wait_recorded($node, 'two', 11), 'until there are some');
is(recorded($node, 'two'), join(' ', 1 .. 11), 'each once, in order');

# More databases than slots.
$node->safe_psql('three', 'CREATE EXTENSION cqrs_outbox');
$node->safe_psql('four', 'CREATE EXTENSION cqrs_outbox');
$node->append_conf('postgresql.conf', "max_worker_processes = 20\ncqrs_outbox.max_databases = 2\ncqrs_outbox.max_workers = 1\n");
$offset = -s $node->logfile;
$node->restart;
ok($node->wait_for_log(qr/cqrs_outbox cannot serve more than 2 databases/, $offset), 'more databases than max_databases: said');
ok($node->poll_query_until('postgres', "SELECT count(*) = 2 FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox manager'"), 'those there is room for are served');
$node->safe_psql('postgres', 'DROP DATABASE three; ');
$node->safe_psql('four', 'DROP EXTENSION cqrs_outbox');
ok(wait_managers($node, 'two'), 'and those that are left');

# One worker for all.
$node->safe_psql('two', 'CREATE ROLE alice LOGIN; GRANT ALL ON SCHEMA public TO alice; GRANT EXECUTE ON FUNCTION cqrs_subscribe TO alice; GRANT SELECT ON cqrs_topics.things TO alice; GRANT ALL ON recorded, recorded_seq_seq TO alice');
for my $n (1 .. 3)
{
	$node->safe_psql('two', "SELECT cqrs_subscribe('more $n', ARRAY['things'], 'record_event(cqrs_event)', start => 'latest')");
	$node->safe_psql('two', "SELECT cqrs_subscribe('alice $n', ARRAY['things'], 'record_event(cqrs_event)', start => 'latest')", extra_params => [ '-U', 'alice' ]);
}
$node->safe_psql('two', 'TRUNCATE recorded');
emit_numbers($node, 'two', 1 .. 100);
ok(wait_recorded($node, 'two', 700), 'one worker delivers seven subscriptions of two owners');
is($node->safe_psql('two', "SELECT payload->>'n', count(*) FROM recorded GROUP BY 1 HAVING count(*) <> 7"), '', 'each event once to each');

# Off and on.
reconfigure($node, "cqrs_outbox.deliver = off");
$node->safe_psql('two', 'TRUNCATE recorded');
$tick = $node->safe_psql('two', 'SELECT max(tick_id) FROM cqrs.tick');
$node->safe_psql('two', join "; ", map { "SELECT cqrs_emit('happened', '{\"n\": $_}')" } 1 .. 20);
is($node->safe_psql('two', "SELECT max(tick_id) - $tick FROM cqrs.tick"), '0', 'deliver = off: nothing is ticked');
is(recorded($node, 'two'), '', 'nor delivered');
reconfigure($node, "cqrs_outbox.deliver = on");
ok(wait_recorded($node, 'two', 140), 'a reload resumes it');
is($node->safe_psql('two', "SELECT count(*), count(DISTINCT (event_id)) FROM recorded"), '140|20', 'each event once to each');

# Also across a restart.
$node->append_conf('postgresql.conf', "cqrs_outbox.deliver = off\n");
$node->restart;
ok(wait_managers($node), 'deliver = off: there is no manager after a restart');
$node->safe_psql('two', 'TRUNCATE recorded');
$node->safe_psql('two', join "; ", map { "SELECT cqrs_emit('happened', '{\"n\": $_}')" } 1 .. 5);
is(recorded($node, 'two'), '', 'and nothing is delivered');
reconfigure($node, "cqrs_outbox.deliver = on");
ok(wait_recorded($node, 'two', 35), 'until it is told to');
$node->stop;

done_testing();
