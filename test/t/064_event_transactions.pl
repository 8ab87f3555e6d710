# With transaction => 'event', commits do not wait for the disk: a crash takes
# back the cursor together with what the handler did, and nothing that a client
# was handed.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

# Nobody but who commits writes WAL: the worker would after batch_duration, the
# background writer before a page.
my $node = new_server('main', q(
cqrs_outbox.batch_duration = '60s'
bgwriter_lru_maxpages = 0
checkpoint_timeout = '1h'
));

$node->start;
$node->safe_psql('postgres', q(
	SET client_min_messages = error;
	CREATE EXTENSION cqrs_outbox;
	CREATE TABLE seen (n int, started timestamptz DEFAULT pg_postmaster_start_time());
	CREATE FUNCTION see(event cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
		n int := event.payload->'n';
	BEGIN
		INSERT INTO public.seen VALUES (n);
		PERFORM public.cqrs_emit('seen', event.payload);
		IF n % 10 = 4 THEN
			PERFORM pg_advisory_xact_lock_shared(1);
		END IF;
	END $$;
	SELECT cqrs_register_event('happened', 'things'), cqrs_register_event('seen', 'sights');
	SELECT cqrs_subscribe('sees', '{things}', 'see(cqrs_event)', transaction => 'event');
));

# crash(FIRST, WHILE): four events; the server crashes in the handler of the
# fourth. Before that, WHILE is called. Returns the events whose handler's work
# outlived the crash.
sub crash
{
	my ($first, $while) = @_;
	my $holder = hold_handlers($node, 'postgres');
	my $walwriter = $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'");
	my $last = $first + 3;

	kill 'STOP', $walwriter;
	$node->safe_psql('postgres', qq(
		SELECT cqrs_emit_many('happened', array_agg(jsonb_build_object('n', i) ORDER BY i)) FROM generate_series($first, $last) i;
	));
	ok($node->poll_query_until('postgres', "SELECT count(*) = 3 FROM seen WHERE n >= $first"), 'others see what was committed');
	$while->() if $while;

	# Nothing is done any more, whoever goes first.
	my ($worker) = processes($node, 'worker', 'postgres');
	kill 'STOP', $worker;
	my @pids = split /\n/, $node->safe_psql('postgres', 'SELECT pid FROM pg_stat_activity');

	$node->kill9;
	kill 'KILL', $walwriter, $worker;
	$holder->kill;

	# The others go by themselves.
	wait_until(sub { !grep { kill 0, $_ } @pids }) or die 'a process of the server does not end';
	$node->start;
	$node->safe_psql('postgres', "SELECT cqrs_wait('sees', '3 min')");
	is($node->safe_psql('postgres', "SELECT string_agg(n::text, ' ' ORDER BY n) FROM seen WHERE n >= $first"),
		join(' ', $first .. $last), 'after the crash, what each event does is there once');
	is($node->safe_psql('postgres', q(SELECT count(*) FROM cqrs_topics.sights WHERE (payload->>'n')::int >= ) . $first), 4, '... and so is what it emits');
	return $node->safe_psql('postgres',
		"SELECT coalesce(string_agg(n::text, ' ' ORDER BY n), 'none') FROM seen WHERE n >= $first AND started < pg_postmaster_start_time()");
}

is(crash(1), 'none', 'a crash takes back what was not flushed, cursor and all');
is(crash(11, sub { $node->safe_psql('postgres', 'CREATE TABLE something ()') }), '11 12 13',
	'what is before the commit of another in the WAL is as safe as that');

# No commit waits for the disk but a tick's. What a client is handed is safe.
$node->safe_psql('postgres', "SELECT cqrs_subscribe('pull', '{sights}', start => 'latest')");
reconfigure($node, 'synchronous_commit = off');
is(crash(21, sub
{
	my $client = new_session($node, 'postgres');
	my $received = 0;

	$client->query('BEGIN');
	$received += $client->query("SELECT count(*) FROM cqrs_receive('pull', 10, wait => '1 min')") while $received < 3;
	is($received, 3, 'a client is handed what three handlers emitted');
	$client->kill;
}), '21 22 23', 'what led to events that a client was handed is not taken back');
is($node->safe_psql('postgres', "SELECT string_agg(payload->>'n', ' ' ORDER BY position) FROM cqrs_receive('pull', 10, wait => '1 min')"),
	'21 22 23 24', '... and they come again, with the fourth');

$node->stop;
done_testing();
