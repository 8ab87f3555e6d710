# However many events fail, and wait for their next attempt or behind another one,
# the others are delivered: to a handler, to a client, to a broker. What failed is
# delivered in the end, in order by key.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use ExamplePeer;

my $keys = 3000;
my $node = new_server('main', "log_statement = none\nlog_min_messages = fatal\n");
my $peer = ExamplePeer->new;

$node->start;
$peer->create_server($node, 'postgres', 'peer');
query($node, q(
	CREATE USER MAPPING FOR postgres SERVER peer OPTIONS (token 'swordfish');
	CREATE TABLE broken (pattern text);
	CREATE TABLE handled (seq serial, key text, n int);
	CREATE SEQUENCE calls;
	CREATE FUNCTION on_event(event cqrs_event) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
	BEGIN
		PERFORM nextval('calls');
		IF EXISTS (SELECT FROM broken WHERE event.key LIKE pattern) THEN
			RAISE EXCEPTION 'not today';
		END IF;
		INSERT INTO handled (key, n) VALUES (event.key, (event.payload->>'n')::int);
	END $$;
));

# emit(TOPIC, SELECT): events of these keys, "n" from 1 on, in one transaction
sub emit
{
	my ($topic, $select) = @_;

	query($node, qq(SELECT cqrs_emit_many('$topic', array_agg(jsonb_build_object('n', n) ORDER BY n), array_agg(key ORDER BY n))
		FROM ($select) e));
}

# Keys of their own, of which all but every tenth are bad; and one bad key
# with all others behind it.
my $many = "SELECT n, CASE WHEN n % 10 = 0 THEN 'good' ELSE 'bad' END || n AS key FROM generate_series(1, $keys + $keys / 9) n";
my $one = "SELECT n, CASE WHEN n % 10 = 0 THEN 'good' || n ELSE 'bad' END AS key FROM generate_series(1, $keys + $keys / 9) n";
my $good = int(($keys + int($keys / 9)) / 10);
my $bad = $keys + int($keys / 9) - $good;

# due_now(NAME): what failed is tried again; something new has the worker look.
sub due_now
{
	my ($name) = @_;

	query($node, $due_now);
	emit($name, "SELECT 0 AS n, 'wakes' AS key");
}

my @slow = "retry_delay => '1 day', max_retry_delay => '1 day'";

# ----------------------------------------------------------------------
# A handler
# ----------------------------------------------------------------------

