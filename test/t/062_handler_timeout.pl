# delivery_timeout ends a handler, also one that catches being cancelled; and a
# cancel by anybody else is not taken for the timeout.

use strict;
use warnings;

use CqrsTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('main');

$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	CREATE TABLE seen (n int, what text);
	CREATE FUNCTION handle(e cqrs_event) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
	BEGIN
		IF e.payload->>'do' = 'stubborn' THEN
			LOOP
				BEGIN
					PERFORM pg_sleep(1000);
				EXCEPTION WHEN query_canceled THEN
					NULL;
				END;
			END LOOP;
		ELSIF e.payload->>'do' = 'tidy' THEN
			BEGIN
				PERFORM pg_sleep(1000);
			EXCEPTION WHEN query_canceled THEN
				NULL;
			END;
		ELSIF e.payload->>'do' = 'sleep' THEN
			PERFORM pg_sleep(1000);
		ELSIF e.payload->>'do' = 'lock' THEN
			PERFORM pg_advisory_xact_lock(1);
		END IF;
		INSERT INTO seen VALUES ((e.payload->>'n')::int);
	END $$;
	SELECT cqrs_register_event('happened', 'things');
	SELECT cqrs_subscribe('limited', ARRAY['things'], 'handle(cqrs_event)', delivery_timeout => '300 ms',
		max_attempts => 2, retry_delay => '10 ms');
));

sub dead { return take_dead($node, 'limited', q(payload->>'n', attempts, error_sqlstate, error)); }

my $log_offset = -s $node->logfile;

$node->safe_psql('postgres', q(
	SELECT cqrs_emit('happened', '{"n": 1}', key => '1');
	SELECT cqrs_emit('happened', '{"n": 2, "do": "stubborn"}', key => '2');
	SELECT cqrs_emit('happened', '{"n": 3}', key => '3');
	SELECT cqrs_emit('happened', '{"n": 4, "do": "tidy"}', key => '4');
	SELECT cqrs_emit('happened', '{"n": 5, "do": "sleep"}', key => '5');
	SELECT cqrs_emit('happened', '{"n": 6}', key => '6');
));
ok($node->poll_query_until('postgres', q(SELECT dead = 3 AND lag_events = 0 FROM cqrs_subscription_status WHERE subscription = 'limited')),
	'handlers that take too long end');
my $message = 'handler of subscription "limited" took longer than its delivery_timeout';
is(dead(), "2/2/57014/$message, and would not be canceled 4/2/57014/$message 5/2/57014/$message",
	'... as many attempts as they have, and no more');
is($node->safe_psql('postgres', q(SELECT string_agg(n::text, ' ' ORDER BY n) FROM seen)), '1 3 6', '... and no other event is to blame');
my $log = slurp_file($node->logfile, $log_offset);
my $ends = () = $log =~ /FATAL:  \Q$message\E/g;

# If event 1 was in the same batch, the first time is not counted.
like($ends, qr/^[23]$/, 'the process ended at each attempt, and says why');
unlike($log, qr/PANIC|was terminated by signal|all server processes terminated/, '... no other process did');

# After one timeout, another's cancel is none, be there a timeout or not.
$node->safe_psql('postgres', q(SELECT cqrs_alter_subscription('limited', delivery_timeout => '0')));
for my $timeout ('0', '1 min')
{
	$node->safe_psql('postgres', "SELECT cqrs_alter_subscription('limited', delivery_timeout => '300 ms')");
	$node->safe_psql('postgres', q(SELECT cqrs_emit('happened', '{"n": 7, "do": "sleep"}', key => '7')));
	ok($node->poll_query_until('postgres', q(SELECT dead = 1 AND lag_events = 0 FROM cqrs_subscription_status WHERE subscription = 'limited')),
		'one more timeout');
	$node->safe_psql('postgres', "SELECT cqrs_discard_all('limited'); SELECT cqrs_alter_subscription('limited', delivery_timeout => '$timeout')");
	my $holder = hold_handlers($node, 'postgres');
	$node->safe_psql('postgres', q(SELECT cqrs_emit('happened', '{"n": 8, "do": "lock"}', key => '8')));
	my $worker = in_handler($node, 'postgres');
	$log_offset = -s $node->logfile;
	$node->safe_psql('postgres', "SELECT pg_cancel_backend($worker)");
	ok($node->wait_for_log(qr/canceling statement due to user request/, $log_offset), "a handler is cancelled by somebody else, with timeout $timeout");
	$holder->quit;
	is($node->safe_psql('postgres', q(SELECT cqrs_wait('limited', '3 min'))), 't', '... it is called again');
	is(dead(), '', '... and that was no attempt');
}
is($node->safe_psql('postgres', 'SELECT count(*) FROM seen WHERE n = 8'), 2, 'both were handled');

$node->stop;
done_testing();
