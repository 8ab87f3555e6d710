# The wall clock may be set while the server runs. Set back, it stops nothing:
# waits are measured by another clock. Set forward by more than a minute, it
# releases nothing for a minute, in case that was a mistake, and health says so.
#
# The clock that our code reads is set here, not that of SQL, so the test
# computes times with wall(). Time can also be made to pass.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main', "cqrs_outbox.poll_interval = '200ms'\ncqrs_outbox.segment_age = '100ms'\n");
my $n = 0;

$node->start;
set_up_recording($node, 'postgres');
$node->safe_psql('postgres', q(
	CREATE FUNCTION set_clock(ahead bigint, passed bigint) RETURNS void LANGUAGE c AS 'cqrs_outbox', 'cqrs_debug_clock';
	CREATE TABLE clock (ahead interval, passed interval);
	INSERT INTO clock VALUES ('0', '0');
	CREATE FUNCTION wall() RETURNS timestamptz LANGUAGE sql AS $$ SELECT clock_timestamp() + ahead + passed FROM clock $$;
	CREATE TABLE ran (n int);
	CREATE FUNCTION note(c jsonb) RETURNS jsonb LANGUAGE sql SECURITY DEFINER
		SET search_path = pg_catalog AS $$ INSERT INTO public.ran VALUES ((c->>'n')::int); SELECT c $$;
	SELECT cqrs_register_command('Note', 'note(jsonb)');
	SELECT cqrs_create_command_queue();
	SELECT cqrs_alter_topic('things', retention => '200 ms');
	SELECT cqrs_register_event('pulled', 'pulled'), cqrs_subscribe('puller', ARRAY['pulled'], max_attempts => 0);
	SELECT cqrs_register_event('failing', 'failing');
	CREATE TABLE mended (n int);
	CREATE FUNCTION fail(event cqrs_event) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
	BEGIN
		IF NOT EXISTS (SELECT FROM mended WHERE n = (event.payload->>'n')::int) THEN RAISE EXCEPTION 'not yet'; END IF;
	END $$;
	SELECT cqrs_subscribe('failing', ARRAY['failing'], 'fail(cqrs_event)', max_attempts => 0, retry_delay => '50 ms', max_retry_delay => '200 ms');
	CREATE FUNCTION pull() RETURNS bigint LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM cqrs_receive('puller');
		RETURN cqrs_ack('puller');
	END $$;
));

