# A dump restored into another cluster, whose transaction ids are far lower or
# far higher: everything registered is there, and nothing of the backlog is
# delivered until cqrs_adopt(); then each subscription gets exactly what it had
# not got when the dump was made. It never comes again, not even when this
# cluster's transaction ids are past the old ones.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

# One segment of pg_xact; pg_resetwal can go to its beginning.
my $XIDS = 1048576;

sub set_next_xid
{
	my ($node, $xid) = @_;

	$node->command_ok([ 'pg_resetwal', '-x', $xid, $node->data_dir ], "next transaction id of @{[ $node->name ]} is $xid");
}

sub stop_delivery
{
	my ($node) = @_;

	reconfigure($node, 'cqrs_outbox.deliver = off');
	# A worker that was at it is done.
	$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM cqrs_worker_status WHERE state = 'delivering'");
}

sub add
{
	my ($node, $dbname, @n) = @_;

	$node->safe_psql($dbname, join ';', map { "SET ROLE app; SELECT cqrs_send('Add', '{\"sku\": \"s$_\", \"n\": $_}')" } @n);
}

# What cqrs_receive() would give.
sub receive
{
	my ($node, $dbname, $subscription, $batch_size) = @_;

	return $node->safe_psql($dbname, "SET ROLE app; BEGIN; SELECT string_agg(payload->>'n', ' ' ORDER BY position) FROM cqrs_receive('$subscription', $batch_size); ROLLBACK");
}

# Receive, and acknowledge up to one of the items.
sub acknowledge
{
	my ($node, $dbname, $subscription, $n) = @_;

	$node->safe_psql($dbname, qq(
		SET ROLE app;
		SELECT cqrs_ack('$subscription', array_agg(position)) FROM cqrs_receive('$subscription', 100)
			WHERE position <= (SELECT position FROM cqrs_topics.items WHERE payload->>'n' = '$n')));
}

my $source = new_server('source');
set_next_xid($source, 3 * $XIDS);
$source->start;
$source->safe_psql('postgres', 'CREATE EXTENSION cqrs_outbox; CREATE ROLE app LOGIN; CREATE ROLE reader; CREATE ROLE nobody; CREATE DATABASE app');
$source->safe_psql('app', q(
	CREATE EXTENSION cqrs_outbox;
	GRANT CREATE ON SCHEMA public TO app;
	GRANT EXECUTE ON FUNCTION cqrs_subscribe TO app;
	CREATE TYPE public.item AS (sku text, n int);
	SELECT cqrs_register_event('added', 'items', 'item');
	SELECT cqrs_register_event('noted', 'notes');
	SELECT cqrs_register_event('forgotten', 'nobody''s "own"');
	GRANT SELECT, INSERT ON cqrs_topics.items, cqrs_topics.notes TO app;
	GRANT SELECT ON cqrs_topics.items TO reader;
	SET ROLE app;
	CREATE TABLE recorded (seq serial, n int);
	CREATE FUNCTION record(event cqrs_event) RETURNS void LANGUAGE sql SET search_path = public AS $$
		INSERT INTO recorded (n) VALUES ((event.payload->>'n')::int)
	$$;
	CREATE TABLE recorded_late (LIKE recorded INCLUDING ALL);
	CREATE FUNCTION record_late(event cqrs_event) RETURNS void LANGUAGE sql SET search_path = public AS $$
		INSERT INTO recorded_late (n) VALUES ((event.payload->>'n')::int)
	$$;
	CREATE TABLE recorded_spread (LIKE recorded INCLUDING ALL);
	CREATE TABLE broken ();
	CREATE FUNCTION record_spread(event cqrs_event) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
	BEGIN
		IF event.payload->>'n' = '2' AND to_regclass('broken') IS NOT NULL THEN
			RAISE EXCEPTION 'broken';
		END IF;
		INSERT INTO recorded_spread (n) VALUES ((event.payload->>'n')::int);
	END $$;
	CREATE FUNCTION add(command item) RETURNS int LANGUAGE plpgsql SET search_path = public AS $$
	BEGIN
		PERFORM cqrs_emit('added', to_jsonb(command), key => command.sku);
		RETURN command.n;
	END $$;
	SELECT cqrs_subscribe('recorder', ARRAY['items'], 'record(cqrs_event)');
	SELECT cqrs_subscribe('spread', ARRAY['items'], 'record_spread(cqrs_event)', partitions => 3, max_attempts => 0, retry_delay => '1 ms', max_retry_delay => '1 ms');
	SELECT cqrs_subscribe('outside', ARRAY['items', 'notes']);
	SELECT cqrs_subscribe('behind', ARRAY['items', 'notes']);
	RESET ROLE;
	SELECT cqrs_register_command('Add', 'add(item)');
	CREATE SEQUENCE number;
	GRANT ALL ON number TO app;
	CREATE FUNCTION number(jsonb) RETURNS bigint LANGUAGE sql AS $$
		SELECT nextval('public.number')
	$$;
	SELECT cqrs_register_command('Number', 'number(jsonb)');
	SET ROLE app;
	SELECT cqrs_send('Number', idempotency_key => 'first');
	SELECT cqrs_consumed('queue', 'first');
));

