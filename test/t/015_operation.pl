# Partitions are delivered side by side; a handler that is blocked holds up
# nobody else; a subscription that is paused gets nothing; cqrs_wait() waits
# until one is delivered; and clients that listen are notified.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main', "cqrs_outbox.max_workers = 4\n");
$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('happened', 'things');
	CREATE TABLE recorded (seq serial, pid integer, key text, payload jsonb);
	CREATE FUNCTION on_thing(event cqrs_event) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
	BEGIN
		PERFORM pg_advisory_xact_lock_shared(hashtext(event.key));
		INSERT INTO recorded (pid, key, payload) VALUES (pg_backend_pid(), event.key, event.payload);
	END $$;
	SELECT cqrs_subscribe('things', ARRAY['things'], 'on_thing(cqrs_event)', partitions => 2);
));

# Two keys of different partitions, found by whose cursor they move.
sub emit
{
	my ($key, $n) = @_;

	$node->safe_psql('postgres', "SELECT cqrs_emit('happened', '{\"n\": $n}', key => '$key')");
}

my %partition;
for my $key ('a' .. 'z')
{
	my $before = $node->safe_psql('postgres', 'SELECT coalesce(sum(delivered), 0) FROM (SELECT max(delivered) AS delivered FROM cqrs.cursor WHERE partition = 1) c');
	emit($key, 0);
	is($node->safe_psql('postgres', "SELECT cqrs_wait('things', '60 s')"), 't', "key $key is delivered");
	my $after = $node->safe_psql('postgres', 'SELECT coalesce(sum(delivered), 0) FROM (SELECT max(delivered) AS delivered FROM cqrs.cursor WHERE partition = 1) c');
	$partition{ $after - $before } //= $key;
	last if keys %partition == 2;
}
my ($one, $other) = @partition{ 0, 1 };

my $locker = new_session($node, 'postgres');
$locker->query("SELECT pg_advisory_lock(hashtext('$one'))");
$node->safe_psql('postgres', 'TRUNCATE recorded');
emit($one, 1);
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"),
	'the handler of one partition is blocked');
emit($_, 2) for $other, $one, $other;
ok($node->poll_query_until('postgres', 'SELECT count(*) = 2 FROM recorded'), 'the other partition goes on');
is($node->safe_psql('postgres', "SELECT string_agg(DISTINCT key, ' ') FROM recorded"), $other, 'with its own keys');
is($node->safe_psql('postgres', "SELECT cqrs_wait('things', '1 ms')"), 'f', 'waiting for all of it takes too long');
my $waiter = new_session($node, 'postgres');
$waiter->begin("SELECT cqrs_wait('things', '60 s')");
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE query ~ '60 s' AND wait_event_type = 'Extension'"),
	'somebody waits');
$locker->query('SELECT pg_advisory_unlock_all()');
is($waiter->finish, 't', 'until it is delivered');
is($node->safe_psql('postgres', "SELECT string_agg(payload->>'n', ' ' ORDER BY seq) FROM recorded WHERE key = '$one'"), '1 2',
	'in order by key');
is($node->safe_psql('postgres', 'SELECT count(DISTINCT pid) FROM recorded'), 2, 'by two workers');

# Another subscription is not held up, either: by neither of two partitions.
$node->safe_psql('postgres', q(
	CREATE TABLE other (seq serial, n integer);
	CREATE FUNCTION on_other(event cqrs_event) RETURNS void LANGUAGE sql SET search_path = public AS $$
		INSERT INTO other (n) VALUES ((event.payload->>'n')::integer) $$;
	SELECT cqrs_subscribe('other', ARRAY['things'], 'on_other(cqrs_event)', start => 'latest');
));
$locker->query("SELECT pg_advisory_lock(hashtext('$_'))") for $one, $other;
emit($_, 3) for $one, $other;
ok($node->poll_query_until('postgres', "SELECT count(*) = 2 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"),
	'two workers are blocked');