# set_clock(HOURS, SECONDS): so far ahead; and so much time passes
sub set_clock
{
	my ($hours, $seconds) = @_;

	$seconds //= 0;
	$node->safe_psql('postgres', "UPDATE clock SET ahead = interval '$hours hours', passed = passed + interval '$seconds s';
		SELECT set_clock(@{[$hours * 3_600_000]}, @{[$seconds * 1000]})");
}

sub delivers
{
	my ($what) = @_;

	for (1 .. 3)
	{
		$n++;
		emit_numbers($node, 'postgres', $n);
		wait_recorded($node, 'postgres', $n) or return fail("$what: event $n is not delivered");
	}
	return pass("$what: events are delivered");
}

# executes(WHAT): commands: one for now, one that is scheduled
sub executes
{
	my ($what) = @_;
	my $ran = 2 + $node->safe_psql('postgres', 'SELECT count(*) FROM ran');

	$node->safe_psql('postgres', q(SELECT cqrs_enqueue('Note', '{"n": 0}'), cqrs_enqueue('Note', '{"n": 1}', run_at => wall() + interval '10 ms')));
	ok($node->poll_query_until('postgres', "SELECT count(*) = $ran FROM ran"), "$what: commands are executed when they are due");
}

# truncates(WHAT): what was written before is truncated
sub truncates
{
	my ($what) = @_;

	ok($node->poll_query_until('postgres', q(SELECT count(*) < 6 FROM cqrs_topics.things)), "$what: old events are truncated");
}

sub is_jumped
{
	my ($expected, $what) = @_;

	is($node->safe_psql('postgres', "SELECT count(*) FROM cqrs_health() WHERE problem = 'clock_jumped'"), $expected, $what);
}

sub is_executed
{
	my ($number, $expected, $what) = @_;

	is($node->safe_psql('postgres', "SELECT count(*) FROM ran WHERE n = $number"), $expected, $what);
}

sub end_processes
{
	$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE backend_type IN ('cqrs_outbox manager', 'cqrs_outbox worker')");
}

# set_back(WHAT, HOURS): while somebody waits for a retry, for a lease to run
# out, for an event to come, for a subscription, and for the next attempt to
# deliver
sub set_back
{
	my ($what, $hours) = @_;
	my @waiting = map { new_session($node, 'postgres') } 1 .. 2;

	$n++;
	$node->safe_psql('postgres', "INSERT INTO recorded (key) VALUES ('no event');
		SELECT cqrs_emit('failing', '{\"n\": $n}'), cqrs_emit('pulled', '{\"n\": $n}')");
	$node->poll_query_until('postgres', q(SELECT retrying = 1 FROM cqrs_subscription_status WHERE subscription = 'failing')) or die 'has not failed';
	is($node->safe_psql('postgres', q(SELECT payload->>'n' FROM cqrs_receive('puller', wait => '10 s', lease => '1 s'))), $n, "$what: received");
	$waiting[0]->begin(q(SELECT count(*) FROM cqrs_receive('puller', wait => '1500 ms')));
	$waiting[1]->begin(q(SELECT cqrs_wait('puller', '1500 ms')));
	$node->poll_query_until('postgres', q(SELECT count(*) = 2 FROM pg_stat_activity WHERE backend_type = 'client backend'
		AND query ~ '^SELECT (count|cqrs_wait)' AND state = 'active' AND pid <> pg_backend_pid())) or die 'do not wait';
	set_clock($hours);
	like($waiting[0]->finish, qr/^[01]$/m, "$what: who waits for an event waits as long as he wanted to");
	like($waiting[1]->finish, qr/^f$/m, "$what: so does who waits for a subscription");
	ok($node->poll_query_until('postgres', 'SELECT pull() = 1'), "$what: a lease runs out");
	$node->safe_psql('postgres', "INSERT INTO mended VALUES ($n)");
	ok($node->poll_query_until('postgres', q(SELECT retrying = 0 FROM cqrs_subscription_status WHERE subscription = 'failing')), "$what: an event is retried");
	delivers($what);
	executes($what);
	truncates($what);
	is_jumped(0, "$what: that is believed at once");
}

delivers('at first');
executes('at first');
is_jumped(0, 'health has nothing to say of the clock');

set_back('an hour back', -1);

# A manager and workers that are lost now are replaced.
end_processes();
set_back('two hours back', -2);

# Forward by mistake: what is due in half an hour is not due.
$node->safe_psql('postgres', q(SELECT cqrs_enqueue('Note', '{"n": 2}', run_at => wall() + interval '30 min')));
$node->safe_psql('postgres', q(SELECT cqrs_emit('pulled', '{"n": "refused"}')));
is($node->safe_psql('postgres', q(SELECT cqrs_nack('puller', ARRAY[position], 'later', retry_after => '30 min') FROM cqrs_receive('puller', wait => '10 s'))), 1, 'refused for half an hour');
set_clock(-1);
is_jumped(1, 'a clock that was set forward by an hour is told of');
delivers('an hour ahead');
$node->safe_psql('postgres', q(SELECT cqrs_enqueue('Note', '{"n": 3}')));
ok($node->poll_query_until('postgres', 'SELECT count(*) = 1 FROM ran WHERE n = 3'), 'a command for now is executed now');
$node->safe_psql('postgres', q(SELECT cqrs_enqueue('Note', '{"n": 4}', run_at => wall() - interval '10 min')));
end_processes();
set_clock(-1, 50);
delivers('an hour ahead, 50 s later, with another manager');
is_jumped(1, 'health still says so');
is_executed(2, 0, 'nothing is released');
is_executed(4, 0, 'nor is what was scheduled meanwhile');
is($node->safe_psql('postgres', q(SELECT count(*) FROM cqrs_receive('puller'))), 0, 'nor is what was refused');
set_clock(-2);
is_jumped(0, 'put right');
delivers('put right');
executes('put right');
is_executed(2, 0, 'so nothing was released before its time');
is($node->safe_psql('postgres', q(SELECT count(*) FROM cqrs_receive('puller'))), 0, 'nor handed out');

# Forward, and it stays so.
set_clock(-1);
is_jumped(1, 'set forward again');
delivers('set forward again');
is_executed(2, 0, 'it is not believed');
set_clock(-1, 65);
ok($node->poll_query_until('postgres', 'SELECT count(*) = 2 FROM ran WHERE n IN (2, 4)'), 'but after a minute');
ok($node->poll_query_until('postgres', 'SELECT pull() = 1'), 'so is what was refused');
is_jumped(0, 'which health knows');
delivers('in the end');

$node->stop;
done_testing();
