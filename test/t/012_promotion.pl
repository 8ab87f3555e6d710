# The primary dies under load, with synchronous replication, and its standby is
# promoted: it goes on delivering by itself. What was acknowledged to an
# emitter is delivered, the handler gets each event exactly once and in order,
# and what a consumer outside was given did happen. Twice: the promoted one
# dies, too.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Counting;
use CqrsTest;

my $primary = new_server('server0', "log_statement = none\n", allows_streaming => 1);
$primary->start;
set_up_counting($primary);

# One emitter for each key. psql shows an answer once its commit is
# acknowledged.
my @keys = (1 .. 3);
my %script = map { $_ => $primary->basedir . "/key$_.sql" } @keys;
append_to_file($script{$_}, "SELECT cqrs_send('CountUp', '{\"key\": $_}');\n" x 100000) for @keys;
my %acknowledged = map { $_ => 0 } @keys;

# What the consumer outside was given.
my %given;

sub receive
{
	my ($session) = @_;
	my @batch = receive_counts($session, '200 ms');

	$given{ s/^[^|]*\|//r } = 1 for @batch;
	return scalar @batch;
}

sub psql_of
{
	my ($node, $key) = @_;
	my $self = { out => '', err => '' };

	$self->{harness} = IPC::Run::start([ 'psql', '-XAtq', '-f', $script{$key}, '-d', $node->connstr('postgres') ], '>', \$self->{out}, '2>', \$self->{err});
	return $self;
}

for my $round ([ 1, 'stopped at once' ], [ 2, 'killed' ])
{
	my ($n, $how) = @$round;

	my $standby = new_standby($primary, "server$n");
	make_synchronous($primary, "server$n");

	# Everybody is at it when it dies: the last batch is not acknowledged.
	my %emitter = map { $_ => psql_of($primary, $_) } @keys;
	my $consumer = new_session($primary, 'postgres');
	my $wanted = keys(%given) + 300;
	while (keys %given < $wanted)
	{
		$_->{harness}->pump_nb for values %emitter;
		acknowledge_counts($consumer) if receive($consumer) > 0;
	}
	receive($consumer);
	$n == 1 ? $primary->stop('immediate') : $primary->kill9;
	$consumer->quit;
	for my $key (@keys)
	{
		eval { $emitter{$key}->{harness}->finish };
		my @answers = $emitter{$key}->{out} =~ /^(\d+)$/mg;

		cmp_ok(scalar @answers, '>', 0, "$how: key $key: there was a load");
		$acknowledged{$key} = $answers[-1];
	}

	$standby->promote;
	ok($standby->poll_query_until('postgres', "SELECT count(*) > 0 AND count(*) = (SELECT count(*) FROM business) FROM recorded"), "$how: the promoted standby delivers by itself");
	is($standby->safe_psql('postgres', q(SELECT lag_events FROM cqrs_subscription_status WHERE subscription = 'recorder')), '0', "$how: and has delivered all");
	for my $key (@keys)
	{
		is($standby->safe_psql('postgres', "SELECT count(*) >= $acknowledged{$key} FROM recorded WHERE key = $key"), 't', "$how: key $key: what was acknowledged is delivered");
	}
	$primary = $standby;
	$standby->safe_psql('postgres', q(SELECT cqrs_send('CountUp', '{"key": 4}')));
	ok($standby->poll_query_until('postgres', "SELECT count(*) = $n FROM recorded WHERE key = 4"), "$how: and what comes");
	check_counts($standby, $how);

	my %happened = happened($standby);
	is(join(', ', (grep { !$happened{$_} } sort keys %given)), '', "$how: nothing was given outside that did not happen");
}

# The consumer outside gets all there is, once the lease of who died is over.
my $consumer = new_session($primary, 'postgres');
receive($consumer) and acknowledge_counts($consumer) until all_received($primary);
is(scalar(keys %given), $primary->safe_psql('postgres', 'SELECT count(*) FROM business'), 'the consumer outside got every event');
$consumer->quit;
$primary->stop;

done_testing();
