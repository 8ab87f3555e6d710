# With the server's default settings, forty databases have their events
# delivered. A manager comes when something is announced, or due, and goes when
# there is nothing: what is needed to go on is in the tables, and in shared
# memory.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

# What new_server() sets for others, reset.
my $node = new_server('main', q(
max_worker_processes = 8
cqrs_outbox.max_managers = 2
cqrs_outbox.manager_idle_timeout = '200ms'
log_statement = none
));
my @many = map { "many$_" } 1 .. 40;
my %emitted;

# emit(DATABASE): one more event
sub emit
{
	my ($dbname) = @_;
	my $n = ++$emitted{$dbname};

	emit_numbers($node, $dbname, $n);
}

sub arrived
{
	my ($dbname) = @_;

	return wait_recorded($node, $dbname, $emitted{$dbname});
}

# rests(): nobody has a manager any more
sub rests
{
	my ($what) = @_;

	return ok(wait_managers($node), $what);
}

$node->start;
$node->safe_psql('postgres', 'CREATE DATABASE model');
set_up_recording($node, 'model');
rests('a database with nothing to do has no manager');
$node->safe_psql('postgres', 'ALTER DATABASE model IS_TEMPLATE true');
for my $dbname (@many)
{
	$node->safe_psql('postgres', "CREATE DATABASE $dbname TEMPLATE model STRATEGY file_copy");
	$node->safe_psql($dbname, 'SELECT cqrs_adopt()');
}
rests('nor have forty');

# All emit, some twice.
my $watcher = new_session($node, 'postgres');
my $most = 0;

