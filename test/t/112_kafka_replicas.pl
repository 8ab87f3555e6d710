# Three brokers, of which two must have each record: one of them may be away, be it
# killed or stopped, and all is delivered meanwhile. With two of them away, events
# wait, and none is to blame.

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
my $kafka = RealKafka->new(3);
my $node = new_server('main');

$kafka->create_topic('things', 3);
$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('happened', 'things')));
$kafka->create_server($node, 'postgres', 'events', window => $window, 'batch.num.messages' => 2, 'request.timeout.ms' => 2000,
	'socket.timeout.ms' => 3000);
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

# As when brokers are upgraded.
$kafka->pause_amid($node, $window, \&emit, $third);
$kafka->stop($third);
delivered('another one is stopped in order, in the middle of a drain');
$kafka->start($third);
$kafka->wait_in_sync('things');
emit();
delivered('all three are there');

my @records = map { [ $_->{headers}{message_id}, $_->{key}, $_->{value} =~ /^\{"n":(\d+)\}$/ ] } $kafka->records('things');
my %there = map { $_->[2] => 1 } @records;
my ($ids, $duplicates, $disorder) = arrivals(@records);

is(scalar(grep { !$there{$_} } 1 .. $n), 0, 'nothing is lost');
is($ids, $n, 'nothing is there that was not emitted');
is($disorder, 0, 'each key is in order');
note("$duplicates duplicates");

$node->stop('fast');
done_testing();
