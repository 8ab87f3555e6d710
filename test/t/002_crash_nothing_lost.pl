# The server crashes under load, again and again. No event is lost, none is
# invented, handlers get each exactly once and in order, and what a consumer
# outside was given did happen: also with synchronous_commit off, when a crash
# takes back what had committed.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

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
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('counted', 'counts');
	CREATE TABLE business (key int, n int, PRIMARY KEY (key, n));
	CREATE TABLE recorded (seq bigserial, event_id uuid, key int, n int);

	-- Counts a key up, and tells so. Another count is taken back.
	CREATE FUNCTION count_up(command jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
	DECLARE
		k int := command->>'key';
		next int;
	BEGIN
		PERFORM pg_advisory_xact_lock(2, k);
		SELECT coalesce(max(n), 0) + 1 INTO next FROM business WHERE key = k;
		BEGIN
			INSERT INTO business VALUES (k, -next);
			PERFORM cqrs_emit('counted', jsonb_build_object('n', -next), key => k::text);
			RAISE EXCEPTION 'no';
		EXCEPTION WHEN raise_exception THEN
		END;
		INSERT INTO business VALUES (k, next);
		PERFORM cqrs_emit('counted', jsonb_build_object('n', next), key => k::text);
		RETURN NULL;
	END $$;
	SELECT cqrs_register_command('CountUp', 'count_up(jsonb)');

	CREATE FUNCTION record_count(event cqrs_event) RETURNS void LANGUAGE sql SET search_path = public AS $$
		INSERT INTO recorded (event_id, key, n) VALUES (event.event_id, event.key::int, (event.payload->>'n')::int)
	$$;
	SELECT cqrs_subscribe('recorder', ARRAY['counts'], 'record_count(cqrs_event)');
	SELECT cqrs_subscribe('outside', ARRAY['counts']);
));

my $script = $node->basedir . '/count_up.sql';
append_to_file($script, q(
\set key random(1, 6)
SELECT cqrs_send('CountUp', jsonb_build_object('key', :key));
));

# What the consumer outside was given: [event id, key, n].
my @outside;
my %given;

sub receive
{
	my ($session) = @_;
	my $answer = $session->query("BEGIN; SELECT 'event', position, receipt, event_id, key, payload->>'n' FROM cqrs_receive('outside', 50); COMMIT");
	my @batch;

	$session->{positions} = [];
	while ($answer =~ /^event\|(\d+)\|([^|]+)\|(.*)$/mg)
	{
		push @{ $session->{positions} }, $1;
		$session->{receipt} = $2;
		push @batch, $3;
	}
	for (@batch)
	{
		push @outside, [ split /\|/ ];
		$given{$_} = 1;
	}
	return scalar @batch;
}

# Acknowledge what was received, in another transaction.
sub acknowledge
{
	my ($session) = @_;
	my $positions = join ',', @{ $session->{positions} };

	$session->query("SELECT cqrs_ack('outside', '{$positions}', '$session->{receipt}')");
}

# From here on, the log is written only by commits that wait for that.
my $wal_writer;

sub stop_wal_writer
{
	$wal_writer = $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'");
	kill 'STOP', $wal_writer or die 'there is no WAL writer';
}

# Two ways to crash: the server's process for the log is killed, and everybody
# with it; or the server stops at once.
sub crash
{
	my ($kill) = @_;
	my $offset = -s $node->logfile;

	if ($kill)
	{
		kill 'KILL', $wal_writer;
		$node->wait_for_log(qr/all server processes terminated; reinitializing/, $offset);
		$node->poll_query_until('postgres', 'SELECT true');
	}
	else
	{
		$node->stop('immediate');
		$node->start;
	}
}

# What was given must have happened.
sub phantoms
{
	my %business = map { $_ => 1 } split /\n/, $node->safe_psql('postgres', 'SELECT key, n FROM business');

	return grep { defined } (grep { !$business{ join '|', (split /\|/)[ 1, 2 ] } } keys %given)[ 0 .. 4 ];
}

for my $synchronous_commit (qw(off on off on))
{
	my $at_least = @outside + 300;
	my ($out, $err) = ('', '');
	my $pgbench;
	my $consumer;

	# For everybody: emitters, our processes, and the consumer.
	$node->safe_psql('postgres', "ALTER SYSTEM SET synchronous_commit = $synchronous_commit");
	$node->reload;
	$node->poll_query_until('postgres', "SELECT current_setting('synchronous_commit') = '$synchronous_commit'");
	stop_wal_writer() if $synchronous_commit eq 'off';
	$pgbench = IPC::Run::start(
		[ 'pgbench', '-n', '-c', '3', '-T', '600', '-f', $script, $node->connstr('postgres') ],
		'>', \$out, '2>', \$err);
	$consumer = new_session($node, 'postgres');

	# Acknowledge all but the last.
	while (@outside < $at_least)
	{
		die "pgbench ended: $err" unless $pgbench->pumpable;
		acknowledge($consumer) if receive($consumer) > 0;
	}
	receive($consumer);
	crash($synchronous_commit eq 'off');
	$consumer->quit;
	eval { $pgbench->finish };

	is(join(', ', phantoms()), '', "synchronous_commit = $synchronous_commit: nothing was given that did not happen");
}

# All there is left.
my $count = $node->safe_psql('postgres', 'SELECT count(*) FROM business');
my $consumer = new_session($node, 'postgres');

$node->safe_psql('postgres', q(SELECT cqrs_send('CountUp', '{"key": 1}')));
$count++;
ok(wait_recorded($node, 'postgres', $count), 'the handler got every event');
receive($consumer) and acknowledge($consumer) until is_drained();

sub is_drained
{
	return $node->safe_psql('postgres', q(SELECT lag_events FROM cqrs_subscription_status WHERE subscription = 'outside')) eq '0';
}

cmp_ok($count, '>', 900, 'there was a load');
is($node->safe_psql('postgres', 'SELECT count(*), count(DISTINCT event_id), count(DISTINCT (key, n)) FROM recorded'),
	"$count|$count|$count", 'each exactly once');
is($node->safe_psql('postgres', '(SELECT key, n FROM business EXCEPT SELECT key, n FROM recorded) UNION ALL (SELECT key, n FROM recorded EXCEPT SELECT key, n FROM business)'),
	'', 'and those that happened');
is($node->safe_psql('postgres', 'SELECT count(*) FROM (SELECT n - lag(n, 1, 0) OVER (PARTITION BY key ORDER BY seq) AS step FROM recorded) s WHERE step <> 1'),
	'0', 'each key in order');
is($node->safe_psql('postgres', "SELECT count(*) FROM cqrs_topics.counts"), $count, 'what the topic holds is what happened');

# The consumer outside: every event at least once, and in order.
my %next;
my %seen;
my $disorder = '';

for (@outside)
{
	my ($event_id, $key, $n) = @$_;

	next if $seen{$event_id}++;
	$disorder .= "key $key: $n; " if $n != ++$next{$key};
}
is(scalar(keys %seen), $count, 'the consumer outside got every event');
is(substr($disorder, 0, 200), '', 'each key in order');
$consumer->quit;
$node->stop;

done_testing();
