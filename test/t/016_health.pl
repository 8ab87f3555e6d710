# cqrs_health() in a server at work, read by a role that may watch and nothing
# else: each problem appears, and goes away once it is dealt with. And what
# pg_stat_activity and cqrs_subscription_status show meanwhile.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use ExamplePeer;

my $node;

# problems(ARGUMENTS OF cqrs_health, DATABASE): their names and objects
sub problems
{
	my ($arguments, $dbname) = @_;

	return $node->safe_psql($dbname // 'postgres',
		"SELECT problem || ' ' || object FROM cqrs_health(" . ($arguments // '') . ')',
		extra_params => [ '-U', 'watcher' ]);
}

# wait_problems(EXPECTED, ARGUMENTS, DATABASE)
sub wait_problems
{
	my ($expected, $arguments, $dbname) = @_;

	return 1 if wait_until(sub { problems($arguments, $dbname) eq $expected });
	diag('there is: ' . problems($arguments, $dbname));
	return 0;
}

# healthy(ARGUMENTS, DATABASE): wait until nothing is wrong
sub healthy { return wait_problems('', @_); }

# of(PROBLEM, COLUMN, ARGUMENTS)
sub of
{
	my ($problem, $column, $arguments) = @_;

	return $node->safe_psql('postgres', "SELECT $column FROM cqrs_health($arguments) WHERE problem = '$problem'",
		extra_params => [ '-U', 'watcher' ]);
}

# The manager notes what its workers did when it has something to do anyway.
$node = new_server('main', "cqrs_outbox.max_workers = 2\ncqrs_outbox.poll_interval = '100 ms'\n");
$node->start;
set_up_recording($node, 'postgres');
$node->safe_psql('postgres', 'CREATE ROLE watcher LOGIN IN ROLE pg_monitor; CREATE ROLE alice LOGIN');
ok(healthy(), 'all is well');
emit_numbers($node, 'postgres', 1);
ok(wait_recorded($node, 'postgres', 1), 'the worker delivers');
ok(healthy("'0', '0'"), 'and nothing is late or held');

# What the processes are at.
is($node->safe_psql('postgres', "SELECT string_agg(application_name, ', ' ORDER BY application_name) FROM pg_stat_activity WHERE backend_type = application_name AND backend_type LIKE 'cqrs%'"),
	'cqrs_outbox launcher, cqrs_outbox manager, cqrs_outbox worker', 'processes have names');
SKIP:
{
	skip 'wait events have names since PostgreSQL 17', 1
	  if $node->safe_psql('postgres', "SELECT current_setting('server_version_num')::int < 170000") eq 't';
	ok($node->poll_query_until('postgres',
			"SELECT string_agg(wait_event, ', ' ORDER BY wait_event) = 'CqrsOutboxLauncher, CqrsOutboxManager, CqrsOutboxWorkerIdle' FROM pg_stat_activity WHERE backend_type LIKE 'cqrs%'"),
		'and so has what they wait for');
}

# A handler at work for long.
my $locker = hold_handlers($node, 'postgres');
emit_numbers($node, 'postgres', 1);
ok(wait_problems('handler_slow subscription "recorder"', "max_hold => '0'"), 'a handler that takes long');
ok(healthy(), 'is none by default yet');
my ($worker) = processes($node, 'worker');
like(of('handler_slow', 'detail', "max_hold => '0'"), qr/^Its worker, process $worker, has had the lock of partition 0 since /, 'who');
is($node->safe_psql('postgres', "SELECT state, query FROM pg_stat_activity WHERE pid = $worker"),
	'active|delivering subscription "recorder" partition 0', 'pg_stat_activity shows what the worker delivers');
ok($node->poll_query_until('postgres',
		"SELECT held_by_pid = $worker AND held_since = a.xact_start AND s.pid = $worker FROM cqrs_subscription_status s, pg_stat_activity a WHERE a.pid = $worker"),
	'and cqrs_subscription_status who holds it');
is(of('late', 'count(*)', "max_lag => '0', max_hold => '0'"), '1', 'it is late');

# Both workers are in use; a third subscription waits.
$node->safe_psql('postgres', "SELECT cqrs_subscribe('second', ARRAY['things'], 'record_event(cqrs_event)', start => 'latest'); SELECT cqrs_subscribe('third', ARRAY['things'], 'record_event(cqrs_event)', start => 'latest')");
emit_numbers($node, 'postgres', 1);
ok($node->poll_query_until('postgres', q(SELECT count(*) FILTER (WHERE problem = 'handler_slow') = 2 AND count(*) FILTER (WHERE problem = 'workers_busy' AND object = 'database "postgres"') = 1 FROM cqrs_health(max_hold => '0'))),
	'workers that are busy while others wait');
is($node->safe_psql('postgres', "SELECT count(*) FROM cqrs_subscription_status WHERE held_by_pid IS NULL AND state = 'no_worker'"), '1',
	'who waits is held by nobody');
$locker->query('SELECT pg_advisory_unlock(1)');
ok(wait_recorded($node, 'postgres', 5), 'once they go on');
ok(healthy("'0', '0'"), 'all is well');
$node->safe_psql('postgres', "SELECT cqrs_unsubscribe('second'), cqrs_unsubscribe('third')");
is($node->safe_psql('postgres', "SELECT DISTINCT state FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox worker'"), 'idle', 'workers are idle');

# What a handler calls its session is gone with it.
$node->safe_psql('postgres', q(CREATE TABLE names (name text);
	CREATE FUNCTION rename_session(event cqrs_event) RETURNS void LANGUAGE sql SET search_path = public AS $$
		INSERT INTO names VALUES (current_setting('application_name'));
		SELECT set_config('application_name', 'mine', false) $$;
	SELECT cqrs_subscribe('renames', ARRAY['things'], 'rename_session(cqrs_event)', start => 'latest')));
for my $n (1 .. 2)
{
	emit_numbers($node, 'postgres', 1);
	is($node->safe_psql('postgres', "SELECT cqrs_wait('renames', '60 s')"), 't', 'a handler names its session');
}
is($node->safe_psql('postgres', 'SELECT name, count(*) FROM names GROUP BY 1'), 'cqrs_outbox worker|2', 'for itself only');
$node->safe_psql('postgres', "SELECT cqrs_unsubscribe('renames')");

# A client that holds a pull subscription; its owner may see that, too.
$node->safe_psql('postgres', 'GRANT EXECUTE ON FUNCTION cqrs_subscribe, cqrs_drain TO alice; GRANT SELECT ON cqrs_topics.things TO alice');
my $alice = new_session($node, 'postgres', 'alice');
$alice->query("SELECT cqrs_subscribe('pull', ARRAY['things'], start => 'latest')");
my $other = new_session($node, 'postgres', 'alice');
my $pid = $other->query('SELECT pg_backend_pid()');
emit_numbers($node, 'postgres', 1);
$other->query("BEGIN; SELECT count(*) FROM cqrs_receive('pull')");
ok(wait_problems('held_by_client subscription "pull"', "max_hold => '0'"), 'a client that keeps its transaction open');
like(of('held_by_client', 'detail', "max_hold => '0'"),
	qr/^Process $pid \(role alice, application "[^"]+", idle in transaction\) has had the lock of partition 0 since /, 'who');
ok($node->poll_query_until('postgres', "SELECT held_by_pid = $pid AND held_since IS NOT NULL FROM cqrs_subscription_status WHERE subscription = 'pull'"),
	'in the view as well');
is($alice->query("SELECT subscription, held_by_pid, held_since < now() FROM cqrs_subscription_status"), "pull|$pid|t", 'also for the owner, of its own session');
$other->query('ROLLBACK');
ok(healthy("max_hold => '0'"), 'once the client ends it, all is well');
$other->query("BEGIN; SELECT count(*) FROM cqrs_receive('pull')");
ok(wait_problems('held_by_client subscription "pull"', "max_hold => '0'"), 'again');
$node->safe_psql('postgres', of('held_by_client', 'hint', "max_hold => '0'"));
ok(healthy("max_hold => '0'"), 'until it is ended, as the hint says');
$other->quit;
my $superuser = new_session($node, 'postgres');
$pid = $superuser->query('SELECT pg_backend_pid()');
$superuser->query("BEGIN; SELECT count(*) FROM cqrs_receive('pull')");
is($alice->query("SELECT held_by_pid, held_since IS NULL FROM cqrs_subscription_status"), "$pid|t", 'of the session of another role, the owner sees the process');
$superuser->query('ROLLBACK');

# A prepared transaction, also after a restart.
$other = new_session($node, 'postgres', 'alice');
$other->query("BEGIN; SELECT count(*) FROM cqrs_receive('pull'); PREPARE TRANSACTION 'prepared'");
$_->quit for $other, $superuser, $alice, $locker;
ok(wait_problems('held_by_prepared subscription "pull"', "max_hold => '0'"), 'a prepared transaction');
$node->restart;
ok(wait_problems('held_by_prepared subscription "pull"', "max_hold => '0'"), 'which is still there after a restart');
ok($node->poll_query_until('postgres', "SELECT held_by_pid IS NULL AND held_since IS NOT NULL FROM cqrs_subscription_status WHERE subscription = 'pull'"),
	'the view has no process for it');
$node->safe_psql('postgres', "ROLLBACK PREPARED 'prepared'; SELECT cqrs_unsubscribe('pull')");
ok(healthy("max_hold => '0'"), 'once it is over, all is well');

# A reader that keeps a segment from being truncated.
$node->safe_psql('postgres', "SELECT cqrs_create_topic('short', '0'); SELECT cqrs_emit('happened', '{}', topic => 'short')");
my $reader = new_session($node, 'postgres');
$pid = $reader->query('SELECT pg_backend_pid()');
$reader->query('BEGIN; SELECT count(*) FROM cqrs_topics.short');
reconfigure($node, "cqrs_outbox.segment_age = '1ms'");
ok(wait_problems('truncation_held topic "short"', "max_hold => '0'"), 'a reader that keeps a segment from being truncated');
like(of('truncation_held', 'hint', "max_hold => '0'"), qr/pg_terminate_backend\($pid\)/, 'and what to do');
$reader->query('COMMIT');
ok(healthy("max_hold => '0'"), 'once it ends, all is well');
$reader->quit;
reconfigure($node, "cqrs_outbox.segment_age = '1h'");
$node->safe_psql('postgres', "SELECT cqrs_drop_topic('short', cascade => true)");

# A subscription that cannot be delivered.
$node->safe_psql('postgres', 'ALTER FUNCTION record_event(cqrs_event) RENAME TO renamed');
emit_numbers($node, 'postgres', 1);
ok(wait_problems(qq(handler_failing subscription "recorder"\nhandler_missing subscription "recorder")), 'a handler that is gone');
like(of('handler_failing', 'detail', ''), qr/^It failed \d+ times in a row, and is tried again at .*: handler public\.record_event\(.*\) of subscription "recorder" does not exist$/,
	'with the error');
$node->safe_psql('postgres', 'ALTER FUNCTION renamed(cqrs_event) RENAME TO record_event');
ok(healthy(), 'until it is there again');

# A worker that cannot start.
$node->safe_psql('postgres', q(REVOKE CONNECT ON DATABASE postgres FROM PUBLIC; GRANT CONNECT ON DATABASE postgres TO watcher;
	GRANT CREATE, USAGE ON SCHEMA public TO alice;
	SET ROLE alice;
	CREATE FUNCTION alices(event cqrs_event) RETURNS void LANGUAGE sql AS '';
	SELECT cqrs_subscribe('alices', ARRAY['things'], 'alices(cqrs_event)')));
ok(wait_problems(qq(owner_connect subscription "alices"\nworker_failed subscription "alices")), 'a worker that cannot connect');
like(of('worker_failed', 'detail', ''), qr/^A worker for it ended unexpectedly, \d+ times in a row; the next may start at /, 'and when the next is started');
$node->safe_psql('postgres', of('owner_connect', 'hint', ''));
ok(healthy(), 'until it can');
is($node->safe_psql('postgres', "SELECT cqrs_wait('alices', '60 s')"), 't', 'and delivers');

# A worker that is killed is no problem once another has taken over.
$node->safe_psql('postgres', q(CREATE OR REPLACE FUNCTION alices(event cqrs_event) RETURNS void LANGUAGE sql AS 'SELECT pg_advisory_xact_lock(2)'));
$locker = new_session($node, 'postgres');
$locker->query('SELECT pg_advisory_lock(2)');
emit_numbers($node, 'postgres', 1);
ok(wait_problems('handler_slow subscription "alices"', "max_hold => '0'"), 'its handler waits');
$pid = $node->safe_psql('postgres', "SELECT pid FROM cqrs_subscription_status WHERE subscription = 'alices'");
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM cqrs_health() WHERE problem = 'worker_failed'"), 'its worker is ended: said');
$locker->query('SELECT pg_advisory_unlock(2)');
ok(healthy("max_hold => '0'"), 'until another has delivered');
$node->safe_psql('postgres', "SELECT cqrs_unsubscribe('alices')");

# A broker that its subscription's owner may not use any more, or that is gone.
my $peer = ExamplePeer->new;
my $port = $peer->port;
$peer->create_server($node, 'postgres', 'peer');
$node->safe_psql('postgres', qq(
	GRANT USAGE ON FOREIGN SERVER peer TO alice;
	SET ROLE alice;
	SELECT cqrs_subscribe('sent', ARRAY['things'], server => 'peer', start => 'latest')));
emit_numbers($node, 'postgres', 1);
ok($peer->wait_messages(undef, 1), 'a broker is sent an event');
ok(healthy(), 'and all is well');
$node->safe_psql('postgres', 'REVOKE USAGE ON FOREIGN SERVER peer FROM alice');
emit_numbers($node, 'postgres', 1);
ok(wait_problems(qq(failing subscription "sent"\nserver_privilege subscription "sent")), 'its owner may not use it any more');
like(of('failing', 'detail', ''), qr/: permission denied for foreign server peer$/, 'with the error');
$node->safe_psql('postgres', of('server_privilege', 'hint', ''));
ok(healthy(), 'until its owner may again');
$node->safe_psql('postgres', 'ALTER SERVER peer RENAME TO renamed');
emit_numbers($node, 'postgres', 1);
ok(wait_problems(qq(failing subscription "sent"\nserver_missing subscription "sent")), 'it is gone');
$node->safe_psql('postgres', 'ALTER SERVER renamed RENAME TO peer');
ok(healthy(), 'until it is there again');
ok($peer->wait_messages(undef, 3), 'and nothing is lost');
$peer->stop;
emit_numbers($node, 'postgres', 1);
ok(wait_problems('failing subscription "sent"'), 'it cannot be connected to');
like(of('failing', 'detail', ''), qr/: could not connect to 127\.0\.0\.1:$port: Connection refused$/, 'and why');
$node->safe_psql('postgres', "SELECT cqrs_unsubscribe('sent')");
ok(healthy(), 'until nobody wants to');

# Somebody locks a topic's table: nobody who watches waits for that.
$locker->query('BEGIN; LOCK TABLE cqrs.topic_1_0 IN ACCESS EXCLUSIVE MODE');
ok(wait_problems('topic_locked topic "things"', "max_hold => '0'"), 'a locked table is seen');
ok(healthy(), 'and is no problem at once');
is($node->safe_psql('postgres', 'SELECT subscription, lag_events IS NULL FROM cqrs_subscription_status'), 'recorder|t', 'events are not counted then');
is($node->safe_psql('postgres', 'SELECT topic, bytes IS NULL FROM cqrs_topic_status'), 'things|t', 'nor is their size known');
$locker->query('ROLLBACK');
ok(healthy("max_hold => '0'"), 'until it is over');
is($node->safe_psql('postgres', 'SELECT subscription, lag_events FROM cqrs_subscription_status'), 'recorder|0', 'they are counted again');
# Somebody locks a table of the extension's own: who watches is told, and goes on.
$locker->query('BEGIN; LOCK TABLE cqrs.retry IN ACCESS EXCLUSIVE MODE');
my ($rc, $out, $err) = $node->psql('postgres', "SET statement_timeout = '2 min'; SELECT * FROM cqrs_health()");
like($err, qr/canceling statement due to lock timeout/, 'a locked table of ours is not waited for');
$locker->query('ROLLBACK');

$locker->quit;

# Switched off.
reconfigure($node, "cqrs_outbox.deliver = off");
ok(wait_problems('deliver_off setting cqrs_outbox.deliver'), 'delivery is switched off');
reconfigure($node, "cqrs_outbox.deliver = on");
ok(healthy(), 'and on');

# More databases than can be served.
$node->append_conf('postgresql.conf', "cqrs_outbox.max_databases = 1\n");
$node->restart;
$node->safe_psql('postgres', 'CREATE DATABASE two');
ok(healthy(), 'one database is served');
$node->safe_psql('two', 'CREATE EXTENSION cqrs_outbox');
ok(wait_problems('no_manager database "two"', '', 'two'), 'for another there is no room');
like($node->safe_psql('two', 'SELECT detail, hint FROM cqrs_health()'),
	qr/There are 1 others that have\.\|Raise cqrs_outbox\.max_databases and restart the server\.$/, 'which says why');

# All of max_worker_processes in use: the server's own launcher of logical
# replication takes one, ours one, and a manager the other.
$node->append_conf('postgresql.conf', "cqrs_outbox.max_databases = 64\ncqrs_outbox.max_managers = 1\ncqrs_outbox.max_workers = 1\nmax_worker_processes = 3\nmax_parallel_workers = 0\n");
$node->restart;
set_up_recording($node, 'two');
my $few = 'few_worker_processes setting max_worker_processes';
ok(wait_problems($few, '', $_), "a database that has nothing to do needs no manager: $_") for qw(postgres two);
is($node->safe_psql('two', "SELECT hint FROM cqrs_health() WHERE problem = 'few_worker_processes'"),
	'Set it to 4 or more, if there are parallel queries or subscriptions of logical replication, and restart the server.', 'how many are needed');
emit_numbers($node, 'postgres', 1);
ok(wait_problems(qq(no_worker database "postgres"\n$few)), 'there is none for a worker');

# One that has something to do waits for a manager while another database has
# the only one, and does not let go of it. Once both were looked at, the one that
# was last stays.
$node->append_conf('postgresql.conf', "max_worker_processes = 4\n");
$node->restart;
for my $dbname (qw(postgres two))
{
	my $count = $node->safe_psql($dbname, 'SELECT count(*) FROM recorded');

	emit_numbers($node, $dbname, 1);
	ok(wait_recorded($node, $dbname, $count + 1), "one manager and one worker are enough to deliver in $dbname");
}
my ($stopped, $with) = stop_manager($node);
my $without = $with eq 'two' ? 'postgres' : 'two';
emit_numbers($node, $without, 1);
ok(wait_problems(qq(no_manager database "$without"), '', $without), 'another waits for it');
like($node->safe_psql($without, "SELECT detail, hint FROM cqrs_health() WHERE problem = 'no_manager'"),
	qr/It waits for one since .*: others have all 1 that .*\|Raise cqrs_outbox\.max_managers, and max_worker_processes /, 'which says why');
kill 'CONT', $stopped;
ok(healthy('', $_), "with as many as it says, and none that is stopped, all is well in $_") for qw(postgres two);

# None for the launcher.
$node->append_conf('postgresql.conf', "max_worker_processes = 1\n");
$node->restart;
ok(wait_problems(qq(no_launcher server\nno_manager database "postgres"\nfew_worker_processes setting max_worker_processes)), 'no process for the launcher');

# Not preloaded.
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''\nmax_worker_processes = 8\n");
$node->restart;
ok(wait_problems('not_preloaded setting shared_preload_libraries'), 'not preloaded');
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'cqrs_outbox'\n");
$node->restart;
ok(healthy(), 'and preloaded');

$node->stop;
done_testing();
