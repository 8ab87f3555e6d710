# Ticks that fail, or do not commit, hold up no handler; and a client that
# pulls gets nothing until a committed tick shows it, and everything then.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use DebugPoints;

my $node = new_server('main');
my $pulled = 'SELECT pull()';

$node->start;
set_up_recording($node, 'postgres');
$node->safe_psql('postgres', q(
	SELECT cqrs_subscribe('puller', ARRAY['things']);
	CREATE TABLE pulled (seq serial, n text);
	CREATE FUNCTION pull() RETURNS text LANGUAGE plpgsql AS $$
	BEGIN
		LOOP
			INSERT INTO pulled (n) SELECT payload->>'n' FROM cqrs_receive('puller');
			EXIT WHEN NOT FOUND;
			PERFORM cqrs_ack('puller');
		END LOOP;
		RETURN (SELECT string_agg(n, ' ' ORDER BY seq) FROM pulled);
	END $$;
));

# A manager of before would read the setting whenever it comes to it.
sub set_point
{
	my ($what) = @_;
	my ($manager) = processes($node, 'manager');

	reconfigure($node, "cqrs_outbox.debug_points = '$what'");
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($manager)") if defined $manager;
}

emit_numbers($node, 'postgres', 1);
ok(wait_recorded($node, 'postgres', 1), 'delivered to the handler');
ok($node->poll_query_until('postgres', $pulled, '1'), 'and can be received');

my $offset = -s $node->logfile;
set_point('tick_before_commit=error');
$node->wait_for_log(qr/debug point "tick_before_commit" was reached/, $offset);
for my $n (2 .. 3)
{
	emit_numbers($node, 'postgres', $n);
	ok(wait_recorded($node, 'postgres', $n), "ticks fail: event $n is delivered to the handler");
	is($node->safe_psql('postgres', $pulled), '1', 'and cannot be received');
}

# The manager stands before its commit: a worker that is there goes on.
my $holder = hold_point($node, 'tick_before_commit');
set_point('tick_before_commit=wait');
at_point($node, 'tick_before_commit');
is($node->safe_psql('postgres', $pulled), '1', 'what its tick shows cannot be received');
$holder->quit;
ok($node->poll_query_until('postgres', $pulled, '1 2 3'), 'but when it has committed');
emit_numbers($node, 'postgres', 4);
ok(wait_recorded($node, 'postgres', 4), 'delivered to the handler');
ok($node->poll_query_until('postgres', $pulled, '1 2 3 4'), 'and can be received');
is(recorded($node, 'postgres'), '1 2 3 4', 'each event once, in order');
$node->stop;

done_testing();
