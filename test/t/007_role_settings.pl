# Handlers run in a session of the subscription's owner, whatever ALTER ROLE
# and ALTER DATABASE set for ordinary sessions; and one owner's handler that
# fails or blocks concerns nobody else.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main');

$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	CREATE ROLE alice LOGIN;
	CREATE ROLE bob LOGIN;
	CREATE ROLE mallory;
	GRANT mallory TO alice, bob, postgres;
	GRANT CREATE ON SCHEMA public TO alice, bob;
	GRANT EXECUTE ON FUNCTION cqrs_subscribe, cqrs_unsubscribe TO alice, bob;
	SELECT cqrs_register_event('happened', 'things');
	SELECT cqrs_register_event('failed', 'failures');
	GRANT SELECT ON cqrs_topics.things, cqrs_topics.failures TO alice, bob;
	CREATE TABLE recorded (seq serial, n int, who text, settings text);
	GRANT INSERT ON recorded TO alice, bob;
	GRANT USAGE ON SEQUENCE recorded_seq_seq TO alice, bob;
	CREATE TABLE broken (yes bool);
	GRANT SELECT ON broken TO alice;
));

# What would be in the way of the worker.
my %setting = (
	default_transaction_read_only => 'on',
	default_transaction_isolation => 'serializable',
	default_transaction_deferrable => 'on',
	search_path => 'public, nowhere',
	statement_timeout => '1ms',
	lock_timeout => '1ms',
	idle_in_transaction_session_timeout => '1ms',
	row_security => 'off',
	role => 'mallory');

# Our own sessions do without them.
$ENV{PGOPTIONS} = '-c default_transaction_read_only=off -c default_transaction_isolation=read\ committed'
  . ' -c default_transaction_deferrable=off -c search_path=public -c statement_timeout=0 -c lock_timeout=0'
  . ' -c idle_in_transaction_session_timeout=0 -c row_security=on -c role=none';

for my $name (sort keys %setting)
{
	my $value = $name eq 'search_path' ? $setting{$name} : "'$setting{$name}'";

	$node->safe_psql('postgres', "ALTER ROLE $_ SET $name = $value") for qw(alice bob);
	next if $name eq 'role';
	$node->safe_psql('postgres', "ALTER DATABASE postgres SET $name = $value");
}

sub as_role
{
	my ($role, $sql) = @_;

	return $node->safe_psql('postgres', $sql, extra_params => [ '-U', $role ]);
}

my $record = q(
	INSERT INTO public.recorded (n, who, settings)
	SELECT (event.payload->>'n')::int, session_user || ' as ' || current_user,
		string_agg(name || '=' || setting, ' ' ORDER BY name)
	FROM pg_settings WHERE name IN ('search_path', 'statement_timeout', 'lock_timeout', 'transaction_isolation', 'transaction_read_only', 'row_security')
);

for my $role (qw(alice bob))
{
	as_role($role, qq(
		CREATE FUNCTION ${role}_record(event cqrs_event) RETURNS void LANGUAGE plpgsql AS \$\$
		BEGIN
			PERFORM pg_advisory_xact_lock_shared(@{[ $role eq 'alice' ? 1 : 2 ]});
			$record;
		END \$\$;
		SELECT cqrs_subscribe('${role}_sub', ARRAY['things'], '${role}_record(cqrs_event)');
	));
}
$node->restart;
wait_managers($node, 'postgres');
emit_numbers($node, 'postgres', 1);
ok($node->poll_query_until('postgres', 'SELECT count(*) = 2 FROM recorded'), 'settings of roles and database do not stop the worker');
my $expected = 'lock_timeout=0 row_security=on search_path=public, pg_temp statement_timeout=0 transaction_isolation=read committed transaction_read_only=off';
is($node->safe_psql('postgres', 'SELECT who, settings FROM recorded ORDER BY who'),
	"alice as alice|$expected\nbob as bob|$expected", "a handler runs as the owner, and the worker's settings are its own");

# The manager's, too: it ticks.
is($node->safe_psql('postgres', 'SELECT count(*) FROM cqrs.failure'), '0', 'nothing has failed');

# One that blocks, of one owner; the other's goes on.
my $holder = hold_handlers($node, 'postgres');
emit_numbers($node, 'postgres', $_) for 2 .. 4;
ok($node->poll_query_until('postgres', "SELECT count(*) = 4 FROM recorded WHERE who LIKE 'bob%'"), 'a blocked handler holds up nobody else');
is($node->safe_psql('postgres', "SELECT count(*) FROM recorded WHERE who LIKE 'alice%'"), '1', 'while it is blocked');
is($node->safe_psql('postgres', 'SELECT subscription, lag_events, state FROM cqrs_subscription_status ORDER BY 1'),
	"alice_sub|3|delivering\nbob_sub|0|idle", 'which the status shows');