# The third event's transaction is in progress while the cursors pass it by.
# The second is of two, of which the consumer outside acknowledges but one.
my $open = new_session($source, 'app', 'app');
add($source, 'app', 1, 2);
$open->query("BEGIN; SELECT cqrs_send('Add', '{\"sku\": \"s3\", \"n\": 3}')");
add($source, 'app', 4);
ok(wait_recorded($source, 'app', 3), 'the handler gets what is committed');
ok($source->poll_query_until('app', 'SELECT count(*) = 2 FROM recorded_spread'), 'so does one with partitions');
ok($source->poll_query_until('app', 'SELECT count(*) = 1 FROM cqrs.retry'), 'which parks what it cannot handle');
$source->safe_psql('app', 'SELECT cqrs_tick()');
is(receive($source, 'app', 'outside', 10), '1 2 4', 'so does the consumer outside');
acknowledge($source, 'app', 'outside', 2);
stop_delivery($source);
$open->query('COMMIT');
$open->quit;
add($source, 'app', 5 .. 7);
$source->safe_psql('app', "SELECT cqrs_emit('noted', jsonb_build_object('n', 100, 'text', (SELECT string_agg(md5(g::text), '') FROM generate_series(1, 1000) g)))");
$source->safe_psql('app', "SELECT cqrs_emit('forgotten', '{\"n\": 200}')");
my %dump = (low => $source->basedir . '/plain.sql', high => $source->basedir . '/custom');
$source->command_ok([ 'pg_dump', '-f', $dump{low}, $source->connstr('app') ], 'pg_dump, plain');
$source->command_ok([ 'pg_dump', '-Fc', '-f', $dump{high}, $source->connstr('app') ], 'pg_dump, custom');
$source->command_ok([ 'pg_dump', '-s', '-f', $source->basedir . '/schema.sql', $source->connstr('app') ], 'pg_dump, only the schema');