for my $case ([ many => $many, $bad, 0 ], [ one => $one, 1, $bad - 1 ])
{
	my ($name, $select, $retrying, $waiting) = @$case;

	query($node, qq(
		TRUNCATE handled, broken;
		INSERT INTO broken VALUES ('bad%');
		ALTER SEQUENCE calls RESTART;
		SELECT cqrs_register_event('$name', '$name');
		SELECT cqrs_subscribe('$name', ARRAY['$name'], 'on_event(cqrs_event)', @slow);
	));
	emit($name, $select);
	ok(wait_status($node, 'postgres', $name, "0/$retrying/$waiting/0"), "$name: all others are delivered");
	is(query($node, 'SELECT count(*), count(DISTINCT key) FROM handled'), "$good|$good", '... once');
	is(query($node, "SELECT count(*), min(attempts), max(attempts) FROM cqrs.retry r JOIN cqrs.subscription USING (subscription_id)
		WHERE subscription = '$name' AND failed_at IS NOT NULL"), "$retrying|1|1", '... one attempt is counted of each that fails');
	cmp_ok(query($node, 'SELECT last_value FROM calls'), '<=', $good + 2 * $retrying + 1500, '... which costs no other many calls');
	is(query($node, "SELECT count(*) FROM cqrs_events('$name', 100000) WHERE status <> 'delivered'"), $bad, '... and the outbox shows what is not');
	emit($name, "SELECT 1 AS n, 'good' AS key");
	ok(wait_status($node, 'postgres', $name, "0/$retrying/$waiting/0"), 'a later one');
	is(query($node, "SELECT count(*) FROM handled WHERE key = 'good'"), 1, '... is delivered, too');

	query($node, 'TRUNCATE broken');
	due_now($name);
	ok(wait_status($node, 'postgres', $name, '0/0/0/0'), "$name: mended, what failed is delivered");
	is(query($node, "SELECT count(*), count(DISTINCT n) FROM handled WHERE key LIKE 'bad%'"), "$bad|$bad", '... once');
	is(query($node, 'SELECT count(*) FROM (SELECT n < lag(n) OVER (PARTITION BY key ORDER BY seq) AS back FROM handled) h WHERE back'), 0,
		'... in order by key');
	is(query($node, "SELECT count(*) FROM cqrs.retry JOIN cqrs.subscription USING (subscription_id) WHERE subscription = '$name'"), 0,
		'... and nothing is left');
	query($node, "SELECT cqrs_unsubscribe('$name')");
}

# The same with a transaction for each event.
query($node, q(
	TRUNCATE handled;
	INSERT INTO broken VALUES ('bad%');
	SELECT cqrs_register_event('each', 'each');
	SELECT cqrs_subscribe('each', ARRAY['each'], 'on_event(cqrs_event)', transaction => 'event', max_attempts => 2, retry_delay => '1 ms');
));
emit('each', "SELECT n, CASE WHEN n % 2 = 0 THEN 'good' ELSE 'bad' END || n AS key FROM generate_series(1, 400) n");
ok(wait_status($node, 'postgres', 'each', '0/0/0/200'), 'a transaction for each event: what fails is given up');
is(query($node, "SELECT count(*), count(DISTINCT n) FROM handled WHERE key LIKE 'good%'"), '200|200', '... all others are delivered');
is(query($node, "SELECT count(*) FROM cqrs_dead_letters WHERE subscription = 'each' AND attempts = 2"), 200, '... after its attempts');

# ----------------------------------------------------------------------
# A client
# ----------------------------------------------------------------------

query($node, q(
	CREATE TABLE pulled (seq serial, key text, n int);
	CREATE PROCEDURE pull(name text) LANGUAGE plpgsql AS $$
	DECLARE
		received int := 1;
		bad bigint[];
	BEGIN
		WHILE received > 0 LOOP
			CREATE TEMP TABLE IF NOT EXISTS batch (LIKE cqrs_received);
			TRUNCATE batch;
			INSERT INTO batch SELECT * FROM cqrs_receive(name, 1000);
			GET DIAGNOSTICS received = ROW_COUNT;
			INSERT INTO pulled (key, n) SELECT key, (payload->>'n')::int FROM batch
				WHERE NOT EXISTS (SELECT FROM broken WHERE key LIKE pattern) ORDER BY position;
			SELECT array_agg(position) INTO bad FROM (SELECT DISTINCT ON (key) position FROM batch
				WHERE EXISTS (SELECT FROM broken WHERE key LIKE pattern) ORDER BY key, position) b;
			PERFORM cqrs_nack(name, bad, 'not today', '1 day');
			PERFORM cqrs_ack(name, (SELECT array_agg(position) FROM batch
				WHERE NOT EXISTS (SELECT FROM broken WHERE key LIKE pattern)));
			COMMIT;
		END LOOP;
	END $$;
));
for my $case ([ pull_many => $many, $bad ], [ pull_one => $one, 1 ])
{
	my ($name, $select, $retrying) = @$case;

	query($node, qq(
		TRUNCATE pulled, broken;
		INSERT INTO broken VALUES ('bad%');
		SELECT cqrs_register_event('$name', '$name');
		SELECT cqrs_subscribe('$name', ARRAY['$name'], @slow);
	));
	emit($name, $select);
	query($node, "CALL pull('$name')");
	is(query($node, 'SELECT count(*), count(DISTINCT key) FROM pulled'), "$good|$good", "$name: all others are received");
	is(query($node, "SELECT retrying, waiting + retrying FROM cqrs_subscription_status WHERE subscription = '$name'"), "$retrying|$bad",
		'... what was refused is parked, and what is behind it');
	emit($name, "SELECT 1 AS n, 'good' AS key");
	query($node, "CALL pull('$name')");
	is(query($node, "SELECT count(*) FROM pulled WHERE key = 'good'"), 1, '... a later one is received, too');
	query($node, 'TRUNCATE broken');
	due_now($name);
	query($node, "CALL pull('$name')");
	is(query($node, "SELECT count(*), count(DISTINCT n) FROM pulled WHERE key LIKE 'bad%'"), "$bad|$bad", '... and in the end, what failed');
	is(query($node, 'SELECT count(*) FROM (SELECT n < lag(n) OVER (PARTITION BY key ORDER BY seq) AS back FROM pulled) h WHERE back'), 0,
		'... in order by key');
	is(query($node, "SELECT count(*) FROM cqrs.retry JOIN cqrs.subscription USING (subscription_id) WHERE subscription = '$name'"), 0,
		'... and nothing is left');
}

# ----------------------------------------------------------------------
# A broker
# ----------------------------------------------------------------------

# numbers(NAME, PATTERN): "n" of what it confirmed to have of such keys
sub numbers
{
	my ($name, $pattern) = @_;

	return map { $_->{message}{body} =~ /n.u0022:(\d+)/ || $_->{message}{body} =~ /(\d+)/; $1 }
	  grep { $_->{message}{key} =~ $pattern } $peer->messages("postgres/$name");
}

for my $case ([ send_many => $many, $bad, 0 ], [ send_one => $one, 1, $bad - 1 ])
{
	my ($name, $select, $retrying, $waiting) = @$case;

	$peer->tell('reset');
	$peer->tell('rule', '-not today', '"key":"bad');
	query($node, qq(
		SELECT cqrs_register_event('$name', '$name');
		SELECT cqrs_subscribe('$name', ARRAY['$name'], server => 'peer', strict_key_order => true, @slow);
	));
	emit($name, $select);

	# Of the last ones, nobody knew whose fault it is.
	emit($name, "SELECT 0 AS n, 'good' AS key");
	ok(wait_status($node, 'postgres', $name, "0/$retrying/$waiting/0"), "$name: all others are confirmed");
	$peer->tell('reset');
	due_now($name);
	ok(wait_status($node, 'postgres', $name, '0/0/0/0'), '... and in the end, what was rejected');
	my @numbers = numbers($name, qr/^bad/);
	is(scalar @numbers, $bad, '... once');
	is(join(' ', @numbers), join(' ', sort { $a <=> $b } @numbers), '... in order') if $retrying == 1;
}

$node->stop;
done_testing();