for my $round (1 .. 2)
{
	for my $i (0 .. $#many)
	{
		emit($many[$i]) if $round == 1 or $i % 4 == 0;
		my $n = $watcher->query("SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'cqrs_outbox %'");
		$most = $n if $n > $most;
	}
}
is(scalar(grep { !arrived($_) } @many), 0, 'what forty databases emit is delivered in all');
is(scalar(grep { recorded($node, $_) ne join(' ', 1 .. $emitted{$_}) } @many), 0, 'each event once');
cmp_ok($most, '<=', 1 + 2 + 4, 'by as many processes as there may be');
rests('when all is done, nobody has a manager');

# One that is busy all the time does not keep others out, nor do two.
my @busy = map { new_session($node, $_) } @many[ 0 .. 2 ];

$_->query(q(CREATE PROCEDURE keep_busy() LANGUAGE plpgsql AS $$
	BEGIN
		LOOP
			PERFORM cqrs_emit('happened', '{"n": 0}');
			COMMIT;
			PERFORM pg_sleep(0.005);
			COMMIT;
		END LOOP;
	END $$)) for @busy;
$_->begin('CALL keep_busy()') for @busy;
for my $dbname (@many[ 10 .. 14 ])
{
	emit($dbname);
	ok(arrived($dbname), "$dbname has its turn while three are busy");
}
$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE query LIKE 'CALL keep_busy%'");
$_->kill for @busy;
ok($node->poll_query_until($_, "SELECT lag_events = 0 FROM cqrs_subscription_status"), "and what $_ emitted was delivered") for @many[ 0 .. 2 ];
rests('all is done again');

# What is due brings a manager: a command, a retry.
my $dbname = $many[20];

$node->safe_psql($dbname, q(
	CREATE TABLE noted (note jsonb);
	CREATE FUNCTION note(c jsonb) RETURNS jsonb LANGUAGE sql SECURITY DEFINER
		SET search_path = pg_catalog AS $$ INSERT INTO public.noted VALUES (c); SELECT c $$;
	SELECT cqrs_register_command('Note', 'note(jsonb)');
	SELECT cqrs_create_command_queue();
	SELECT cqrs_enqueue('Note', '{"n": 0}')));
ok($node->poll_query_until($dbname, 'SELECT count(*) = 1 FROM noted'), 'a command is executed');
$node->safe_psql($dbname, q(SELECT cqrs_enqueue('Note', '{"n": 1}', run_at => clock_timestamp() + interval '6 s')));
rests('a command is scheduled, and nobody has a manager');
is($node->safe_psql($dbname, 'SELECT count(*) FROM noted'), 1, 'before its time has come');
ok($node->poll_query_until($dbname, 'SELECT count(*) = 2 FROM noted'), 'when it has, it is executed');

$node->safe_psql($dbname, q(
	CREATE TABLE mended ();
	CREATE FUNCTION fail(event cqrs_event) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
	BEGIN
		IF to_regclass('repaired') IS NULL THEN RAISE EXCEPTION 'not yet'; END IF;
	END $$;
	SELECT cqrs_subscribe('failing', ARRAY['things'], 'fail(cqrs_event)', start => 'latest', retry_delay => '6 s')));
rests('a subscription is made');
emit($dbname);
ok($node->poll_query_until($dbname, "SELECT retrying = 1 FROM cqrs_subscription_status WHERE subscription = 'failing'"), 'an event fails');
rests('and waits for its retry without a manager');
is($node->safe_psql($dbname, "SELECT retrying FROM cqrs_subscription_status WHERE subscription = 'failing'"), 1, 'it still does');
$node->safe_psql($dbname, 'CREATE TABLE repaired ()');
ok($node->poll_query_until($dbname, "SELECT retrying = 0 FROM cqrs_subscription_status WHERE subscription = 'failing'"), 'it is retried');
rests('which is all');

# Clients that wait.
$dbname = $many[21];
$node->safe_psql($dbname, "SELECT cqrs_subscribe('puller', ARRAY['things'], start => 'latest')");
rests('a subscription of clients needs no manager');
my $client = new_session($node, $dbname);
$client->begin("SELECT 'got', payload->>'n', cqrs_ack('puller', ARRAY[position]) FROM cqrs_receive('puller', wait => '1 min')");
$node->poll_query_until($dbname, "SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'SELECT ''got''%' AND state = 'active' AND pid <> pg_backend_pid()");
emit($dbname);
like($client->finish, qr/^got\|$emitted{$dbname}\|/m, 'a client that waits is woken');
rests('and nobody stays for it');
emit($dbname);
like($client->query("SELECT 'got', payload->>'n', cqrs_ack('puller', ARRAY[position]) FROM cqrs_receive('puller')"), qr/^got\|$emitted{$dbname}\|/m,
	'a client that does not wait finds what was just committed');
$client->quit;

# A prepared transaction, whoever commits it; also after a restart.
$dbname = $many[22];
rests('no manager');
$node->safe_psql($dbname, "BEGIN; SELECT cqrs_emit('happened', '{\"n\": 2}'); PREPARE TRANSACTION 'one'");
$node->restart;
rests('a transaction is prepared, and the server restarted');
$emitted{$dbname}++;
$node->safe_psql($dbname, "COMMIT PREPARED 'one'");
ok(arrived($dbname), 'its event is delivered');

# What was announced, and not looked at, when the server stopped.
$dbname = $many[23];
reconfigure($node, "cqrs_outbox.deliver = off");
rests('delivery is off');
emit($dbname);
$node->stop('immediate');
$node->append_conf('postgresql.conf', "cqrs_outbox.deliver = on\n");
$node->start;
ok(arrived($dbname), 'what was announced before the server crashed is delivered');
rests('all were looked at');

# Commands that need a database for themselves, and the extension's end.
$node->safe_psql('postgres', "ALTER DATABASE $many[24] RENAME TO renamed");
$emitted{renamed} = $emitted{ $many[24] };
emit('renamed');
ok(arrived('renamed'), 'a database is renamed, and delivers');
rests('and rests');
$node->safe_psql('postgres', 'DROP DATABASE renamed');
$node->safe_psql($many[25], 'DROP EXTENSION cqrs_outbox CASCADE; DROP TABLE recorded');
rests('one is dropped, and the extension in another');
delete $emitted{ $many[25] };
set_up_recording($node, $many[25]);
emit($many[25]);
ok(arrived($many[25]), 'there it is made again, and delivers');
$node->safe_psql('postgres', "CREATE DATABASE copied TEMPLATE $many[26]");
emit($many[26]);
ok(arrived($many[26]), 'one is copied, and delivers');

$watcher->quit;
$node->stop;
done_testing();
