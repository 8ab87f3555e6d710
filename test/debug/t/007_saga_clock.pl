# The clock is ten days ahead for a while: no saga is undone for what did not come in
# time, and none awakes. What begins meanwhile goes on, and when the time has really
# passed, so do the others.

use strict;
use warnings;

use CqrsTest;
use Test::More;

my $node = new_server('main', "cqrs_outbox.poll_interval = '200ms'\nlog_statement = none\njit = off\n");
my $day = 86_400_000;

$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	CREATE FUNCTION set_clock(ahead bigint, passed bigint) RETURNS void LANGUAGE c AS 'cqrs_outbox', 'cqrs_debug_clock';
	CREATE TABLE did (id bigint GENERATED ALWAYS AS IDENTITY, saga uuid, what text);
	CREATE TABLE broken ();
	CREATE FUNCTION reserve(s jsonb) RETURNS void LANGUAGE sql SET search_path = public AS $$ INSERT INTO did (saga, what) VALUES ((cqrs_context()).id, 'reserve') $$;
	CREATE FUNCTION cancel(s jsonb) RETURNS void LANGUAGE sql SET search_path = public AS $$ INSERT INTO did (saga, what) VALUES ((cqrs_context()).id, 'cancel') $$;
	CREATE FUNCTION charge(s jsonb) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
	BEGIN
		IF to_regclass('broken') IS NOT NULL THEN RAISE 'not now'; END IF;
		INSERT INTO did (saga, what) VALUES ((cqrs_context()).id, 'charge');
	END $$;
	SELECT cqrs_create_saga_queue();
	SELECT cqrs_register_event('payment_settled', 'payments');
	SELECT cqrs_register_saga('now', ARRAY[cqrs_step('hotel', 'reserve'), cqrs_sleep('moment', '10 ms'), cqrs_step('again', 'reserve')]);
	SELECT cqrs_register_saga('nap', ARRAY[cqrs_sleep('night', '1 day'), cqrs_step('hotel', 'reserve')]);
	SELECT cqrs_register_saga('signalled', ARRAY[cqrs_step('hotel', 'reserve', compensation => 'cancel'), cqrs_await('paid', timeout => '1 day')]);
	SELECT cqrs_register_saga('bought', ARRAY[cqrs_step('hotel', 'reserve', compensation => 'cancel'),
		cqrs_await('paid', event_name => 'payment_settled', timeout => '1 day')]);
	SELECT cqrs_register_saga('patient', ARRAY[cqrs_step('money', 'charge', max_attempts => 2, retry_delay => '12 hours', max_retry_delay => '1 day')])));

sub start
{
	my ($name) = @_;

	return $node->safe_psql('postgres', "SELECT saga_id FROM cqrs_start_saga('$name')");
}

# others_go_on(WHAT): a saga begins, sleeps, and ends; so everybody had his turn
sub others_go_on
{
	my ($what) = @_;

	for (1 .. 3)
	{
		my $id = start('now');
		is($node->safe_psql('postgres', "SELECT status FROM cqrs_wait_saga('$id', '60 s')"), 'completed', "$what: another one is done");
	}
}

sub set_clock
{
	my ($ahead, $passed) = @_;

	$node->safe_psql('postgres', sprintf 'SELECT set_clock(%d, %d)', $ahead, $passed);
}

my @names = qw(bought nap patient signalled);
my $where = q(SELECT string_agg(DISTINCT saga_name || ' ' || status, ', ' ORDER BY saga_name || ' ' || status) FROM cqrs_saga_status WHERE saga_name <> 'now');
my $waiting = 'bought waiting, nap sleeping, patient retrying, signalled waiting';

start($_) for (@names) x 5;
ok($node->poll_query_until('postgres', $where, $waiting), 'they wait');
my $state = q(SELECT md5(string_agg(saga_id || ' ' || due_at, ' ' ORDER BY saga_id)) FROM cqrs_saga_status WHERE saga_name <> 'now');
my $before = $node->safe_psql('postgres', $state);

set_clock(10 * $day, 0);
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM cqrs_health() WHERE problem = 'clock_jumped'"), 'the clock is ten days ahead');
others_go_on('the clock is ahead');
$node->safe_psql('postgres', 'SELECT count(*) FROM cqrs_maintain(); SELECT cqrs_enqueue_scheduled(); SELECT cqrs_resume_sagas()');
set_clock(10 * $day, 30_000);
others_go_on('half a minute later');
start($_) for @names;
ok($node->poll_query_until('postgres', "SELECT count(*) = 24 FROM cqrs_saga_status WHERE status IN ('waiting', 'sleeping', 'retrying')"), 'some begin meanwhile');
set_clock(0, 0);
others_go_on('the clock is right again');
is($node->safe_psql('postgres', $where), $waiting, 'nothing was done before its time');
is($node->safe_psql('postgres', "$state AND started_at <= (SELECT max(started_at) FROM (SELECT started_at FROM cqrs_saga_status WHERE saga_name <> 'now' ORDER BY saga_id LIMIT 20) s)"), $before, '... nor put off');

# Set back while they wait: later, but nothing is lost.
set_clock(-$day / 2, $day / 2);
others_go_on('the clock was set back');
is($node->safe_psql('postgres', $where), $waiting, 'half a day that the clock did not show');
$node->safe_psql('postgres', 'DROP TABLE broken');
set_clock(0, 0);
others_go_on('the clock is put right');
set_clock(0, $day / 4);
ok($node->poll_query_until('postgres', "SELECT bool_and(status = 'completed') FROM cqrs_saga_status WHERE saga_name = 'patient'"), '... which is believed a minute later');
set_clock(0, $day);
ok($node->poll_query_until('postgres', $where, 'bought compensated, nap completed, patient completed, signalled compensated'), 'a day is over')
  or diag($node->safe_psql('postgres', 'SELECT saga_name, status, due_at, now() FROM cqrs_saga_status'));
is($node->safe_psql('postgres', q(SELECT count(*) FROM did JOIN cqrs_saga_status ON saga = saga_id WHERE saga_name <> 'now')), 6 * 6, 'each was done once, and undone once');
is($node->safe_psql('postgres', 'SELECT count(*) FROM cqrs.scheduled_command'), '0', 'no time is left behind');
$node->stop;
done_testing();
