# A load of every way to emit and to consume; ways to end the server, or a
# part of it, under that load; and what to compare in the end.
#
# Emitters log in table "truth" what they emit, in the same transaction. So
# what "truth" holds in the end is what happened, however a commit that was
# never answered went. Each event carries a tag, which "truth" has too; an
# event with a key also a number, counted up in a row that stays locked until
# the end of the transaction: so of two events of one key, the one with the
# higher number was emitted after the other's commit.

package CrashHarness;

use strict;
use warnings;

use Exporter 'import';
use IPC::Run;
use List::Util qw(shuffle);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Time::HiRes qw(usleep);

our @EXPORT = qw(set_up start_load stop_load strike finish differences);

my $SETUP = q(
CREATE EXTENSION cqrs_outbox;
SELECT cqrs_create_topic('orders', '0'), cqrs_create_topic('payments', '0');
SELECT cqrs_register_event('happened', 'orders');

-- Emitters wait for the keys k1 to k8. Nobody waits for the others: those are
-- for transactions that are prepared, and hold them for long.
CREATE TABLE counter (key text PRIMARY KEY, n bigint);
INSERT INTO counter SELECT 'k' || k, 0 FROM generate_series(1, 8) k;
INSERT INTO counter SELECT 'prepared' || k, 0 FROM generate_series(1, 40) k;

CREATE FUNCTION count_up(counted text, OUT n bigint) LANGUAGE sql AS $$
	UPDATE counter SET n = counter.n + 1 WHERE key = counted RETURNING counter.n
$$;

CREATE TABLE truth (tag uuid PRIMARY KEY, event_id uuid, topic text, key text, n bigint);

-- One event.
CREATE FUNCTION emit(topic text, key text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	tag uuid := gen_random_uuid();
	n bigint := count_up(key);
BEGIN
	INSERT INTO truth
	VALUES (tag, cqrs_emit('happened', jsonb_build_object('tag', tag, 'n', n), key => key, topic => topic),
			topic, key, n);
END $$;

-- Many: one with a key, one with the other, one without, and so on.
CREATE FUNCTION emit_many(events int, key text, other_key text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	k text;
	n bigint;
	tag uuid;
	payloads jsonb[];
	keys text[];
BEGIN
	FOR i IN 0 .. events - 1 LOOP
		k := (ARRAY[key, other_key, NULL])[1 + i % 3];
		n := count_up(k);
		tag := gen_random_uuid();
		INSERT INTO truth VALUES (tag, NULL, 'orders', k, n);
		keys[i] := k;
		payloads[i] := jsonb_build_object('tag', tag, 'n', n);
	END LOOP;
	PERFORM cqrs_emit_many('happened', payloads, keys);
END $$;

-- In subtransactions, one inside the other: half of the outer ones, and all
-- of the inner, are rolled back.
CREATE FUNCTION emit_nested(events int, key text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. events LOOP
		BEGIN
			PERFORM emit('orders', key);
			BEGIN
				PERFORM emit('payments', key);
				RAISE division_by_zero;
			EXCEPTION WHEN division_by_zero THEN
			END;
			IF i % 2 = 0 THEN
				RAISE no_data_found;
			END IF;
		EXCEPTION WHEN no_data_found THEN
		END;
	END LOOP;
END $$;

-- With a key that no prepared transaction holds.
CREATE FUNCTION emit_free(topic text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	free text;
BEGIN
	SELECT key INTO STRICT free FROM counter WHERE key LIKE 'prepared%'
	ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED;
	PERFORM emit(topic, free);
END $$;

-- What each subscription got; seq is in the order of arrival.
CREATE TABLE arrived (seq bigserial, subscription text, tag uuid, event_id uuid, topic text, key text, n bigint, attempts int);
CREATE FUNCTION arrive(subscription text, event cqrs_event) RETURNS void LANGUAGE sql SET search_path = public AS $$
	INSERT INTO arrived (subscription, tag, event_id, topic, key, n, attempts)
	VALUES (subscription, (event.payload->>'tag')::uuid, event.event_id, event.topic, event.key,
			(event.payload->>'n')::bigint, event.attempts)
$$;

-- One event in a thousand fails at its first attempt, if one lets it.
CREATE FUNCTION fails(tag text) RETURNS boolean IMMUTABLE LANGUAGE sql AS $$ SELECT tag < '004' $$;
CREATE FUNCTION fails_now(event cqrs_event) RETURNS boolean LANGUAGE sql SET search_path = public AS $$
	SELECT event.attempts = 0 AND fails(event.payload->>'tag')
$$;
CREATE FUNCTION arrive_or_fail(subscription text, event cqrs_event) RETURNS void LANGUAGE plpgsql
	SET search_path = public AS $$
BEGIN
	PERFORM arrive(subscription, event);
	IF fails_now(event) THEN
		RAISE EXCEPTION 'not at the first attempt';
	END IF;
END $$;

CREATE FUNCTION record(event cqrs_event) RETURNS void LANGUAGE sql AS $$
	SELECT public.arrive('recorder', event)
$$;
CREATE FUNCTION endure(event cqrs_event) RETURNS void LANGUAGE sql AS $$
	SELECT public.arrive_or_fail('flaky', event)
$$;
CREATE FUNCTION spread(event cqrs_event) RETURNS void LANGUAGE sql AS $$
	SELECT public.arrive_or_fail('spread', event)
$$;
SELECT cqrs_subscribe('recorder', ARRAY['orders', 'payments'], 'record(cqrs_event)'),
	   cqrs_subscribe('flaky', ARRAY['orders', 'payments'], 'endure(cqrs_event)'),
	   cqrs_subscribe('spread', ARRAY['orders', 'payments'], 'spread(cqrs_event)', partitions => 3);

-- Receive a batch, and work on so many of its events, up to one that fails.
CREATE FUNCTION pull(subscription text, batch_size int, worked_on int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	event cqrs_event;
	last bigint;
BEGIN
	FOR event IN SELECT * FROM cqrs_receive(subscription, batch_size) LIMIT worked_on LOOP
		IF fails_now(event) THEN
			PERFORM cqrs_nack(subscription, event.position, 'not at the first attempt');
			RETURN;
		END IF;
		PERFORM arrive(subscription, event);
		last := event.position;
	END LOOP;
	IF last IS NOT NULL THEN
		PERFORM cqrs_ack(subscription, last);
	END IF;
END $$;
SELECT cqrs_subscribe('puller', ARRAY['orders', 'payments']),
	   cqrs_subscribe('sharers', ARRAY['orders', 'payments'], partitions => 2);
);

# What emitters do. Who needs two keys takes the lower one first.
my %EMITTERS = (
	one => q(
		SELECT emit('orders', 'k' || :a);
	),
	no_key => q(
		SELECT emit('payments', NULL);
	),
	topics => q(
		BEGIN;
		SELECT emit('orders', 'k' || :a);
		SELECT emit('payments', 'k' || :a);
		SELECT emit('orders', 'k' || :b);
		SELECT emit('payments', NULL);
		COMMIT;
	),
	savepoints => q(
		BEGIN;
		SELECT emit('orders', 'k' || :a);
		SAVEPOINT one;
		SELECT emit('payments', 'k' || :a);
		ROLLBACK TO one;
		SELECT emit('orders', 'k' || :a);
		RELEASE one;
		SAVEPOINT two;
		SELECT emit('payments', 'k' || :b);
		SAVEPOINT three;
		SELECT emit('orders', 'k' || :b);
		RELEASE three;
		SAVEPOINT four;
		SELECT emit('orders', 'k' || :b);
		ROLLBACK TO four;
		COMMIT;
	),
	nested => q(
		SELECT emit_nested(:b, 'k' || :a);
	),
	many => q(
		SELECT emit_many(10 * :b, 'k' || :a, 'k' || :b);
	),
	slow => q(
		BEGIN;
		SELECT emit('orders', NULL);
		\sleep 50 ms
		SELECT emit('orders', 'k' || :a);
		COMMIT;
	),
	rolled_back => q(
		BEGIN;
		SELECT emit('orders', 'k' || :a);
		SELECT emit_many(20, 'k' || :a, 'k' || :b);
		ROLLBACK;
	));

# What consumers do: everything, a part, and nothing in the end.
my %CONSUMERS = (
	all => q(
		SELECT pull((ARRAY['puller', 'sharers'])[:who], 100, 100);
	),
	part => q(
		SELECT pull((ARRAY['puller', 'sharers'])[:who], 50, 20);
	),
	nothing => q(
		BEGIN;
		SELECT pull((ARRAY['puller', 'sharers'])[:who], 20, 20);
		ROLLBACK;
	));

# Which process to end, and how. SIGKILL of any has the server end all.
my @STRIKES = (
	(map { [ KILL => $_ ] } 'client backend', 'cqrs_outbox worker', 'cqrs_outbox manager',
		'cqrs_outbox launcher', 'checkpointer', 'walwriter'),
	(map { [ TERM => $_ ] } 'client backend', 'cqrs_outbox worker', 'cqrs_outbox manager', 'cqrs_outbox launcher'),
	[ KILL => 'postmaster' ], [ STOP => 'immediate' ], [ STOP => 'fast' ]);

# set_up(SERVER)
sub set_up
{
	my ($node) = @_;

	$node->safe_psql('postgres', $SETUP);
}

# script(SERVER, NAME, TEXT): its file.
sub script
{
	my ($node, $name, $text) = @_;
	my $file = $node->basedir . "/$name.sql";

	if (!-e $file)
	{
		$text =~ s/^\t+//mg;
		append_to_file($file, "\\set a random(1, 7)\n\\set b random(:a + 1, 8)\n\\set who random(1, 2)\n$text");
	}
	return ('-f', $file);
}

sub start
{
	my (@command) = @_;

	return IPC::Run::start(\@command, '<', \undef, '>', '/dev/null', '2>', '/dev/null');
}

sub pgbench
{
	my ($node, @options) = @_;

	return start('pgbench', '-n', '-T', '600', '--random-seed=' . int(rand(2**31)), @options, $node->connstr('postgres'));
}

sub start_consumers
{
	my ($node) = @_;

	return pgbench($node, '-c', '3', map { script($node, $_, $CONSUMERS{$_}) } sort keys %CONSUMERS);
}

# prepare_sql(CYCLE, TRANSACTIONS...): for a session that resolves some of
# these, and prepares others, for later cycles to resolve.
sub prepare_sql
{
	my ($cycle, @unresolved) = @_;
	my @statements;

	for my $i (1 .. 4)
	{
		push @statements, "BEGIN; SELECT emit_free('orders'); SAVEPOINT s; SELECT emit_free('payments'); "
		  . ($i % 2 ? 'ROLLBACK TO s; ' : '')
		  . "SELECT emit('orders', NULL); PREPARE TRANSACTION 'cycle $cycle, $i';\n";
	}
	for (@unresolved)
	{
		push @statements, (rand() < 0.7 ? 'COMMIT' : 'ROLLBACK') . " PREPARED '$_';\n" if rand() < 0.6;
	}
	return map { sprintf("SELECT pg_sleep(%.2f);\n%s", rand(0.2), $_) } shuffle @statements;
}

# unresolved(SERVER): prepared transactions.
sub unresolved
{
	my ($node) = @_;

	return split /\n/, $node->safe_psql('postgres', 'SELECT gid FROM pg_prepared_xacts ORDER BY gid');
}

# start_load(SERVER, CYCLE): emitters, consumers, and a session that prepares;
# for stop_load() to end.
sub start_load
{
	my ($node, $cycle) = @_;
	my $prepare = $node->basedir . "/prepare_$cycle.sql";
	my $rate = (200, 1000, 5000)[ rand 3 ];

	append_to_file($prepare, join '', prepare_sql($cycle, unresolved($node)));
	local $ENV{PGOPTIONS} = '-c synchronous_commit=' . (rand() < 0.5 ? 'on' : 'off');
	return (
		pgbench($node, '-c', '6', '-R', $rate, map { script($node, $_, $EMITTERS{$_}) } sort keys %EMITTERS),
		start_consumers($node),
		start('psql', '-Xq', '-d', $node->connstr('postgres'), '-f', $prepare));
}

# stop_load(CLIENTS...): they vanish, in the middle of what they do.
sub stop_load
{
	$_->kill_kill for @_;
}

# pids(SERVER, PATTERN): of processes of such types.
sub pids
{
	my ($node, $pattern) = @_;

	return split /\n/, $node->safe_psql('postgres',
		"SELECT pid FROM pg_stat_activity WHERE backend_type LIKE '$pattern' AND pid <> pg_backend_pid()");
}

# strike(SERVER): something happens to it. Returns what; it is up again.
sub strike
{
	my ($node) = @_;
	my ($signal, $victim) = @{ $STRIKES[ rand @STRIKES ] };
	my $offset = -s $node->logfile;
	my @pids;

	if ($signal eq 'STOP')
	{
		$node->stop($victim);
		$node->start;
		return "$victim shutdown";
	}
	if ($victim eq 'postmaster')
	{
		@pids = pids($node, '%');
		$node->kill9;

		# Until all its children have noticed, there can be no other.
		usleep(10_000) while grep { kill 0, $_ } @pids;
		usleep(100_000) until $node->start(fail_ok => 1);
		return 'postmaster killed';
	}

	@pids = pids($node, $victim);
	return "no $victim" unless @pids && kill $signal, $pids[ rand @pids ];
	return "$victim terminated" if $signal eq 'TERM';
	$node->wait_for_log(qr/all server processes terminated; reinitializing/, $offset);
	for (1 .. 20 * $PostgreSQL::Test::Utils::timeout_default)
	{
		# Nothing is written to a psql that cannot connect: it may be gone.
		return "$victim killed"
			if start('psql', '-Xq', '-d', $node->connstr('postgres'), '-c', 'SELECT true')->finish;
		usleep(50_000);
	}
	die 'the server did not come back';
}

# finish(SERVER): restart, resolve what is prepared, and wait until everything
# is delivered. Returns whether it was.
sub finish
{
	my ($node) = @_;
	my $consumers;
	my $drained;

	$node->restart;
	$node->safe_psql('postgres', (rand() < 0.7 ? 'COMMIT' : 'ROLLBACK') . " PREPARED '$_'") for unresolved($node);
	$consumers = start_consumers($node);
	$drained = $node->poll_query_until('postgres', 'SELECT sum(lag_events + retrying + waiting) = 0 FROM cqrs_subscription_status');
	$consumers->kill_kill;
	return $drained;
}

# differences(SERVER, SUBSCRIPTION): of what arrived and the truth, a list each
# of what must not be: the first few.
sub differences
{
	my ($node, $subscription) = @_;
	my $arrived = "(SELECT * FROM arrived WHERE subscription = '$subscription')";
	my %queries = (
		lost => "SELECT tag FROM truth EXCEPT SELECT tag FROM $arrived a",
		invented => "SELECT tag FROM $arrived a EXCEPT SELECT tag FROM truth",
		twice => "SELECT tag FROM $arrived a GROUP BY tag HAVING count(*) > 1",
		id_twice => "SELECT event_id FROM $arrived a GROUP BY event_id HAVING count(*) > 1",
		changed => "SELECT tag FROM $arrived a JOIN truth t USING (tag)
			WHERE (a.topic, a.key, a.n) IS DISTINCT FROM (t.topic, t.key, t.n) OR a.event_id <> t.event_id",
		disorder => "SELECT format('%s %s: %s after %s', topic, key, n, before)
			FROM (SELECT topic, key, n, lag(n) OVER (PARTITION BY topic, key ORDER BY seq) AS before
				  FROM $arrived a WHERE key IS NOT NULL) s
			WHERE n <= before");

	return { map { $_ => $node->safe_psql('postgres', "$queries{$_} LIMIT 5") } keys %queries };
}

1;