emit($one, $_) for 4 .. 6;
is($node->safe_psql('postgres', "SELECT cqrs_wait('other', '60 s')"), 't', 'another subscription gets its events meanwhile');
is($node->safe_psql('postgres', "SELECT string_agg(n::text, ' ' ORDER BY seq) FROM other"), '3 3 4 5 6', 'all of them');

# A subscription is paused once the batch under way is over.
my $pauser = new_session($node, 'postgres');
$pauser->begin("SELECT cqrs_pause('things')");
ok($node->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM pg_stat_activity a JOIN pg_locks l USING (pid) WHERE a.query ~ 'cqrs_pause' AND l.locktype = 'object' AND NOT l.granted"),
	'pausing waits for the batch under way');
$locker->query('SELECT pg_advisory_unlock_all()');
$pauser->finish;
my $before = $node->safe_psql('postgres', 'SELECT count(*) FROM recorded');
emit($one, 7);
is($node->safe_psql('postgres', "SELECT cqrs_wait('other', '60 s')"), 't', 'another one goes on');
is($node->safe_psql('postgres', 'SELECT count(*) FROM recorded'), $before, 'the paused one gets nothing');
is($node->safe_psql('postgres', "SELECT state FROM cqrs_subscription_status WHERE subscription = 'things'"), 'paused', 'and says so');
$node->safe_psql('postgres', "SELECT cqrs_resume('things')");
is($node->safe_psql('postgres', "SELECT cqrs_wait('things', '60 s')"), 't', 'until it is resumed');
is($node->safe_psql('postgres', "SELECT string_agg(payload->>'n', ' ' ORDER BY seq) FROM recorded WHERE key = '$one'"), '1 2 3 4 5 6 7',
	'it has missed nothing');

# Moved back, it gets everything again.
$node->safe_psql('postgres', "TRUNCATE recorded; SELECT cqrs_seek('things', 'earliest')");
is($node->safe_psql('postgres', "SELECT cqrs_wait('things', '60 s')"), 't', 'a subscription is moved back');
is($node->safe_psql('postgres', "SELECT string_agg(payload->>'n', ' ' ORDER BY seq) FROM recorded WHERE key = '$one'"), '0 1 2 3 4 5 6 7',
	'and gets all again, in order by key');

# A slow handler keeps no transaction open for long: a batch ends after a while.
$node->safe_psql('postgres', q(
	SELECT cqrs_unsubscribe('things'), cqrs_unsubscribe('other');
	CREATE TABLE slow (xid xid8, took interval);
	CREATE FUNCTION on_slow(event cqrs_event) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
	BEGIN
		PERFORM pg_sleep(0.01);
		INSERT INTO slow VALUES (pg_current_xact_id(), clock_timestamp() - transaction_timestamp());
	END $$;
	SELECT cqrs_emit_many('happened', array_agg(jsonb_build_object('n', n))) FROM generate_series(1, 200) n;
	SELECT cqrs_subscribe('slow', ARRAY['things'], 'on_slow(cqrs_event)');
));
is($node->safe_psql('postgres', "SELECT cqrs_wait('slow', '60 s')"), 't', 'a slow handler');
is($node->safe_psql('postgres', "SELECT count(DISTINCT xid) > 1, max(took) < '2 s' FROM slow"), 't|t', 'is called in several transactions, none of them long');

# Clients that pull and listen are told, once it can be received.
$node->safe_psql('postgres', "SELECT cqrs_subscribe('pull', ARRAY['things'], start => 'latest')");
my $listener = new_session($node, 'postgres');
$listener->query('LISTEN things');
emit($one, 8);
ok(wait_until(sub { $listener->query('SELECT pg_sleep(0.1)') =~ /Asynchronous notification "things"/ }), 'who listens is notified');
is($node->safe_psql('postgres', "SELECT payload->>'n' FROM cqrs_receive('pull')"), '8', 'and can receive');