my %node;
for my $name (qw(low high))
{
	my $node = $node{$name} = new_server($name);

	set_next_xid($node, 64 * $XIDS) if $name eq 'high';
	$node->start;
	$node->safe_psql('postgres', 'CREATE EXTENSION cqrs_outbox; CREATE ROLE app LOGIN; CREATE ROLE reader; CREATE ROLE nobody; CREATE DATABASE app');
	if ($name eq 'low')
	{
		$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump{$name}, '-d', $node->connstr('app') ], 'restored, plain');
	}
	else
	{
		$node->command_ok([ 'pg_restore', '-e', '-d', $node->connstr('app'), $dump{$name} ], 'restored, custom');
	}
	ok(wait_managers($node, 'app', 'postgres'), "$name: the worker is there");

	# What was registered.
	for my $query ("SELECT event_name, topic, payload_type FROM cqrs.event_type JOIN cqrs.topic USING (topic_id) ORDER BY 1",
		'SELECT command_name, kind, handlers FROM cqrs.command ORDER BY 1',
		'SELECT subscription, topics, kind, handler, owner FROM cqrs_subscription_status ORDER BY 1',
		"SELECT relname, relowner::regrole, relacl FROM pg_class WHERE relnamespace = 'cqrs_topics'::regnamespace ORDER BY 1",
		'SELECT tgrelid::regclass, pg_get_triggerdef(oid) FROM pg_trigger WHERE tgfoid = \'cqrs.insert_event()\'::regprocedure ORDER BY tgrelid::regclass::text')
	{
		is($node->safe_psql('app', $query), $source->safe_psql('app', $query), "$name: $query");
	}
	isnt($node->psql('app', "SET ROLE reader; SELECT cqrs_emit('added', '{}')"), 0, "$name: a reader cannot emit");
	is($node->safe_psql('app', "BEGIN; SET ROLE app; INSERT INTO cqrs_topics.items (event_name, key) VALUES ('added', 1) RETURNING key, position > 0; ROLLBACK"),
		'1|t', "$name: an INSERT emits");
	isnt($node->psql('app', "SELECT cqrs_emit('added', '{\"n\": \"x\"}')"), 0, "$name: payloads are checked");

	# What was sent with a key is not handled again.
	is($node->safe_psql('app', "SET ROLE app; SELECT cqrs_send('Number', idempotency_key => 'first'); SELECT cqrs_send('Number', idempotency_key => 'second')"),
		"1\n2", "$name: the answers of commands are there by their keys");
	is($node->safe_psql('app', q(SET ROLE app; SELECT cqrs_consumed('queue', '{first,second}'::text[]))), '{f,t}', "$name: a message that was consumed is known");

	$node->safe_psql('app', 'DROP TABLE broken');

	# Nothing of the backlog, and nothing new, before the adoption: though the
	# worker delivers to others.
	$node->safe_psql('app', q(
		SET ROLE app;
		SELECT cqrs_subscribe('late', ARRAY['items'], 'record_late(cqrs_event)', start => 'latest');
		SELECT cqrs_subscribe('late outside', ARRAY['items'], start => 'latest');
		SELECT cqrs_subscribe('early outside', ARRAY['items', 'notes'])));
	add($node, 'app', 8);
	ok($node->poll_query_until('app', 'SELECT count(*) = 1 FROM recorded_late'), "$name: a subscription that is made here gets what is emitted");
	$node->safe_psql('app', 'SELECT cqrs_tick()');
	my $nothing = sub {
		is($node->safe_psql('app', "SELECT string_agg(n::text, ' ' ORDER BY seq) FROM recorded"), '1 2 4', "$name: @_: the handler gets nothing");
		is($node->safe_psql('app', "SELECT string_agg(n::text, ' ' ORDER BY n) FROM recorded_spread"), '1 4', "$name: @_: nothing that was parked");
		for ('outside', 'behind', 'early outside')
		{
			like(error_of($node, 'app', "SET ROLE app; SELECT * FROM cqrs_receive('$_')"), qr/subscription "$_" was restored from a dump/, "$name: @_: nothing is received by '$_'");
		}
	};
	$nothing->('restored');
	$node->restart;
	$node->safe_psql('app', 'SELECT cqrs_tick()');
	$nothing->('restarted');
	is(receive($node, 'app', 'late outside', 10), '8', "$name: those made here get what is emitted here");
	is($node->safe_psql('app', "SELECT string_agg(subscription, ', ' ORDER BY subscription) FROM cqrs_subscription_status WHERE state = 'restored'"), 'behind, early outside, outside, recorder, spread', "$name: as their status says");
	is($node->safe_psql('app', "SELECT payload->>'n', status FROM cqrs_events('items')"), "2|retrying\n8|new", "$name: and the outbox shows");
	like(error_of($node, 'app', "SELECT cqrs_drop_topic('notes', true) FROM cqrs.event_type WHERE false; SELECT cqrs_unregister_event('noted'); SELECT cqrs_drop_topic('notes')"),
		qr/topic "notes" holds undelivered events/, "$name: what waits is not dropped unless forced");
	isnt($node->psql('app', 'SET ROLE app; SELECT cqrs_adopt()'), 0, "$name: not everybody may adopt");

	# An adoption that is rolled back changes nothing; one that waits for
	# nobody but who moves cursors.
	$node->safe_psql('app', 'BEGIN; SELECT cqrs_adopt(); ROLLBACK; SELECT cqrs_tick()');
	$nothing->('rolled back');
	my $emitter = new_session($node, 'app', 'app');
	$emitter->query("BEGIN; SELECT cqrs_send('Add', '{\"sku\": \"s9\", \"n\": 9}')");
	is($node->safe_psql('app', 'SELECT * FROM cqrs_adopt() ORDER BY 1'),
		"behind|8\nearly outside|8\noutside|6\nrecorder|4\nspread|4", "$name: cqrs_adopt() says what waits for whom");
	ok($node->poll_query_until('app', 'SELECT count(*) >= 8 FROM recorded'), "$name: the handler gets its backlog");
	$emitter->query('COMMIT');
	$emitter->quit;
	add($node, 'app', 10);
	ok($node->poll_query_until('app', 'SELECT count(*) >= 10 FROM recorded'), "$name: and what comes");
	ok($node->poll_query_until('app', 'SELECT count(*) >= 10 FROM recorded_spread'), "$name: the one with partitions too");
	$node->safe_psql('app', 'SELECT cqrs_tick()');
	my $all = sub {
		is($node->safe_psql('app', "SELECT string_agg(n::text, ' ' ORDER BY n) FROM recorded_spread"), "1 2 3 4 5 6 7 8 9 10$_[0]", "$name: each once, in partitions");
		is($node->safe_psql('app', "SELECT string_agg(n::text, ' ' ORDER BY seq) FROM recorded"), "1 2 4 3 5 6 7 8 9 10$_[0]", "$name: exactly what it had not got, in order");
		is(receive($node, 'app', 'outside', 100), "3 4 5 6 7 100 8 9 10$_[0]", "$name: also outside");
		is(receive($node, 'app', 'behind', 100), "1 2 3 4 5 6 7 100 8 9 10$_[0]", "$name: also who had got nothing");
		is(receive($node, 'app', 'early outside', 100), "1 2 3 4 5 6 7 100 8 9 10$_[0]", "$name: who subscribed since gets everything");
		is(receive($node, 'app', 'late outside', 100), "8 9 10$_[0]", "$name: or nothing of it");
		is($node->safe_psql('app', "SELECT string_agg(n::text, ' ' ORDER BY seq) FROM recorded_late"), "8 9 10$_[0]", "$name: or nothing of it, a handler too");
	};
	$all->('');
	is($node->safe_psql('app', "SELECT length(payload->>'text') FROM cqrs_events('notes', status => 'all')"), '32000', "$name: large payloads are whole");
	is($node->safe_psql('app', "SELECT payload FROM cqrs_events('nobody''s \"own\"')"), '{"n": 200}', "$name: a topic without subscriptions has its events");
	is($node->safe_psql('app', 'SELECT count(*) FROM cqrs_adopt()'), '0', "$name: there is nothing left to adopt");

	# Past the transaction ids of the dump.
	$node->stop;
	set_next_xid($node, $name eq 'low' ? 8 * $XIDS : 72 * $XIDS);
	$node->start;
	add($node, 'app', 11);
	ok($node->poll_query_until('app', 'SELECT count(*) >= 11 FROM recorded'), "$name: with later transaction ids, delivery goes on");
	$node->poll_query_until('app', 'SELECT count(*) >= 4 FROM recorded_late');
	$node->poll_query_until('app', 'SELECT count(*) >= 11 FROM recorded_spread');
	$node->safe_psql('app', 'SELECT cqrs_tick()');
	$all->(' 11');
}

