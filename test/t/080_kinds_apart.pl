# When a subscription, a role, a database, an event or a peer is broken, locked,
# full or slow, the others are as fast as without it. Topics are in
# 070_topics_apart, what does not answer at all in 048_rabbitmq_black_hole and
# 042_broker_servers, keys of one subscription that block each other in
# 015_operation.
#
# The time from an event's commit to its delivery, to a handler and to a peer,
# is measured before each trouble and during it. The median may be up to twice
# what it was before, plus a second: the machine may have other things to do.
# What depends on something in trouble takes longer.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use ExamplePeer;

my $rounds = 15;
my ($good_peer, $bad_peer) = (ExamplePeer->new, ExamplePeer->new);
my $node = new_server('main', "cqrs_outbox.max_workers = 8\ncqrs_outbox.poll_interval = '100ms'\n");

# What a handler of a bad subscription does is what the table says.
my $bad = q(
	CREATE TABLE behaviour (what text, key text);
	GRANT SELECT ON behaviour TO PUBLIC;
	CREATE FUNCTION on_bad(event cqrs_event) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
	DECLARE
		what text;
	BEGIN
		SELECT b.what INTO what FROM behaviour b WHERE b.key IS NULL OR b.key = event.key;
		IF what = 'fails' THEN
			RAISE EXCEPTION 'cannot';
		ELSIF what = 'is slow' THEN
			PERFORM pg_sleep(0.5);
		ELSIF what = 'waits' THEN
			PERFORM pg_advisory_xact_lock_shared(1);
		END IF;
	END $$;
	CREATE FUNCTION bad_command(command jsonb) RETURNS void LANGUAGE sql SET search_path = public AS $$
		SELECT on_bad(NULL)
	$$;
	SELECT cqrs_register_command('Bad', 'bad_command(jsonb)');
	CREATE PROCEDURE emit_bad(events integer) LANGUAGE sql AS $$
		SELECT cqrs_emit('bad', '{}', key => i::text) FROM generate_series(1, events) i
	$$);

$node->start;
$node->safe_psql('postgres', q(
	CREATE ROLE alice LOGIN;
	CREATE ROLE bob LOGIN;
	CREATE DATABASE other));
for my $dbname ('postgres', 'other')
{
	$node->safe_psql($dbname, qq(
		CREATE EXTENSION cqrs_outbox;
		SELECT cqrs_register_event('bad', 'bad');
		GRANT SELECT ON cqrs_topics.bad TO alice;
		GRANT EXECUTE ON FUNCTION cqrs_subscribe TO alice, bob;
		$bad;
		SET ROLE alice;
		SELECT cqrs_subscribe('bad', ARRAY['bad'], 'on_bad(cqrs_event)', max_attempts => 0, retry_delay => '20 ms', max_retry_delay => '200 ms')));
}
$good_peer->create_server($node, 'postgres', 'good_peer');
$bad_peer->create_server($node, 'postgres', 'bad_peer');
$node->safe_psql('postgres', q(
	GRANT USAGE ON FOREIGN SERVER good_peer TO bob;
	GRANT USAGE ON FOREIGN SERVER bad_peer TO bob;
	SELECT cqrs_register_event('good', 'good'), cqrs_register_event('sent', 'sent');
	GRANT SELECT ON cqrs_topics.good, cqrs_topics.sent TO bob;
	CREATE TABLE recorded (seq serial, n int);
	GRANT INSERT ON recorded TO bob;
	GRANT USAGE ON SEQUENCE recorded_seq_seq TO bob;
	CREATE FUNCTION on_good(event cqrs_event) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
	BEGIN
		IF event.key = 'bad' THEN
			RAISE EXCEPTION 'this one fails always';
		END IF;
		INSERT INTO recorded (n) VALUES ((event.payload->>'n')::int);
	END $$;
	SET ROLE bob;
	SELECT cqrs_subscribe('good', ARRAY['good'], 'on_good(cqrs_event)', max_attempts => 0, retry_delay => '20 ms', max_retry_delay => '200 ms'),
		   cqrs_subscribe('good_out', ARRAY['good'], server => 'good_peer', format => 'raw'),
		   cqrs_subscribe('bad_out', ARRAY['sent'], server => 'bad_peer', format => 'raw', max_attempts => 0, retry_delay => '20 ms', max_retry_delay => '200 ms');
	RESET ROLE;
	SELECT cqrs_subscribe('bad_pull', ARRAY['bad']);

	-- Milliseconds from the commit to the delivery, in the median; NULL if one
	-- is not delivered.
	CREATE PROCEDURE measure(events integer, INOUT ms float8) LANGUAGE plpgsql AS $$
	DECLARE
		times float8[];
		begun timestamptz;
	BEGIN
		DELETE FROM recorded;
		COMMIT;
		FOR i IN 1 .. events LOOP
			PERFORM cqrs_emit('good', jsonb_build_object('n', i), key => i::text);
			COMMIT;
			begun := clock_timestamp();
			-- cqrs_wait() would wait for what fails, too.
			WHILE NOT EXISTS (SELECT FROM recorded WHERE n = i) LOOP
				IF clock_timestamp() > begun + interval '30 s' THEN
					RETURN;
				END IF;
				COMMIT;
				PERFORM pg_sleep(0.0005);
			END LOOP;
			IF NOT cqrs_wait('good_out', '30 s') THEN
				RETURN;
			END IF;
			times := times || extract(epoch FROM clock_timestamp() - begun)::float8 * 1000;
			COMMIT;
		END LOOP;
		SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY t) INTO ms FROM unnest(times) t;
	END $$));

