# Evidence tells whose fault an error is, not its class: the event's, if others
# can be handled; nobody's, if they fail, too, or if there is no other to compare
# with.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main', "log_statement = none\nrestart_after_crash = on\n");

$node->start;
query($node, q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('happened', 'things');
	CREATE TABLE does (key text, sqlstate text);
	CREATE TABLE handled (seq serial, key text, n int);
	CREATE SEQUENCE tries;
	CREATE FUNCTION handle(e cqrs_event) RETURNS void LANGUAGE plpgsql SET search_path = public SET temp_file_limit = '64kB' SET work_mem = '64kB' AS $$
	DECLARE
		todo text := (SELECT sqlstate FROM does WHERE e.key LIKE does.key);
	BEGIN
		-- "twice SQLSTATE" fails no more often than that
		IF e.key LIKE 'busy%' AND nextval('tries') > 2 AND todo LIKE 'twice %' THEN
			todo := NULL;
		END IF;
		todo := right(todo, 5);
		IF (cqrs_context()).attempts > 1 THEN
			INSERT INTO handled (key) VALUES ('not at once: ' || e.key);
		END IF;
		IF todo = ' disk' THEN
			PERFORM count(*) FROM (SELECT g FROM generate_series(1, 200000) g ORDER BY g DESC) x;
		ELSIF todo IS NOT NULL THEN
			-- beyond batch_duration, see below, long before the twentieth
			FOR i IN 1 .. CASE WHEN e.key LIKE 'slow%' THEN 20000 ELSE 0 END LOOP END LOOP;
			RAISE EXCEPTION 'fails' USING errcode = todo;
		END IF;
		INSERT INTO handled (key, n) VALUES (e.key, (e.payload->>'n')::int);
	END $$;
	SELECT cqrs_subscribe('s', ARRAY['things'], 'handle(cqrs_event)', max_attempts => 2, retry_delay => '10 ms');
));

# does(KEY => SQLSTATE ...): what the handler does with keys like these
sub does
{
	my (%does) = @_;

	query($node, join ';', 'TRUNCATE does', map { "INSERT INTO does VALUES ('$_', '$does{$_}')" } sort keys %does);
}

sub emit { emit_keys($node, 'happened', @_); }

# handled(): which keys, each once
sub handled { return query($node, 'WITH h AS (DELETE FROM handled RETURNING *) SELECT string_agg(key, \' \' ORDER BY key) FROM h'); }

sub dead { return take_dead($node, 's', 'key, attempts, error_sqlstate'); }

sub attempts { return query($node, 'SELECT coalesce(max(attempts), 0) FROM cqrs.retry'); }

# problem(NAME): in cqrs_health(), of the subscription
sub problem
{
	my ($name) = @_;

	return $node->poll_query_until('postgres', "SELECT count(*) = 1 FROM cqrs_health('1 h', '1 h') WHERE problem = '$name' AND severity = 'error' AND object LIKE '%s%'");
}

# One event needs too much disk. The others are delivered, those before it in its
# batch, too.
for my $state ('the disk', '57014', '08006', 'XX000', '42P01', '58030')
{
	does('bad' => $state);
	emit('a', 'b', 'bad', 'c', 'd');
	ok(wait_status($node, 'postgres', 's', '0/0/0/1'), "$state: an event that alone meets it is at fault");
	is(handled(), 'a b c d', '... the others are delivered, once');
	is(dead(), 'bad/2/' . ($state eq 'the disk' ? '53400' : $state), '... and its attempts count');
}

# Several of them, more than it takes for an outage, and first.
does('bad%' => '53200');
emit((map { "bad$_" } 1 .. 7), 'good');
ok(wait_status($node, 'postgres', 's', '0/0/0/7'), 'several that are at fault, before all others');
is(handled(), 'good', '... do not keep others from being delivered');
query($node, "SELECT cqrs_discard_all('s')");

# All meet it.
does('%' => '53100');
emit(map { "k$_" } 1 .. 5);
ok(problem('failing'), 'all meet it: an outage, and cqrs_health() says so');
ok($node->poll_query_until('postgres', 'SELECT max(failures) > 2 FROM cqrs.failure'), '... it is tried again and again');
is(attempts(), 0, '... and nothing of it is an attempt');
does();
ok(wait_status($node, 'postgres', 's', '0/0/0/0'), '... until it is over');
is(handled(), 'k1 k2 k3 k4 k5', '... then all is delivered');
is(query($node, 'SELECT count(*) FROM cqrs.failure'), 0, '... and nothing is wrong');

# There is no other to tell by.
does('alone' => '53100');
emit('alone');
ok($node->poll_query_until('postgres', 'SELECT max(failures) > 2 FROM cqrs.failure'), 'a single key waits');
is(attempts(), 0, '... and nothing of it is an attempt');
emit('other');
ok(wait_status($node, 'postgres', 's', '0/0/0/1'), '... once another is delivered, it is at fault');
is(handled(), 'other', '... that one was not kept waiting');
is(dead(), 'alone/2/53100', '... after its attempts');

# One that passed before it tells nothing.
does('last' => '53100');
emit('before', 'last');
ok($node->poll_query_until('postgres', 'SELECT max(failures) > 2 FROM cqrs.failure'), 'the last of a batch fails: what passed before is no witness');
is(attempts(), 0, '... and nothing of it is an attempt');
emit('after');
ok(wait_status($node, 'postgres', 's', '0/0/0/1'), '... what passes after it is');
is(handled(), 'after before', '... each is delivered once');
query($node, "SELECT cqrs_discard_all('s')");

