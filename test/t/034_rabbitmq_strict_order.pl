# If an event is rejected while the next of its key is on its way already, that
# may overtake it; with strict_key_order, it does not. What was only read already
# never does.

use strict;
use warnings;

use JSON::PP qw(decode_json);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use RabbitMQ;

my $keys = 10;
my $each = 60;
my $broker = RabbitMQ->new('strict');
$broker->start;

my $node = new_server('main');
$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('good', 'things');
	SELECT cqrs_register_event('bad', 'things')));
$broker->create_server($node, 'postgres', 'events');

# subscribe(STRICT): anew.
sub subscribe
{
	my ($strict) = @_;

	$node->safe_psql('postgres', qq(
		SELECT cqrs_subscribe('out', ARRAY['things'], server => 'events', start => 'latest', strict_key_order => $strict,
							  max_attempts => 10000, retry_delay => '50 ms', max_retry_delay => '100 ms')));
	return;
}

# emit(): for each key, events numbered from 1, in one transaction; of each ten,
# one is bad, but for key 0.
sub emit
{
	$node->safe_psql('postgres', qq(
		SELECT cqrs_emit(CASE WHEN i % 10 = 5 AND k > 0 THEN 'bad' ELSE 'good' END, jsonb_build_object('k', k, 'n', i), k::text)
		FROM generate_series(1, $each) i, generate_series(0, $keys - 1) k));
	return;
}

# order(MESSAGES): of each key, the numbers in the order of arrival.
sub order
{
	my %of_key;

	for my $message (@_)
	{
		my $payload = decode_json($message->{body})->{payload};

		push @{ $of_key{ $payload->{k} } }, $payload->{n};
	}
	return \%of_key;
}
my %expected = map { $_ => [ 1 .. $each ] } 0 .. $keys - 1;

# Nobody has said where bad events go to; later on, somebody does. With a window
# of one message, what is read ahead is not on its way, and so overtakes nothing.
$node->safe_psql('postgres', "ALTER SERVER events OPTIONS (ADD exchange 'things', ADD routing_key '{event_name}.{key}', ADD window '1')");
for (['false', 1000], ['true', 1000], ['false', 1], ['true', 1])
{
	my ($strict, $window) = @$_;
	my $case = "strict_key_order $strict, window $window";

	$node->safe_psql('postgres', "ALTER SERVER events OPTIONS (SET window '$window')");
	$broker->command('exchange things topic', 'queue all', 'bind all things good.*', 'queue free', 'bind free things good.0');
	subscribe($strict);
	emit();
	ok($node->poll_query_until('postgres', "SELECT lag_events = 0 AND retrying > 0 FROM cqrs_subscription_status"),
		"$case: bad events come back");
	is($broker->command('count free'), $each, "$case: a key without bad events is not held up");
	$broker->command('bind all things bad.*');
	ok(wait_status($node, 'postgres', 'out', '0/0/0/0'), "$case: everything is delivered");

	my @messages = $broker->messages('all');
	my $order = order(@messages);
	is(scalar(@messages), $keys * $each, "$case: each event once");
	if ($strict eq 'true' || $window == 1)
	{
		is_deeply($order, \%expected, "$case: in order");
	}
	else
	{
		isnt("@{ $order->{1} }", "@{ $expected{1} }", "$case: what was on its way has overtaken the bad one");
		is_deeply({ map { $_ => [ sort { $a <=> $b } @{ $order->{$_} } ] } keys %$order }, \%expected,
			"$case: nothing is missing");
	}
	$node->safe_psql('postgres', "SELECT cqrs_unsubscribe('out')");
	$broker->command('delete all', 'delete free');
}

$node->safe_psql('postgres', 'ALTER SERVER events OPTIONS (DROP window)');

# A queue rejects what it has no room for, and has room again at any time.
$broker->command('queue small {"x-max-length":20,"x-overflow":"reject-publish"}');
$node->safe_psql('postgres', "ALTER SERVER events OPTIONS (SET exchange '', SET routing_key 'small')");
subscribe('true');
emit();
my @messages;
my $rejected = 0;
wait_until(sub {
	push @messages, $broker->messages('small');
	$rejected ||= $node->safe_psql('postgres', "SELECT error LIKE '%basic.nack%' FROM cqrs_subscription_status") eq 't';
	return @messages >= $keys * $each;
});
ok($rejected, 'a full queue rejects events');
is_deeply(order(@messages), \%expected, 'in order all the same');
ok(wait_status($node, 'postgres', 'out', '0/0/0/0'), 'and each event once');

$node->stop('fast');
$broker->stop;
done_testing();