my %session = map { $_ => new_session($node, $_) } 'postgres', 'other';

sub in_other { return $node->safe_psql('other', $_[0]); }

# behave(WHAT, KEY): what the handlers of bad subscriptions do, in both databases
sub behave
{
	my ($what, $key) = @_;

	for my $dbname ('postgres', 'other')
	{
		$node->safe_psql($dbname, 'TRUNCATE behaviour'
			  . (defined $what ? "; INSERT INTO behaviour VALUES ('$what', " . (defined $key ? "'$key'" : 'NULL') . ')' : ''));
	}
}

sub end_workers
{
	my ($where) = @_;

	$node->safe_psql('postgres', "SELECT count(pg_terminate_backend(pid, 60000)) FROM pg_stat_activity WHERE backend_type LIKE 'cqrs_outbox%' AND $where");
}

my $has_failed = q(SELECT error IS NOT NULL FROM cqrs_subscription_status WHERE subscription = );
my $is_delivering = q(SELECT count(*) > 0 FROM cqrs_subscription_status WHERE state = 'delivering' AND subscription = );

# What is in trouble, and how; what brings it about; what tells that it is so,
# and where; what ends it.
my @troubles = (
	[ 'subscription', 'broken: its handler is gone',
		sub { query($node, 'ALTER FUNCTION on_bad(cqrs_event) RENAME TO gone; CALL emit_bad(50)') }, postgres => "$has_failed 'bad'",
		sub { query($node, 'ALTER FUNCTION gone(cqrs_event) RENAME TO on_bad') } ],
	[ 'subscription', 'broken: every event fails',
		sub { behave('fails'); query($node, 'CALL emit_bad(200)') }, postgres => "$has_failed 'bad'", sub { behave() } ],
	[ 'subscription', 'locked: its handler waits',
		sub { $session{postgres}->query('SELECT pg_advisory_lock(1)'); behave('waits'); query($node, 'CALL emit_bad(50)') },
		postgres => "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted",
		sub { $session{postgres}->query('SELECT pg_advisory_unlock(1)'); behave() } ],
	[ 'subscription', "locked: its cursor is a client's",
		sub { query($node, 'CALL emit_bad(50)'); $session{postgres}->query("BEGIN; SELECT count(*) FROM cqrs_receive('bad_pull', 10)") },
		postgres => "SELECT held_by_pid IS NOT NULL FROM cqrs_subscription_status WHERE subscription = 'bad_pull'",
		sub { $session{postgres}->query("SELECT cqrs_ack('bad_pull'); COMMIT") } ],
	[ 'subscription', 'full: it keeps too much, and is suspended',
		sub { query($node, q(SELECT cqrs_alter_subscription('bad_pull', max_retained_size => 1); CALL emit_bad(50))) },
		postgres => "SELECT state = 'suspended' FROM cqrs_subscription_status WHERE subscription = 'bad_pull'",
		sub { query($node, q(SELECT cqrs_alter_subscription('bad_pull', max_retained_size => 0); SELECT cqrs_resume('bad_pull'))) } ],
	[ 'subscription', 'slow: with a backlog',
		sub { behave('is slow'); query($node, 'CALL emit_bad(20000)') }, postgres => "$is_delivering 'bad'",
		sub { behave() } ],
	[ 'role', 'broken: it may not connect',
		sub { query($node, 'REVOKE CONNECT ON DATABASE postgres FROM PUBLIC; GRANT CONNECT ON DATABASE postgres TO bob'); end_workers("usename = 'alice'"); query($node, 'CALL emit_bad(50)') },
		postgres => "SELECT count(*) > 0 FROM cqrs_health() WHERE problem = 'owner_connect'", sub { query($node, 'GRANT CONNECT ON DATABASE postgres TO PUBLIC') } ],
	[ 'role', 'full: thousands of its commands wait',
		sub { behave('is slow'); query($node, "SET ROLE alice; SELECT cqrs_create_command_queue(); SELECT count(cqrs_enqueue('Bad', '{}', key => i::text)) FROM generate_series(1, 5000) i") },
		postgres => "$is_delivering 'commands_of_alice'", sub { behave() } ],
	[ 'role', 'slow: in two databases',
		sub { behave('is slow'); query($node, 'CALL emit_bad(100)'); in_other('CALL emit_bad(100)') }, other => "$is_delivering 'bad'", sub { behave() } ],
	[ 'database', 'broken: a table is not there, and the manager ends again and again',
		sub { in_other('ALTER TABLE cqrs.fallback RENAME TO gone'); end_workers("datname = 'other'") },
		postgres => "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox worker' AND datname = 'other'",
		sub { in_other('ALTER TABLE cqrs.gone RENAME TO fallback') } ],
	[ 'database', 'locked: its tables are',
		sub { in_other('CALL emit_bad(50)'); $session{other}->query('BEGIN; LOCK TABLE cqrs.topic, cqrs.subscription, cqrs.cursor, cqrs.tick, cqrs.retry') },
		other => "SELECT count(*) > 3 FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted AND relation IS NOT NULL",
		sub { $session{other}->query('ROLLBACK') } ],
	[ 'database', 'full: it takes no connections',
		sub { in_other('CALL emit_bad(50)'); query($node, 'ALTER DATABASE other ALLOW_CONNECTIONS false'); end_workers("datname = 'other'") },
		postgres => "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox worker' AND datname = 'other'",
		sub { query($node, 'ALTER DATABASE other ALLOW_CONNECTIONS true') } ],
	[ 'database', 'slow: its handler is, with a backlog',
		sub { behave('is slow'); in_other('CALL emit_bad(20000)') }, other => "$is_delivering 'bad'", sub { behave() } ],
	[ 'event', 'broken: it fails again and again, in the same subscription',
		sub { query($node, q(SELECT cqrs_emit('good', '{}', key => 'bad') FROM generate_series(1, 20))) }, postgres => "$has_failed 'good'",
		sub { query($node, q(CREATE OR REPLACE FUNCTION on_good(event cqrs_event) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
			BEGIN INSERT INTO recorded (n) VALUES ((event.payload->>'n')::int); END $$)) } ],
	[ 'event', 'slow: a transaction with events that stays open',
		sub { $session{postgres}->query(q(BEGIN; SELECT count(cqrs_emit('good', '{}')) FROM generate_series(1, 1000))) },
		postgres => "SELECT count(*) > 0 FROM pg_stat_activity WHERE state = 'idle in transaction'",
		sub { $session{postgres}->query('COMMIT') } ],
	[ 'peer', 'broken: nobody is there',
		sub { $bad_peer->stop; query($node, q(SELECT cqrs_emit('sent', '{}') FROM generate_series(1, 50))) }, postgres => "$has_failed 'bad_out'",
		sub { $bad_peer->start } ],
	[ 'peer', 'locked: it accepts connections, and reads nothing',
		sub { $bad_peer->tell('deaf', 1); $bad_peer->tell('close'); query($node, q(SELECT cqrs_emit('sent', '{}') FROM generate_series(1, 50))) },
		postgres => "$is_delivering 'bad_out'",
		sub { $bad_peer->tell('deaf', 0) } ],
	[ 'peer', 'full: it rejects everything',
		sub { $bad_peer->tell('rule', '-full', '.'); query($node, q(SELECT cqrs_emit('sent', '{}', i::text) FROM generate_series(1, 200) i)) }, postgres => "$has_failed 'bad_out'",
		sub { $bad_peer->tell('rule_off') } ],
	[ 'peer', 'slow: it holds back its answers',
		sub { $bad_peer->tell('hold'); query($node, q(SELECT cqrs_emit('sent', '{}') FROM generate_series(1, 50))) }, postgres => "$is_delivering 'bad_out'",
		sub { $bad_peer->tell('release') } ]);