# A deadlock, a serialization failure, a lock that is not to be had: again, at once.
for my $state ('40001', '40P01', '55P03')
{
	for my $with ([], [ 'c', 'd' ])
	{
		my $name = $state . (@$with ? ' behind others' : '');

		query($node, "ALTER SEQUENCE tries RESTART");
		does('busy' => "twice $state");
		emit(@$with, 'busy');
		ok(wait_status($node, 'postgres', 's', '0/0/0/0'), "$name: it is over at once");
		is(handled(), join(' ', 'busy', @$with), "$name: ... which is no attempt");
	}
	query($node, "ALTER SEQUENCE tries RESTART");
	does('busy' => $state);
	emit('busy');
	ok(wait_status($node, 'postgres', 's', '0/0/0/1'), "$state: it is not over");
	is(dead(), "busy/2/$state", "$state: ... then it is at fault");
	is(query($node, "SELECT last_value FROM tries"), 8, "$state: ... after three more tries each time");
}

# The server's fault, surely, met by an event that is called apart.
does('few' => '23502', 'readonly' => '25006');
emit('few', 'readonly');
ok(problem('handler_failing'), 'a server that is read-only: nobody\'s fault');
ok($node->poll_query_until('postgres', 'SELECT max(failures) > 2 FROM cqrs.failure'), '... it is tried again and again');
is(attempts(), 0, '... and nothing of it is an attempt');
does('few' => '23502');
ok(wait_status($node, 'postgres', 's', '0/0/0/1'), '... once it is not, delivered');
is(handled(), 'readonly', '... each to its fate');
unlike(slurp_file($node->logfile), qr/unexpected state/, '... by a worker that lived through it');
query($node, "SELECT cqrs_discard_all('s')");

# The handler knows: it is no event's fault. After a crash, when each attempt is
# counted before it begins, nothing counts that may be nobody's fault, either.
for my $case ([ 'OB101', 0 ], [ 'OB101', 1 ], [ '42P01', 1 ])
{
	my ($state, $crash) = @$case;
	my $what = $state . ($crash ? ' after a crash' : '');
	my $since;

	does('%' => $state);
	emit('waits', 'behind');
	ok(problem('handler_failing'), "$what: cqrs_health() says so");
	crash_server($node, processes($node, 'launcher')) if $crash;
	$since = query($node, 'SELECT clock_timestamp()');
	ok($node->poll_query_until('postgres', $crash ? "SELECT min(failed_at) > '$since' FROM cqrs.retry" :
			'SELECT max(failures) > 3 FROM cqrs.failure'), "$what: it is tried again");
	is(attempts(), 0, "$what: nothing of it is an attempt") unless $crash;
	does();
	ok(wait_status($node, 'postgres', 's', '0/0/0/0'), "$what: in the end it is delivered");
	is(handled(), 'behind waits', "$what: ... with what came behind it, each at the first attempt");
}

# Or the handler knows that it is the event's for good, of however many.
my @given_up = map { sprintf 'given%02d', $_ } 1 .. 30;
does('given%' => 'OB100');
emit(@given_up, 'good');
ok(wait_status($node, 'postgres', 's', '0/0/0/30'), 'OB100: the handler gives events up, more in a row than it takes for a broken one');
is(dead(), join(' ', map { "$_/1/OB100" } @given_up), '... each at the first attempt');
is(handled(), 'good', '... the others are delivered');
is(query($node, 'SELECT count(*) FROM cqrs.failure'), 0, '... and nothing is wrong');

# A handler that is broken: all fail, whatever the class.
does('%' => '23502');
emit(map { "n$_" } 1 .. 100);
ok(problem('handler_failing'), 'many fail, and none passes: it is the handler');
ok($node->poll_query_until('postgres', 'SELECT max(failures) > 10 FROM cqrs.failure'), '... each is tried again and again');
is(attempts(), 0, '... and nothing of it is an attempt');
does();
ok(wait_status($node, 'postgres', 's', '0/0/0/0'), '... until it is mended');
is(query($node, 'SELECT count(*), count(DISTINCT key) FROM handled'), '100|100', '... then all is delivered, once');

# The same if it takes longer than a batch may.
query($node, 'TRUNCATE handled');
reconfigure($node, "cqrs_outbox.batch_duration = '1 ms'");
does('%' => '23502');
emit(map { "slow$_" } 1 .. 40);
ok(problem('handler_failing'), 'many fail, slowly: it is the handler, too');
ok($node->poll_query_until('postgres', 'SELECT max(failures) > 5 FROM cqrs.failure'), '... each is tried again and again');
is(attempts(), 0, '... and nothing of it is an attempt');
does();
ok(wait_status($node, 'postgres', 's', '0/0/0/0'), '... until it is mended');
reconfigure($node, "cqrs_outbox.batch_duration = '50 ms'");

# Or it is a long run of bad ones: a few waits, and it is behind us.
query($node, 'TRUNCATE handled');
does('run%' => '23502');
emit((map { "run$_" } 1 .. 3000), 'behind');
ok(wait_status($node, 'postgres', 's', '0/0/0/3000'), 'a long run of bad events is no broken handler');
is(handled(), 'behind', '... the one behind it is delivered');
query($node, "SELECT cqrs_discard_all('s')");

# With fewer, an error is what it says.
does('few%' => '23502');
emit(map { "few$_" } 1 .. 10);
ok(wait_status($node, 'postgres', 's', '0/0/0/10'), 'a few that fail are given up');

$node->stop;
done_testing();
