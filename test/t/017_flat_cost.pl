# The cost of delivery does not grow with what was done before, or is waiting:
# not with the cursor's dead rows that a long transaction keeps, not with the
# events of others in a late transaction's window, not with a backlog, not with
# the dead rows of earlier failures. Counted in pages, which no noise changes.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main', "cqrs_outbox.deliver = off\nshared_buffers = '256MB'\n");
$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('happened', 'things');
	CREATE FUNCTION on_thing(event cqrs_event) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
	BEGIN
		IF event.payload ? 'fail' THEN
			RAISE EXCEPTION 'cannot';
		END IF;
	END $$;
	SELECT cqrs_subscribe('things', ARRAY['things'], 'on_thing(cqrs_event)', max_attempts => 1);
	CREATE FUNCTION emit_some(n integer, payload jsonb DEFAULT '{}') RETURNS void LANGUAGE sql AS $$
		SELECT cqrs_emit_many('happened', array_agg(payload), array_agg(i::text)) FROM generate_series(1, n) i $$;
	CREATE PROCEDURE deliver_one_by_one(n integer, payload jsonb DEFAULT '{}') LANGUAGE plpgsql AS $$
	BEGIN
		FOR i IN 1 .. n LOOP
			PERFORM emit_some(1, payload);
			COMMIT;
			PERFORM cqrs_drain('things');
			COMMIT;
		END LOOP;
	END $$;
));

# pages(SQL): how many it touches, with everything it needs known already.
my $session = new_session($node, 'postgres');
$session->query('SET client_min_messages = error');

sub pages
{
	my ($sql) = @_;
	my $plan = $session->query("EXPLAIN (ANALYZE, BUFFERS, TIMING off, SUMMARY off) $sql");
	my $pages = 0;

	my ($shared) = $plan =~ /Buffers: shared (.*)/ or die $plan;
	$pages += $1 while $shared =~ /(?:hit|read)=(\d+)/g;
	note("$pages pages: $sql");
	return $pages;
}

# one_more(): the same to deliver one event more.
sub one_more
{
	$session->query("SELECT emit_some(1)");
	return pages("SELECT cqrs_drain('things')");
}

one_more();
my $first = one_more();

# A transaction that keeps every dead row.
my $old = new_session($node, 'postgres');
$old->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
$session->query('CALL deliver_one_by_one(3000)');
cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM cqrs.cursor'), '<', 200, 'cursors are deleted behind');
cmp_ok($node->safe_psql('postgres', "SELECT pg_relation_size('cqrs.cursor') / 8192"), '>', 30, 'and their dead rows are there');
cmp_ok(one_more(), '<=', 1.5 * $first, 'moving a cursor costs what it did, under a transaction that is open all the time');

# The same for failures.
$session->query("CALL deliver_one_by_one(1000, '{\"fail\": true}')");
is($node->safe_psql('postgres', 'SELECT count(*) FROM cqrs.dead_letter'), '1000', 'a thousand events failed meanwhile');
cmp_ok(one_more(), '<=', 1.5 * $first, 'after them, too');
$session->query("SELECT cqrs_alter_subscription('things', max_attempts => 0, retry_delay => '1 hour')");
$session->query("CALL deliver_one_by_one(1, '{\"fail\": true}')");
one_more();
my $with_failure = one_more();
cmp_ok($with_failure, '<=', 4 * $first, 'nor does one that is parked now, and has others parked behind it, lead over those before');

# A late transaction, with many events of others in its window.
my $late = new_session($node, 'postgres');
$late->query("BEGIN; SELECT cqrs_emit('happened', '{\"late\": 1}')");
$session->query('SELECT emit_some(100000)');
$session->query("SELECT cqrs_drain('things')");
$late->query("SELECT cqrs_emit('happened', '{\"late\": 2}'); COMMIT");
cmp_ok(pages("SELECT cqrs_drain('things')"), '<=', 3 * $with_failure, 'a late transaction costs its own events');
is($session->query("SELECT cqrs_drain('things')"), '0', 'which were delivered');

# A backlog, of one transaction or of many: a batch of it costs the batch.
$session->query("SELECT cqrs_subscribe('pull', ARRAY['things'], start => 'latest')");
$session->query('SELECT emit_some(1000)');
$session->query('SELECT cqrs_tick() > 0');
my $small = pages("SELECT count(*) FROM cqrs_receive('pull', 100)");
$session->query("SELECT cqrs_seek('pull', 'latest')");
$session->query('SELECT emit_some(200000)');
$session->query('SELECT cqrs_tick() > 0');
cmp_ok(pages("SELECT count(*) FROM cqrs_receive('pull', 100)"), '<=', 2 * $small, 'a batch of a large transaction costs the batch');
cmp_ok(pages("SELECT lag_events, lag FROM cqrs_subscription_status WHERE subscription = 'pull'"), '<', 12000,
	'the status view counts no further than it says');

$old->quit;
$node->stop;
done_testing();