# over(DATABASE): until everything is delivered, but to who has to fetch it
sub over
{
	my ($dbname) = @_;

	return 1 if $node->poll_query_until($dbname,
		"SELECT count(*) = 0 FROM cqrs_subscription_status WHERE subscription <> 'bad_pull' AND (lag_events + retrying + waiting = 0) IS NOT TRUE");
	diag($node->safe_psql($dbname, 'SELECT * FROM cqrs_health()'));
	return 0;
}

sub measure { return query($node, "CALL measure($rounds, NULL)"); }

# In the first round, processes start and caches fill.
measure();
for (@troubles)
{
	my ($kind, $what, $begin, $dbname, $is_so, $end) = @$_;
	my $before = measure();

	$begin->();
	ok($node->poll_query_until($dbname, $is_so), "$kind, $what: it is so");
	my $meanwhile = measure();
	$end->();
	cmp_ok($meanwhile || 'inf', '<=', 2 * $before + 1000, "$kind, $what: the others go on");
	note("$kind, $what: $before ms before, $meanwhile ms meanwhile");
	# A backlog is not waited for: it is passed by.
	query($node, "SELECT cqrs_seek('bad', 'latest')");
	in_other("SELECT cqrs_seek('bad', 'latest')");
	ok(over('postgres') && over('other'), "$kind, $what: and it is over");
}

$_->quit for values %session;
$node->stop('fast');
done_testing();