# What failed, and is tried again, has not been got; nor what was given up.
$node->safe_psql('postgres', q(
	CREATE TABLE broken (n integer);
	INSERT INTO broken VALUES (1);
	CREATE FUNCTION fails(event cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		IF EXISTS (SELECT FROM broken WHERE n = (event.payload->>'n')::integer) THEN RAISE 'broken'; END IF;
	END $$;
	SELECT cqrs_subscribe('fails', ARRAY['things'], 'fails', start => 'latest', max_attempts => 2, retry_delay => '1 h')));
emit('a', 1);
ok(wait_status($node, 'postgres', 'fails', '0/1/0/0'), 'an event failed');
is($node->safe_psql('postgres', "SELECT cqrs_wait('fails', '10 ms')"), 'f', '... and is waited for');
$waiter->begin("SELECT cqrs_wait('fails', '60 s')");
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE query ~ '60 s' AND wait_event_type = 'Extension'"),
	'somebody waits for it');
emit('b', 2);
$node->safe_psql('postgres', "SELECT cqrs_retry_all('fails')");
like($waiter->finish, qr/NOTICE:  subscription "fails" has dead letters.*^f$/ms, '... and is told that it was given up');
my ($code, $out, $err) = $node->psql('postgres', "SELECT cqrs_wait('fails', '60 s')");
is($out, 'f', 'whoever comes later, too');
my $now = $node->safe_psql('postgres', 'SELECT clock_timestamp()');
emit('c', 3);
is($node->safe_psql('postgres', "SELECT cqrs_wait('fails', '60 s', since => '$now')"), 't', 'unless he asks for what was emitted since');
$node->safe_psql('postgres', 'INSERT INTO broken VALUES (4)');
emit('d', 4);
is($node->safe_psql('postgres', "SELECT cqrs_wait('fails', '100 ms', since => '$now')"), 'f', '... and that is not given up, either');
ok(wait_status($node, 'postgres', 'fails', '0/1/0/1'), '... which it is not yet');
is($node->safe_psql('postgres', "SELECT cqrs_wait('fails', '60 s', since => clock_timestamp())"), 't', 'what waits from before does not count, either');
$node->safe_psql('postgres', "TRUNCATE broken; SELECT cqrs_redrive_all('fails')");
$node->safe_psql('postgres', "SELECT cqrs_retry_all('fails')");
is($node->safe_psql('postgres', "SELECT cqrs_wait('fails', '60 s')"), 't', 'delivered after all');

# It says what will not end by itself.
$node->safe_psql('postgres', q(
	CREATE FUNCTION gone(event cqrs_event) RETURNS void LANGUAGE sql AS '';
	SELECT cqrs_subscribe('gone', ARRAY['things'], 'gone', start => 'latest'), cqrs_subscribe('pulled', ARRAY['things'], start => 'latest');
	DROP FUNCTION gone));
emit('a', 5);
for ([ 'gone', 'Its handler public.gone(public.cqrs_event) does not exist.' ], [ 'pulled', 'It has neither a handler nor a server' ],
	[ 'gone', 'It is paused.', "SELECT cqrs_pause('gone')" ], [ 'gone', 'as cqrs_outbox.deliver is off', "SELECT cqrs_resume('gone')", 'deliver = off' ])
{
	my ($subscription, $detail, $sql, $setting) = @$_;

	$node->safe_psql('postgres', $sql) if defined $sql;
	reconfigure($node, "cqrs_outbox.$setting") if defined $setting;
	($code, $out, $err) = $node->psql('postgres', "SELECT cqrs_wait('$subscription', '1 ms')");
	like("$err$out", qr/NOTICE:  subscription "$subscription" has not got everything\nDETAIL:  .*\Q$detail\E.*f$/s, "it says: $detail");
}

$node->stop;
done_testing();