# A dump of what was adopted, restored in parallel.
my ($low, $high) = @node{qw(low high)};
my $dir = $low->basedir . '/directory';
acknowledge($low, 'app', 'outside', 5);
stop_delivery($low);
add($low, 'app', 12);
$low->command_ok([ 'pg_dump', '-Fd', '-j2', '-f', $dir, $low->connstr('app') ], 'pg_dump of what was adopted');
$high->safe_psql('postgres', 'CREATE DATABASE again');
# The cursors come last, when the worker has seen the subscriptions long since.
my ($list) = run_command([ 'pg_restore', '-l', $dir ]);
my ($cursors) = $list =~ /^(.* TABLE DATA cqrs cursor .*)$/m;
append_to_file("$dir.first", $list =~ s/^\Q$cursors\E$//mr);
append_to_file("$dir.then", $cursors);
$high->command_ok([ 'pg_restore', '-e', '-j2', '-L', "$dir.first", '-d', $high->connstr('again'), $dir ], 'restored in parallel');
add($high, 'again', 13);
ok($high->poll_query_until('again', "SELECT count(*) > 0 FROM cqrs_worker_status WHERE kind = 'worker' AND database = 'again'"), 'the worker is faster');
$high->command_ok([ 'pg_restore', '-e', '-L', "$dir.then", '-d', $high->connstr('again'), $dir ], 'restored the rest');
is($high->safe_psql('again', 'SELECT count(*) FROM cqrs.failure'), '0', 'which is no failure');
$high->safe_psql('again', 'SELECT * FROM cqrs_adopt()');
ok($high->poll_query_until('again', 'SELECT count(*) >= 13 FROM recorded'), 'the second time, the handler gets its backlog');
add($high, 'again', 14);
ok($high->poll_query_until('again', 'SELECT count(*) >= 14 FROM recorded'), 'and what comes');
is($high->safe_psql('again', "SELECT string_agg(n::text, ' ' ORDER BY seq) FROM recorded"), '1 2 4 3 5 6 7 8 9 10 11 12 13 14', 'each once, in order');
$high->safe_psql('again', 'SELECT cqrs_tick()');
is(receive($high, 'again', 'outside', 100), '6 7 100 8 9 10 11 12 13 14', 'outside, what was not acknowledged');

# Only the schema: no topic, but their tables are there. It can be begun anew.
$high->safe_psql('postgres', 'CREATE DATABASE bare');
$high->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $source->basedir . '/schema.sql', '-d', $high->connstr('bare') ], 'restored, only the schema');
is($high->safe_psql('bare', 'SELECT count(*) FROM cqrs.topic'), '0', 'which has no topics');
is($high->safe_psql('bare', q(
	DROP EXTENSION cqrs_outbox CASCADE;
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('added', 'items', 'item');
	SELECT cqrs_emit('added', '{"n": 1}') IS NOT NULL)), "t\nt", 'and can be set up again');

for my $node ($source, $low, $high)
{
	unlike(slurp_file($node->logfile), qr/(PANIC|TRAP|terminated by signal|has no cursor|duplicate key)/, "@{[ $node->name ]}: no process failed");
	$node->stop;
}

done_testing();
