# What the worker does when a handler fails: it calls it again after a delay;
# later events of the key wait, other keys go on; an event that fails each time
# becomes a dead letter. So does one whose handler takes too long each time, ends
# its process, or crashes the server. What is no event's fault counts as no
# attempt.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main', "restart_after_crash = on\ncqrs_outbox.max_workers = 3\n");
$node->start;

# A handler that does what table "does" says about its event. A sequence counts
# its calls for that: no rollback takes them back.
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('happened', 'things');
	CREATE TABLE does (n text PRIMARY KEY, what text);
	CREATE TABLE recorded (seq serial, key text, payload jsonb, attempts integer);
	CREATE SEQUENCE calls;
	CREATE TABLE once (n text UNIQUE DEFERRABLE INITIALLY DEFERRED);
	CREATE FUNCTION on_thing(event cqrs_event) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
	DECLARE
		todo text := (SELECT what FROM does WHERE n = event.payload->>'n');
	BEGIN
		INSERT INTO recorded (key, payload, attempts) VALUES (event.key, event.payload, (cqrs_context()).attempts);
		IF todo IS NOT NULL THEN
			PERFORM nextval('calls');
			IF todo = 'raise' THEN RAISE EXCEPTION 'cannot do %', event.payload->>'n';
			ELSIF todo = 'hang' THEN PERFORM pg_advisory_lock(42);
			ELSIF todo = 'hang for ever' THEN
				LOOP
					BEGIN
						PERFORM pg_advisory_lock(42);
					EXCEPTION WHEN query_canceled THEN
						EXIT;
					END;
				END LOOP;
			ELSIF todo = 'terminate' THEN PERFORM pg_terminate_backend(pg_backend_pid());
			ELSIF todo = 'kill' THEN COPY (SELECT 1) TO PROGRAM 'kill -9 $PPID';
			ELSIF todo = 'defer' THEN INSERT INTO once VALUES ('x'), ('x');
			ELSIF todo = 'disk full' THEN RAISE disk_full;
			END IF;
		END IF;
	END $$;
	SELECT cqrs_subscribe('things', ARRAY['things'], 'on_thing(cqrs_event)',
		max_attempts => 3, retry_delay => '10 ms', delivery_timeout => '200 ms');
));

# emit(KEY, N...): one after the other.
# In one transaction: what one of them does to the server does not keep the
# others from being emitted. Once it is committed, that may end the server before
# the client has its answer: the status 2.
sub emit
{
	my ($key, @n) = @_;
	my ($status, undef, $error) = $node->psql('postgres', join(';', 'BEGIN',
		(map { "SELECT cqrs_emit('happened', '{\"n\": $_}', key => '$key')" } @n), 'COMMIT'));

	die $error if $status != 0 && $status != 2;
}

# those(): what was recorded, in order, and emptied.
sub those
{
	return $node->safe_psql('postgres',
		"WITH r AS (DELETE FROM recorded RETURNING *) SELECT string_agg(key || (payload->>'n'), ' ' ORDER BY seq) FROM r");
}

sub does
{
	my ($n, $what) = @_;

	$node->safe_psql('postgres', "TRUNCATE does; SELECT setval('calls', 1, false); INSERT INTO does VALUES ('$n', '$what')");
}

# calls(): how often the handler was called for the event of does().
sub calls
{
	return $node->safe_psql('postgres', "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM calls");
}

sub dead { return take_dead($node, 'things', q(payload->>'n', attempts, error_sqlstate, error)); }

# An error.
does(2, 'raise');
my $offset = -s $node->logfile;
$node->safe_psql('postgres', q(
	SELECT cqrs_emit('happened', jsonb_build_object('n', n), key => CASE n WHEN 4 THEN 'b' ELSE 'a' END) FROM generate_series(1, 4) n));
ok(wait_status($node, 'postgres', 'things', '0/0/0/1'), 'an event that always fails is given up');
is(those(), 'a1 b4 a3', 'the events of its key waited for that, another did not');
is($node->safe_psql('postgres', "SELECT attempts, error_sqlstate, error FROM cqrs_dead_letters WHERE subscription = 'things'"), '3|P0001|cannot do 2', 'after three attempts');
my $log = slurp_file($node->logfile, $offset);
is(scalar(() = $log =~ /ERROR:  cannot do 2/g), 3, 'each is in the log, once');
is(scalar(() = $log =~ /CONTEXT:.*\n\tdelivering position 2 of topic "things" to subscription "things"/g), 3,
	'with position, topic and subscription');

# A retry that succeeds; a redrive.
$node->safe_psql('postgres', 'TRUNCATE does');
$node->safe_psql('postgres', "SELECT cqrs_redrive_all('things')");
ok(wait_status($node, 'postgres', 'things', '0/0/0/0'), 'a dead letter is delivered after all');
is(those(), 'a2', 'itself, and nothing else');
$node->safe_psql('postgres', "SELECT cqrs_alter_subscription('things', max_attempts => 0)");
does(5, 'raise');
emit('a', 5, 6);
ok($node->poll_query_until('postgres', 'SELECT last_value > 5 FROM calls'), 'without a limit it is tried for ever');
ok(wait_status($node, 'postgres', 'things', '0/1/1/0'), 'and the next one waits');
$node->safe_psql('postgres', 'TRUNCATE does');
ok(wait_status($node, 'postgres', 'things', '0/0/0/0'), 'until it succeeds');
is(those(), 'a5 a6', 'in order');
$node->safe_psql('postgres', "SELECT cqrs_alter_subscription('things', max_attempts => 3)");

