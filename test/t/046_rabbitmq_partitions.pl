# The partitions of subscriptions to a broker are changed while events are on
# their way: each arrives once, each key in order; and connections of partitions
# that are no more are ended.

use strict;
use warnings;

use JSON::PP qw(decode_json);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use POSIX ();
use Test::More;
use Time::HiRes qw(usleep);

use CqrsTest;
use RabbitMQ;

my $events = 8000;
my $keys = 40;
my $changes = 10;
my @numbers = (1, 2, 3, 4);
my $broker = RabbitMQ->new('changed');
$broker->start;
$broker->command('queue things', 'queue strict');

my $node = new_server('main', 'cqrs_outbox.max_workers = 12');
$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('happened', 'things')));
$broker->create_server($node, 'postgres', $_, window => 50, routing_key => $_) for qw(things strict);
$node->safe_psql('postgres', q(
	SELECT cqrs_subscribe(s, ARRAY['things'], server => s, strict_key_order => s = 'strict', partitions => 2) FROM unnest(ARRAY['things', 'strict']) s));

my $emitter = in_background(sub {
	my $session = new_session($node, 'postgres');
	for (my $from = 1; $from <= $events; $from += 40)
	{
		$session->query("SELECT count(cqrs_emit('happened', jsonb_build_object('n', i), key => (i % $keys)::text)) FROM generate_series($from, $from + 39) i");
		usleep(rand 30_000);
	}
	$session->quit;
});

my $emitting = 1;
my $changed = 0;
my $open = 0;
srand(7);
while ($emitting || $changed < $changes)
{
	if ($emitting && waitpid($emitter, POSIX::WNOHANG()) == $emitter)
	{
		is($?, 0, 'all is emitted');
		$emitting = 0;
	}
	$node->safe_psql('postgres', sprintf "SELECT cqrs_alter_subscription(s, partitions => %d) FROM unnest(ARRAY['things', 'strict']) s", $numbers[ rand @numbers ]);
	$changed++;
	$open += $node->safe_psql('postgres', 'SELECT count(next_partitions) FROM cqrs_subscription_status');
	usleep(rand 100_000);
}
cmp_ok($open, '>', 0, 'there were changes under way');
$node->safe_psql('postgres', "SELECT cqrs_alter_subscription(s, partitions => 3) FROM unnest(ARRAY['things', 'strict']) s");
ok($node->poll_query_until('postgres', 'SELECT count(*) = 2 FROM cqrs_subscription_status WHERE next_partitions IS NULL AND partitions = 3'), 'the last change is done');
for my $subscription (qw(things strict))
{
	ok(wait_status($node, 'postgres', $subscription, '0/0/0/0'), "$subscription: everything is delivered");

	my ($count, $again, $disorder) = arrivals(map {
		my $n = decode_json($_->{body})->{payload}{n};
		[ $n, $n % $keys, $n ]
	} $broker->messages($subscription));
	is($count, $events, "$subscription: nothing is lost");
	is($again, 0, "$subscription: nothing comes twice");
	is($disorder, 0, "$subscription: each key in order");
}

# With fewer, connections end.
$node->safe_psql('postgres', "SELECT cqrs_alter_subscription(s, partitions => 1) FROM unnest(ARRAY['things', 'strict']) s");
ok($node->poll_query_until('postgres', 'SELECT count(*) = 2 AND max(partition) = 0 FROM cqrs_worker_status WHERE subscription IS NOT NULL'), 'one connection each is left');
note("$changed changes, of which $open were seen under way");

$node->stop('fast');
$broker->stop;
done_testing();
