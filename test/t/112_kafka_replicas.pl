# Three brokers, of which two must have each record: one of them may be away, be it
# killed or stopped, and all is delivered meanwhile, exactly once where that is asked
# for. With two of them away, events wait, and none is to blame.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use RealKafka;

my $window = 100;
my $count = 600;
my $n = 0;
my %options = (window => $window, 'batch.num.messages' => 2, 'request.timeout.ms' => 2000, 'socket.timeout.ms' => 3000);
my $kafka = RealKafka->new(3);
my $node = new_server('main');

$kafka->create_topic('things', 3);
$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('happened', 'things');
	-- more than a window has, and not much more
	CREATE PROCEDURE go_on_emitting(n bigint) LANGUAGE plpgsql AS $$
	BEGIN
		LOOP
			IF (SELECT max(lag_events) FROM cqrs_subscription_status) < 500 THEN
				PERFORM cqrs_emit_many('happened', array_agg(jsonb_build_object('n', i) ORDER BY i), array_agg('key ' || i % 50 ORDER BY i))
				FROM generate_series(n, n + 199) i;
				n := n + 200;
			END IF;
			COMMIT;
			PERFORM pg_sleep(0.02);
		END LOOP;
	END $$));
$kafka->create_server($node, 'postgres', 'events', %options);
$node->safe_psql('postgres', "SELECT cqrs_subscribe('things', ARRAY['things'], server => 'events', format => 'raw',
	retry_delay => '20 ms', max_retry_delay => '100 ms')");

# emit(): of each key, which are in all partitions, more than a window has.
sub emit
{
	$node->safe_psql('postgres', "SELECT cqrs_emit_many('happened', array_agg(jsonb_build_object('n', n) ORDER BY n), array_agg('key ' || n % 50 ORDER BY n))
		FROM generate_series($n + 1, $n + $count) n");
	$n += $count;
	return;
}

sub status { return $node->safe_psql('postgres', "SELECT concat_ws('|', $_[0]) FROM cqrs_subscription_status"); }

sub delivered { return ok(wait_status($node, 'postgres', 'things', '0/0/0/0'), $_[0]); }

# goes_on(): whether both subscriptions deliver what they had not before.
sub goes_on
{
	my $latest = 'SELECT DISTINCT ON (subscription_id) subscription_id AS id, delivered FROM cqrs.cursor ORDER BY subscription_id, seq DESC';
	my $before = $node->safe_psql('postgres', "SELECT jsonb_object_agg(id, delivered) FROM ($latest) c");

	return $node->poll_query_until('postgres',
		"SELECT count(*) = 2 AND bool_and(delivered > coalesce(('$before'::jsonb ->> id::text)::bigint, 0)) FROM ($latest) c");
}

# The leader of a partition.
my $leader = $kafka->leader('things');
$kafka->pause_amid($node, $window, \&emit, $leader);
$kafka->kill($leader);
delivered("a partition's leader is killed in the middle of a drain, and the others take over");
isnt($kafka->leader('things'), $leader, 'another one leads');

# Two are needed.
my ($second, $third) = grep { $_ != $leader } 1 .. 3;
$kafka->kill($second);
emit();
ok($node->poll_query_until('postgres', "SELECT max(failures) > 0 FROM cqrs.failure"), 'the third one alone is not enough');
is(status('retrying, waiting, dead'), '0|0|0', 'no event is to blame');
$kafka->start($leader);
delivered('the first one is back, and two are enough');
$kafka->start($second);
$kafka->wait_in_sync('things');

# As when brokers are upgraded: each is stopped in order and started again, one after
# the other, while events are emitted; and another subscription delivers exactly once.
$kafka->create_topic('once', 3);
$kafka->create_server($node, 'postgres', 'once', topic => 'once', %options);
$node->safe_psql('postgres', "SELECT cqrs_subscribe('once', ARRAY['things'], server => 'once', format => 'raw', delivery => 'exactly_once',
	retry_delay => '20 ms', max_retry_delay => '100 ms')");
my $emitter = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', "CALL go_on_emitting($n + 1)" ],
	'<', \undef, '>', \my $out, '2>', \my $err);

for my $broker (1 .. 3)
{
	ok(goes_on(), "broker $broker is about to be stopped: both subscriptions deliver");
	$kafka->stop($broker);
	ok(goes_on(), '... and while it is away');
	$kafka->start($broker);
	$kafka->wait_in_sync($_) for qw(things once __transaction_state __consumer_offsets);
}
$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CALL go_on_emitting%'");
IPC::Run::finish($emitter);
my $last = $node->safe_psql('postgres', "SELECT max((payload ->> 'n')::int) FROM cqrs_topics.things");
cmp_ok($last, '>', $n, 'events were emitted meanwhile');
$n = $last;
delivered('all three are there');
ok(wait_status($node, 'postgres', 'once', '0/0/0/0'), '... exactly once, too');

my @records = map { [ $_->{headers}{message_id}, $_->{key}, $_->{value} =~ /^\{"n":(\d+)\}$/ ] } $kafka->records('things');
my %there = map { $_->[2] => 1 } @records;
my ($ids, $duplicates, $disorder) = arrivals(@records);

is(join(' ', grep { !$there{$_} } 1 .. $n), '', 'nothing is lost')
  or diag(explain([ map { "$_->{partition}/$_->{offset}: $_->{value} at $_->{timestamp}" } $kafka->records('things') ]));
is($ids, $n, 'nothing is there that was not emitted');
is($disorder, 0, 'each key is in order');
note("$duplicates duplicates");

@records = map { [ $_->{headers}{message_id}, $_->{key}, $_->{value} =~ /^\{"n":(\d+)\}$/ ] } $kafka->committed_records('once');
%there = map { $_->[2] => 1 } @records;
($ids, $duplicates, $disorder) = arrivals(@records);
is(join(' ', grep { !$there{$_} } 1 .. $n), '', 'exactly once: nothing is lost');
is("$ids and $duplicates", "$n and 0", '... nothing is there twice');
is($disorder, 0, '... each key is in order');

$node->stop('fast');
done_testing();
