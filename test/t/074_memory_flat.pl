# The memory of our processes does not grow with how long they have been at
# work.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use ExamplePeer;

my $peer = ExamplePeer->new;
my $node = new_server('main', "cqrs_outbox.tick_interval = 0\ncqrs_outbox.poll_interval = '20ms'\ncqrs_outbox.segment_size = '64kB'\n");

$node->start;
set_up_recording($node, 'postgres');
$peer->create_server($node, 'postgres', 'peer');
$node->safe_psql('postgres', q(
	SELECT cqrs_subscribe('sender', ARRAY['things'], server => 'peer', format => 'raw');
	SELECT cqrs_subscribe('puller', ARRAY['things']);
	SELECT cqrs_register_event('sometimes', 'failing');
	CREATE FUNCTION fail_sometimes(event cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		IF random() < 0.2 THEN RAISE EXCEPTION 'sometimes'; END IF;
	END $$;
	SELECT cqrs_subscribe('failing', ARRAY['failing'], 'fail_sometimes(cqrs_event)', max_attempts => 5, retry_delay => '1 ms', max_retry_delay => '1 ms');
	CREATE FUNCTION nothing(c jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT c';
	SELECT cqrs_register_command('Nothing', 'nothing(jsonb)');
	SELECT cqrs_create_command_queue();
	SELECT cqrs_alter_topic('things', retention => '0');
	CREATE PROCEDURE work(n int) LANGUAGE plpgsql AS $$
	BEGIN
		FOR i IN 1 .. n LOOP
			PERFORM cqrs_emit('happened', jsonb_build_object('n', i));
			PERFORM cqrs_emit('sometimes', jsonb_build_object('n', i), i::text);
			IF i % 10 = 0 THEN PERFORM cqrs_enqueue('Nothing', '{}', run_at => clock_timestamp() + interval '1 ms'); END IF;
			COMMIT;
			PERFORM pg_sleep(0.001);
		END LOOP;
	END $$));

# used(PID): bytes, all contexts together
sub used
{
	my ($pid) = @_;
	my $offset = -s $node->logfile;

	$node->safe_psql('postgres', "SELECT pg_log_backend_memory_contexts($pid)");
	$node->wait_for_log(qr/\[$pid\].*Grand total: .*; \d+ used/, $offset);
	slurp_file($node->logfile, $offset) =~ /\[$pid\].*Grand total: .*; (\d+) used/ or die 'no total';
	return $1;
}

# work(COUNT): and until all is delivered
sub work
{
	my ($count) = @_;

	$node->safe_psql('postgres', "CALL work($count)");
	$node->poll_query_until('postgres', q(SELECT count(*) = 0 FROM cqrs_subscription_status WHERE subscription <> 'puller' AND coalesce(lag_events + retrying + waiting > 0, true)))
	  or die 'not delivered';
	$node->poll_query_until('postgres', q(SELECT count(*) = 0 FROM cqrs.scheduled_command)) or die 'not released';
	$node->safe_psql('postgres', q(BEGIN; SELECT count(*) FROM cqrs_receive('puller', 100000); SELECT cqrs_ack('puller'); COMMIT; TRUNCATE recorded));
}

sub measure
{
	my %used;

	for my $kind ('launcher', 'manager', 'worker')
	{
		$used{"$kind $_"} = used($_) for processes($node, $kind);
	}
	return %used;
}

# Caches fill at first. 4,000 rounds more may add what still comes to them, but
# not a dozen bytes a round.
work(1000);
my %before = measure();
work(2000);
my %between = measure();
work(4000);
my %after = measure();

is(join(' ', sort keys %after), join(' ', sort keys %before), 'the same processes');
for my $process (sort keys %after)
{
	cmp_ok($after{$process}, '<', $between{$process} + 48 * 1024,
		"$process: $before{$process} bytes after 1,000 rounds, $between{$process} after 3,000, $after{$process} after 7,000");
}

$node->stop;
done_testing();
