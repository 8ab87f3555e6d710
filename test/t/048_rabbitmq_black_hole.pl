# A RabbitMQ that accepts connections, and nothing else: other subscriptions are
# as fast as without it, and the server stops at once, wherever the connection
# hangs.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

use CqrsTest;
use RabbitMQ;
use TcpProxy;

my $rounds = 5;
my $events = 40;

my $broker = RabbitMQ->new('hole');
$broker->start;
$broker->command('queue things', 'queue hole');
my $proxy = TcpProxy->new($broker->{port});

my $node = new_server('main', 'track_commit_timestamp = on');
$node->start;
set_up_recording($node, 'postgres');
$node->safe_psql('postgres', q(
	CREATE TABLE latency (hung boolean, kind text, emitter xid8, recorder xid);
	CREATE VIEW median AS
	SELECT kind, hung, percentile_cont(0.5) WITHIN GROUP (ORDER BY
		   extract(epoch FROM pg_xact_commit_timestamp(recorder) - pg_xact_commit_timestamp(xid(emitter))) * 1000) AS ms
	FROM latency GROUP BY kind, hung;

	-- Emit events, one at a time, and note which transactions recorded that
	-- they were delivered.
	CREATE PROCEDURE measure(events integer, hung boolean) LANGUAGE plpgsql AS $$
	DECLARE
		emitter xid8;
		id uuid;
		last bigint;
		cursor record;
	BEGIN
		FOR i IN 1 .. events LOOP
			SELECT seq INTO last FROM cqrs.cursor WHERE subscription_id = (SELECT subscription_id FROM cqrs.subscription WHERE subscription = 'out')
			ORDER BY seq DESC LIMIT 1;
			id := cqrs_emit('happened', '{}');
			emitter := pg_current_xact_id();
			COMMIT;
			LOOP
				SELECT seq, xmin AS xid INTO cursor FROM cqrs.cursor
				WHERE subscription_id = (SELECT subscription_id FROM cqrs.subscription WHERE subscription = 'out')
				ORDER BY seq DESC LIMIT 1;
				EXIT WHEN cursor.seq > last AND EXISTS (SELECT FROM recorded WHERE event_id = id);
				COMMIT;
				PERFORM pg_sleep(0.002);
			END LOOP;
			INSERT INTO latency VALUES (hung, 'broker', emitter, cursor.xid);
			INSERT INTO latency SELECT hung, 'handler', emitter, xmin FROM recorded WHERE event_id = id;
			COMMIT;
		END LOOP;
	END $$));
$broker->create_server($node, 'postgres', 'events');
$broker->create_server($node, 'postgres', 'hole', port => $proxy->{port}, connect_timeout => 600, routing_key => 'hole');
$node->safe_psql('postgres', q(SELECT cqrs_subscribe('out', ARRAY['things'], server => 'events')));

# subscribe_hole(): whose worker has the connection.
sub subscribe_hole
{
	$node->safe_psql('postgres', "SELECT cqrs_subscribe('hole', ARRAY['things'], server => 'hole', start => 'latest')");
	return;
}

# is_hanging(): until a worker tries to deliver to it.
sub is_hanging
{
	return $node->poll_query_until('postgres', q(
		SELECT count(*) = 1 FROM cqrs_worker_status w
		WHERE w.subscription = 'hole' AND w.state = 'delivering'));
}

# stops(NAME): within two seconds.
sub stops
{
	my ($name) = @_;
	my $started = time;

	$node->stop('fast');
	cmp_ok(time - $started, '<', 2, "the server stops at once: $name");
	return;
}

# The latency of others, while it answers and while it does not, in turn. A
# machine may have other things to do: some attempts, of which the best counts.
subscribe_hole();
my %ratio = (handler => 1e6, broker => 1e6);
for (1 .. 6)
{
	$node->safe_psql('postgres', 'TRUNCATE latency');
	for (1 .. $rounds)
	{
		$proxy->tell('pass');
		wait_status($node, 'postgres', 'hole', '0/0/0/0');
		$node->safe_psql('postgres', "CALL measure($events, false)");
		wait_status($node, 'postgres', 'hole', '0/0/0/0');
		$proxy->tell('hole');
		$node->safe_psql('postgres', "SELECT cqrs_emit('happened', '{}')");
		is_hanging();
		$node->safe_psql('postgres', "CALL measure($events, true)");
	}
	for (split /\n/, $node->safe_psql('postgres', q(SELECT kind, h.ms / n.ms FROM median h JOIN median n USING (kind) WHERE h.hung AND NOT n.hung)))
	{
		my ($kind, $ratio) = split /\|/;

		$ratio{$kind} = $ratio if $ratio < $ratio{$kind};
	}
	note($node->safe_psql('postgres', 'SELECT * FROM median ORDER BY 1, 2'));
	last if $ratio{handler} < 1.2 && $ratio{broker} < 1.2;
}
$proxy->tell('pass');
wait_status($node, 'postgres', 'hole', '0/0/0/0');
$node->safe_psql('postgres', "SELECT cqrs_unsubscribe('hole')");
$proxy->tell('hole');
cmp_ok($ratio{$_}, '<', 1.2, "a black hole does not slow another subscription, to a $_") for qw(handler broker);
is($node->safe_psql('postgres', "SELECT count(*) FROM latency WHERE hung AND kind = 'broker'"), $rounds * $events,
	'which gets everything meanwhile');

# The stop, while it logs in.
subscribe_hole();
$node->safe_psql('postgres', "SELECT cqrs_emit('happened', '{}')");
ok(is_hanging(), 'a worker logs in');
stops('while it logs in');

# While it waits for confirms.
$proxy->tell('pass');
$node->start;
ok(wait_status($node, 'postgres', 'hole', '0/0/0/0'), 'the connection is there');
$proxy->tell('hole');
$node->safe_psql('postgres', "SELECT cqrs_emit('happened', '{}')");
ok(is_hanging(), 'an event is on its way');
stops('while it waits for confirms');

# While it sends more than the network holds.
$proxy->tell('pass');
$node->start;
ok(wait_status($node, 'postgres', 'hole', '0/0/0/0'), 'the connection is there');
$proxy->tell('hole');
my $worker = $node->safe_psql('postgres', q(
	SELECT pid FROM cqrs_worker_status WHERE subscription = 'hole'));
$node->safe_psql('postgres', q(
	SELECT cqrs_emit_many('happened', array_agg(jsonb_build_object('text', repeat('x', 50000)))) FROM generate_series(1, 1000)));

# Bytes to the proxy wait on our side of the connection, and their number does
# not change.
my $before = -1;
ok(wait_until(sub {
		my $port = sprintf '%04X', $proxy->{port};
		my ($waiting) = map { /^\s*\d+: \S+ 0100007F:$port 01 ([0-9A-F]{8}):/ && hex $1 ? hex $1 : () }
		  split /\n/, slurp_file('/proc/net/tcp');
		my $same = defined $waiting && $waiting == $before;

		$before = $waiting // -1;
		usleep(100_000);
		return $same;
	}), 'the network is full');
stops('while it sends');

$broker->stop;
done_testing();