# It takes too long, or is canceled.
my $locker = new_session($node, 'postgres');
$locker->query('SELECT pg_advisory_lock(42)');
does(7, 'hang');
emit('a', 7);
emit('b', 8);
ok(wait_status($node, 'postgres', 'things', '0/0/0/1'), 'a handler that hangs is canceled, and fails');
is(dead(), '7/3/57014/handler of subscription "things" took longer than its delivery_timeout', 'after its attempts');
is(those(), 'b8', 'another key goes on');
does(9, 'hang for ever');
emit('a', 9);
ok(wait_status($node, 'postgres', 'things', '0/0/0/1'), 'also one that does not let itself be canceled');
is(those(), '', 'what it did is rolled back');
$node->safe_psql('postgres', "SELECT cqrs_discard_all('things')");
$locker->quit;

# A deferred constraint fails at the commit of the batch.
does(11, 'defer');
emit('a', 10, 11, 12);
ok(wait_status($node, 'postgres', 'things', '0/0/0/1'), 'an event that fails at commit is found among the batch');
is(those(), 'a10 a12', 'the others are delivered');
like(dead(), qr{^11/3/23505/}, 'it has its attempts');

# It ends its process.
does(14, 'terminate');
emit('a', 13, 14, 15);
ok(wait_status($node, 'postgres', 'things', '0/0/0/1'), 'a handler that ends its process is given up');
is(those(), 'a13 a15', 'its neighbours are delivered');
is(dead(), '14/3/57P02/the server process ended while it handled the event', 'after its attempts');
is(calls(), 4, 'which are counted from when it was careful');

# It crashes the server.
does(17, 'kill');
$offset = -s $node->logfile;
emit('a', 16, 17, 18);
ok(wait_status($node, 'postgres', 'things', '0/0/0/1'), 'a handler that crashes the server is given up');
is(those(), 'a16 a18', 'its neighbours are delivered');
is(dead(), '17/3/57P02/the server process ended while it handled the event', 'after its attempts');
$log = slurp_file($node->logfile, $offset);
is(scalar(() = $log =~ /"cqrs_outbox worker" \(PID \d+\) was terminated by signal 9/g), 4,
	'so the server is not restarted for ever');

# What may be no event's fault: it is, if others do not meet it ...
does(20, 'disk full');
emit('a', 19, 20);
emit('b', 21);
ok(wait_status($node, 'postgres', 'things', '0/0/0/1'), 'an event that others are delivered beside is at fault, whatever it says');
is(those(), 'a19 b21', 'the others are delivered');
is(dead(), '20/3/53100/disk_full', 'after its attempts');

# ... and is not, if they do.
$node->safe_psql('postgres', "TRUNCATE does; INSERT INTO does SELECT n, 'disk full' FROM generate_series(30, 35) n");
emit('a', 30, 31);
emit($_->[0], $_->[1]) for [ b => 32 ], [ c => 33 ], [ d => 34 ], [ e => 35 ];
ok($node->poll_query_until('postgres', "SELECT max(failures) > 2 FROM cqrs.failure"), 'an outage is tried again and again');
is($node->safe_psql('postgres', "SELECT concat_ws('/', retrying, dead, error_sqlstate, error_position) FROM cqrs_subscription_status"),
	'0/0/53100', 'and counts as no attempt');
$node->safe_psql('postgres', 'TRUNCATE does');
ok(wait_status($node, 'postgres', 'things', '0/0/0/0'), 'until it is over');
is(join(' ', sort split / /, those()), 'a30 a31 b32 c33 d34 e35', 'everything is delivered');
is($node->safe_psql('postgres', 'SELECT count(*) FROM cqrs.failure'), '0', 'and it is forgotten');

$node->safe_psql('postgres', 'ALTER FUNCTION on_thing(cqrs_event) RENAME TO on_nothing');
emit('a', 22);
ok($node->poll_query_until('postgres', "SELECT error_sqlstate = '42883' AND retrying = 0 FROM cqrs_subscription_status"),
	'nor does a handler that is not there');
$node->safe_psql('postgres', 'ALTER FUNCTION on_nothing(cqrs_event) RENAME TO on_thing');
ok(wait_status($node, 'postgres', 'things', '0/0/0/0'), 'until it is');
is(those(), 'a22', 'delivered');

# Almost everything fails, of different keys: that is given up, and the rest
# delivered.
$node->safe_psql('postgres', q(
	TRUNCATE does; INSERT INTO does SELECT i, 'raise' FROM generate_series(1000, 2099) i WHERE i % 10 <> 0;
	SELECT cqrs_emit_many('happened', array_agg(jsonb_build_object('n', i)), array_agg(i::text)) FROM generate_series(1000, 2099) i));
ok(wait_status($node, 'postgres', 'things', '0/0/0/990'), 'a thousand failures are all given up');
is($node->safe_psql('postgres', 'SELECT count(*) FROM cqrs.retry'), '0', 'nothing is left behind');
$node->safe_psql('postgres', "TRUNCATE does; SELECT cqrs_redrive_all('things')");
ok(wait_status($node, 'postgres', 'things', '0/0/0/0'), 'and all are delivered after all');
is($node->safe_psql('postgres', "SELECT string_agg(key, ' ' ORDER BY key::int) FROM recorded"), join(' ', 1000 .. 2099), 'once');

$node->stop;
done_testing();
