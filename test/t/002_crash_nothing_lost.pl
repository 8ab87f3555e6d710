# The server crashes under load, again and again. No event is lost, none is
# invented, handlers get each exactly once and in order, and what a consumer
# outside was given did happen: also with synchronous_commit off, when a crash
# takes back what had committed.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Counting;
use CqrsTest;

# Nothing writes the log by chance: the buffers hold all there is, and nobody
# writes pages.
my $node = new_server('main', q(
restart_after_crash = on
wal_buffers = '64MB'
bgwriter_delay = '10s'
bgwriter_lru_maxpages = 0
checkpoint_timeout = '1h'
shared_buffers = '256MB'
log_statement = none
));
$node->start;
set_up_counting($node);

my $script = $node->basedir . '/count_up.sql';
append_to_file($script, q(
\set key random(1, 6)
SELECT cqrs_send('CountUp', jsonb_build_object('key', :key));
));

# What the consumer outside was given.
my @outside;

sub receive
{
	my ($session) = @_;
	my @batch = receive_counts($session);

	push @outside, @batch;
	return scalar @batch;
}

# From here on, the log is written only by commits that wait for that.
my $wal_writer;

sub stop_wal_writer
{
	$wal_writer = $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'");
	kill 'STOP', $wal_writer or die 'there is no WAL writer';
}

for my $synchronous_commit (qw(off on off on))
{
	my $at_least = @outside + 300;
	my ($out, $err) = ('', '');
	my $pgbench;
	my $consumer;

	# For everybody: emitters, our processes, and the consumer.
	reconfigure($node, "synchronous_commit = $synchronous_commit");
	stop_wal_writer() if $synchronous_commit eq 'off';
	$pgbench = IPC::Run::start(
		[ 'pgbench', '-n', '-c', '3', '-T', '600', '-f', $script, $node->connstr('postgres') ],
		'>', \$out, '2>', \$err);
	$consumer = new_session($node, 'postgres');

	# Acknowledge all but the last.
	while (@outside < $at_least)
	{
		die "pgbench ended: $err" unless $pgbench->pumpable;
		acknowledge_counts($consumer) if receive($consumer) > 0;
	}
	receive($consumer);

	# Two ways to crash: the server's process for the log is killed, and everybody
	# with it; or the server stops at once.
	if ($synchronous_commit eq 'off')
	{
		crash_server($node, $wal_writer);
	}
	else
	{
		$node->stop('immediate');
		$node->start;
	}
	$consumer->quit;
	eval { $pgbench->finish };

	my %happened = happened($node);
	my @phantoms = grep { !$happened{ s/^[^|]*\|//r } } @outside;
	is(join(', ', grep { defined } @phantoms[ 0 .. 4 ]), '', "synchronous_commit = $synchronous_commit: nothing was given that did not happen");
}

# All there is left.
my $count = $node->safe_psql('postgres', 'SELECT count(*) FROM business');
my $consumer = new_session($node, 'postgres');

$node->safe_psql('postgres', q(SELECT cqrs_send('CountUp', '{"key": 1}')));
$count++;
ok(wait_recorded($node, 'postgres', $count), 'the handler got every event');
receive($consumer) and acknowledge_counts($consumer) until all_received($node);

cmp_ok($count, '>', 900, 'there was a load');
is($node->safe_psql('postgres', 'SELECT count(*), count(DISTINCT event_id), count(DISTINCT (key, n)) FROM recorded'),
	"$count|$count|$count", 'each exactly once');
check_counts($node, 'the handler');
is($node->safe_psql('postgres', "SELECT count(*) FROM cqrs_topics.counts"), $count, 'what the topic holds is what happened');

# The consumer outside: every event at least once, and in order.
my %next;
my %seen;
my $disorder = '';

for (@outside)
{
	my ($event_id, $key, $n) = split /\|/;

	next if $seen{$event_id}++;
	$disorder .= "key $key: $n; " if $n != ++$next{$key};
}
is(scalar(keys %seen), $count, 'the consumer outside got every event');
is(substr($disorder, 0, 200), '', 'each key in order');
$consumer->quit;
$node->stop;

done_testing();
