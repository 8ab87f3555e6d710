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

use CqrsTest;

my $primary = new_server('server0', "log_statement = none\n", allows_streaming => 1);
$primary->start;
$primary->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('counted', 'counts');
	CREATE TABLE business (key int, n int, PRIMARY KEY (key, n));
	CREATE TABLE recorded (seq bigserial, key int, n int);

	-- Counts a key up, and tells so. Another count is taken back.
	CREATE FUNCTION count_up(command jsonb) RETURNS int LANGUAGE plpgsql AS $$
	DECLARE
		k int := command->>'key';
		next int;
	BEGIN
		SELECT coalesce(max(n), 0) + 1 INTO next FROM business WHERE key = k;
		BEGIN
			PERFORM cqrs_emit('counted', jsonb_build_object('n', -next), key => k::text);
			RAISE EXCEPTION 'no';
		EXCEPTION WHEN raise_exception THEN
		END;
		INSERT INTO business VALUES (k, next);
		PERFORM cqrs_emit('counted', jsonb_build_object('n', next), key => k::text);
		RETURN (next);
	END $$;
	SELECT cqrs_register_command('CountUp', 'count_up(jsonb)');
	CREATE FUNCTION record_count(event cqrs_event) RETURNS void LANGUAGE sql SET search_path = public AS $$
		INSERT INTO recorded (key, n) VALUES (event.key::int, (event.payload->>'n')::int)
	$$;
	SELECT cqrs_subscribe('recorder', ARRAY['counts'], 'record_count(cqrs_event)');
	SELECT cqrs_subscribe('outside', ARRAY['counts']);
));

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
	my $answer = $session->query("SELECT 'event', position, receipt, key, payload->>'n' FROM cqrs_receive('outside', 50, lease => '200 ms')");

	$session->{positions} = [];
	while ($answer =~ /^event\|(\d+)\|([^|]+)\|(.*)$/mg)
	{
		push @{ $session->{positions} }, $1;
		$session->{receipt} = $2;
		$given{$3}++;
	}
	return scalar @{ $session->{positions} };
}

# Acknowledge that.
sub acknowledge
{
	my ($session) = @_;
	my $positions = join ',', @{ $session->{positions} };

	return $session->query("SELECT cqrs_ack('outside', '{$positions}', '$session->{receipt}')");
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

	$primary->backup('backup');
	my $standby = PostgreSQL::Test::Cluster->new("server$n");
	$standby->init_from_backup($primary, 'backup', has_streaming => 1);
	$standby->start;
	$primary->safe_psql('postgres', "ALTER SYSTEM SET synchronous_standby_names = 'server$n'");
	$primary->reload;
	$primary->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'")
	  or die 'no synchronous standby';

	# Everybody is at it when it dies: the last batch is not acknowledged.
	my %emitter = map { $_ => psql_of($primary, $_) } @keys;
	my $consumer = new_session($primary, 'postgres');
	my $wanted = keys(%given) + 300;
	while (keys %given < $wanted)
	{
		$_->{harness}->pump_nb for values %emitter;
		acknowledge($consumer) if receive($consumer) > 0;
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
	is($standby->safe_psql('postgres', '(SELECT key, n FROM business EXCEPT ALL SELECT key, n FROM recorded) UNION ALL (SELECT key, n FROM recorded EXCEPT ALL SELECT key, n FROM business)'),
		'', "$how: each exactly once, and none that did not happen");
	is($standby->safe_psql('postgres', 'SELECT count(*) FROM (SELECT n - lag(n, 1, 0) OVER (PARTITION BY key ORDER BY seq) AS step FROM recorded) s WHERE step <> 1'),
		'0', "$how: each key in order");

	my %happened = map { $_ => 1 } split /\n/, $standby->safe_psql('postgres', 'SELECT key, n FROM business');
	is(join(', ', (grep { !$happened{$_} } sort keys %given)), '', "$how: nothing was given outside that did not happen");
}

# The consumer outside gets all there is, once the lease of who died is over.
my $consumer = new_session($primary, 'postgres');
receive($consumer) and acknowledge($consumer)
  until $primary->safe_psql('postgres', q(SELECT lag_events FROM cqrs_subscription_status WHERE subscription = 'outside')) eq '0';
is(scalar(keys %given), $primary->safe_psql('postgres', 'SELECT count(*) FROM business'), 'the consumer outside got every event');
$consumer->quit;
$primary->stop;

done_testing();