$holder->quit;
ok($node->poll_query_until('postgres', "SELECT count(*) = 4 FROM recorded WHERE who LIKE 'alice%'"), 'it goes on when it may');

# One that fails: retried, with its error to be seen, until it works.
as_role('alice', q(
	CREATE FUNCTION alice_fails(event cqrs_event) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
	BEGIN
		IF event.payload->>'n' = '12' AND EXISTS (SELECT FROM broken) THEN
			RAISE EXCEPTION 'cannot do %', event.payload->>'n' USING ERRCODE = 'P0042';
		END IF;
		INSERT INTO recorded (n, who) VALUES ((event.payload->>'n')::int, format('attempt %s', (cqrs_context()).attempts));
	END $$;
	SELECT cqrs_subscribe('alice_fails', ARRAY['failures'], 'alice_fails(cqrs_event)', max_attempts => 0, retry_delay => '200 ms');
));
$node->safe_psql('postgres', 'TRUNCATE recorded; INSERT INTO broken VALUES (true)');
my $offset = -s $node->logfile;
$node->safe_psql('postgres', "SELECT cqrs_emit_many('failed', array_agg(jsonb_build_object('n', n)), array_agg('number'::text)) FROM generate_series(11, 13) n");
ok($node->poll_query_until('postgres', "SELECT max(attempts) >= 2 FROM cqrs_events('failures')"),
	'a handler that fails is called again');
is($node->safe_psql('postgres', "SELECT error, error_sqlstate, state, lag_events, retry_at > error_at, error_position = (SELECT position FROM cqrs_events('failures') WHERE payload->>'n' = '12') FROM cqrs_subscription_status WHERE subscription = 'alice_fails'"),
	'cannot do 12|P0042|waiting|0|t|t', 'the status shows the error');
is($node->safe_psql('postgres', "SELECT string_agg(payload->>'n' || ' ' || status, ', ' ORDER BY position) FROM cqrs_events('failures')"),
	'12 retrying, 13 new', 'so does the outbox');
my $position = $node->safe_psql('postgres', "SELECT position FROM cqrs_events('failures', status => 'retrying')");
ok($node->wait_for_log(qr/ERROR:  cannot do 12\n.*CONTEXT:  .*delivering position $position of topic "failures" to subscription "alice_fails"/s, $offset),
	'and the log, with what was being delivered');
is($node->safe_psql('postgres', 'SELECT n, who FROM recorded'), '11|attempt 1', 'what came before is delivered, and what comes behind waits');
emit_numbers($node, 'postgres', 5);
ok($node->poll_query_until('postgres', 'SELECT count(*) = 2 FROM recorded WHERE n = 5'), 'other subscriptions go on');
$node->safe_psql('postgres', 'DELETE FROM recorded WHERE n = 5; TRUNCATE broken');
ok($node->poll_query_until('postgres', 'SELECT count(*) = 3 FROM recorded'), 'once it works, delivery goes on');
like($node->safe_psql('postgres', "SELECT string_agg(n || ' ' || who, ', ' ORDER BY seq) FROM recorded"),
	qr/^11 attempt 1, 12 attempt ([3-9]|\d\d+), 13 attempt 1$/, 'in order, and the handler knows that it failed before');
is($node->safe_psql('postgres', "SELECT error, retrying, waiting, state, lag_events FROM cqrs_subscription_status WHERE subscription = 'alice_fails'"),
	'|0|0|idle|0', 'the error is over');

# What a handler sets for its session is over when it has been called.
as_role('alice', q(
	CREATE FUNCTION alice_leaves(event cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.recorded (n, who, settings)
		VALUES ((event.payload->>'n')::int, current_user, current_setting('search_path'));
		PERFORM set_config('search_path', 'nowhere', false), set_config('default_transaction_read_only', 'on', false);
		SET ROLE mallory;
	END $$;
	SELECT cqrs_unsubscribe('alice_sub');
	SELECT cqrs_unsubscribe('alice_fails');
	SELECT cqrs_subscribe('alice_leaves', ARRAY['things'], 'alice_leaves(cqrs_event)', start => 'latest');
));
$node->safe_psql('postgres', 'TRUNCATE recorded');
for my $n (21 .. 23)
{
	emit_numbers($node, 'postgres', $n);
	ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM recorded WHERE n = $n AND settings IS NOT NULL AND who = 'alice'"),
		"event $n finds the session as it was");
}
is($node->safe_psql('postgres', "SELECT string_agg(DISTINCT settings, ' ') FROM recorded WHERE who = 'alice'"), 'public, pg_temp', 'with its settings');
$node->stop;

done_testing();
