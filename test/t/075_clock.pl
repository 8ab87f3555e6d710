# The wall clock may be set while the server runs. Set back, it stops nothing:
# how long to wait is measured by another. Set forward by more than a minute, it
# releases nothing for a minute, in case that was a mistake, and health says so.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my ($library) = glob '/usr/lib/*/faketime/libfaketimeMT.so.1';
my $node = new_server('main', "cqrs_outbox.poll_interval = '500ms'\ncqrs_outbox.segment_age = '100ms'\n");
my $clock = $node->basedir . '/clock';
my $n = 0;

# set_clock(OFFSET): of all processes of the server
sub set_clock
{
	my ($offset) = @_;

	open my $file, '>', "$clock.new" or die "could not write $clock.new: $!";
	print $file "$offset\n";
	close $file;
	rename "$clock.new", $clock or die "could not rename $clock.new: $!";
}

set_clock('+0s');
{
	local %ENV = (%ENV, LD_PRELOAD => $library, FAKETIME_TIMESTAMP_FILE => $clock, FAKETIME_NO_CACHE => 1,
		FAKETIME_DONT_FAKE_MONOTONIC => 1, FAKETIME_DONT_RESET => 1, FAKETIME_DISABLE_SHM => 1);
	$node->start;
}
set_up_recording($node, 'postgres');
$node->safe_psql('postgres', q(
	CREATE TABLE ran (n int);
	CREATE FUNCTION note(c jsonb) RETURNS jsonb LANGUAGE sql SECURITY DEFINER
		SET search_path = pg_catalog AS $$ INSERT INTO public.ran VALUES ((c->>'n')::int); SELECT c $$;
	SELECT cqrs_register_command('Note', 'note(jsonb)');
	SELECT cqrs_alter_topic('things', retention => '200 ms');
	CREATE FUNCTION fail_once(event cqrs_event) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
	BEGIN
		IF NOT EXISTS (SELECT FROM pg_class WHERE relname = 'mended') THEN RAISE EXCEPTION 'not yet'; END IF;
	END $$;
));

sub delivers
{
	my ($what) = @_;

	for (1 .. 3)
	{
		$n++;
		$node->safe_psql('postgres', "SELECT cqrs_emit('happened', '{\"n\": $n}')");
		wait_recorded($node, 'postgres', $n) or return fail("$what: event $n is not delivered");
	}
	return pass("$what: events are delivered");
}

# executes(WHAT, DELAY): a command that is scheduled, and executed
sub executes
{
	my ($what, $delay) = @_;
	my $ran = $node->safe_psql('postgres', 'SELECT count(*) + 1 FROM ran');

	$node->safe_psql('postgres', "SELECT cqrs_enqueue('Note', '{\"n\": 1}', run_at => clock_timestamp() + interval '$delay')");
	ok($node->poll_query_until('postgres', "SELECT count(*) = $ran FROM ran"), "$what: a command is executed when it is due");
}

# truncates(WHAT): what was written before is truncated
sub truncates
{
	my ($what) = @_;

	ok($node->poll_query_until('postgres', q(SELECT count(*) < 6 FROM cqrs_topics.things)), "$what: old events are truncated");
}

sub jumped
{
	return $node->safe_psql('postgres', "SELECT count(*) FROM cqrs_health() WHERE problem = 'clock_jumped'");
}

delivers('at first');
executes('at first', '10 ms');
is(jumped(), 0, 'health has nothing to say of the clock');

set_clock('-3600s');
delivers('an hour back');
executes('an hour back', '10 ms');
truncates('an hour back');
is(jumped(), 0, 'that is not believed later than at once');

# A worker that is lost now is replaced, and so is a manager.
$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE backend_type IN ('cqrs_outbox manager', 'cqrs_outbox worker')");
set_clock('-7200s');
delivers('two hours back, with a manager that failed before');
executes('two hours back', '10 ms');
truncates('two hours back');

# Forward by mistake: what is due in half an hour is not due.
$node->safe_psql('postgres', "SELECT cqrs_enqueue('Note', '{\"n\": 2}', run_at => clock_timestamp() + interval '30 min')");
set_clock('-3600s');
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM cqrs_health() WHERE problem = 'clock_jumped' AND severity = 'warning'"),
	'a clock that was set forward by an hour is told of');
delivers('an hour ahead');
is($node->safe_psql('postgres', 'SELECT count(*) FROM ran WHERE n = 2'), '0', 'and releases nothing');
set_clock('-7200s');
ok($node->poll_query_until('postgres', "SELECT count(*) = 0 FROM cqrs_health() WHERE problem = 'clock_jumped'"), 'until it is put right');
executes('put right', '10 ms');
is($node->safe_psql('postgres', 'SELECT count(*) FROM ran WHERE n = 2'), '0', 'so nothing was released before its time');

# Forward, and it stays so.
set_clock('-3600s');
is(jumped(), 1, 'set forward again');
ok($node->poll_query_until('postgres', 'SELECT count(*) = 1 FROM ran WHERE n = 2'), 'it is believed after a while');
is(jumped(), 0, 'which health knows');
delivers('in the end');

$node->stop;
done_testing();
