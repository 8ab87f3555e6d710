# Every way to emit and to consume, at once, while the server, or a part of
# it, is ended again and again at a random moment. Whatever committed is
# delivered to every subscription: all of it, nothing else, once, and in order.
#
# CQRS_CRASH_CYCLES says how often (20), CQRS_CRASH_SEED which moments.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

use CqrsTest;
use CrashHarness;

my $cycles = $ENV{CQRS_CRASH_CYCLES} || 20;
my $seed = srand($ENV{CQRS_CRASH_SEED} || time);

# Nobody polls: what is not announced, or found after a restart, stays. The
# topics have no retention, so their segments are truncated all the time.
my $node = new_server('main', q(
restart_after_crash = on
cqrs_outbox.segment_size = '64kB'
cqrs_outbox.segment_age = '100ms'
max_prepared_transactions = 50
));

note("CQRS_CRASH_SEED=$seed");
$node->start;
set_up($node);
for my $cycle (1 .. $cycles)
{
	my @load = start_load($node, $cycle);

	usleep(200_000 + rand 1_000_000);
	note("cycle $cycle: " . strike($node));
	stop_load(@load);
}
ok(finish($node), 'everything is delivered in the end');

cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM truth'), '>', 50 * $cycles, 'there was a load');
cmp_ok($node->safe_psql('postgres', "SELECT count(*) FROM truth WHERE key LIKE 'prepared%'"),
	'>', $cycles, 'also of prepared transactions');
cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM truth WHERE fails(tag::text)'), '>', 0, 'and of what fails at first');
cmp_ok($node->safe_psql('postgres', q(SELECT count(*) FROM pg_class WHERE relname ~ '^topic_\d+_\d$' AND relfilenode <> oid)),
	'>', 3, 'and segments were truncated');
for my $subscription (qw(recorder flaky spread puller sharers))
{
	my $differences = differences($node, $subscription);

	is($differences->{lost}, '', "$subscription: nothing is lost");
	is($differences->{invented}, '', "$subscription: nothing is invented");
	is($differences->{twice}, '', "$subscription: nothing comes twice");
	is($differences->{id_twice}, '', "$subscription: each has an id of its own");
	is($differences->{changed}, '', "$subscription: id, topic, key and number are those emitted");
	is($differences->{disorder}, '', "$subscription: each key is in order");
}
is($node->safe_psql('postgres', "SELECT count(*) FROM arrived WHERE fails(tag::text) AND attempts = 0 AND subscription <> 'recorder'"),
	'0', 'who fails at first is tried again');
is($node->safe_psql('postgres', 'SELECT count(*) FROM cqrs_events(batch_size => 10)'), '0', 'the outbox has nothing left to deliver');
$node->stop;

done_testing();
