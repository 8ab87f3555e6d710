# What is announced while a manager is ending is found by the next one, and what
# is scheduled then is released.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use DebugPoints;

my $node = new_server('main', "cqrs_outbox.manager_idle_timeout = '100ms'\n");

$node->start;
set_up_recording($node, 'postgres');
$node->safe_psql('postgres', q(
	CREATE TABLE noted (note jsonb);
	CREATE FUNCTION note(c jsonb) RETURNS jsonb LANGUAGE sql SECURITY DEFINER
		SET search_path = pg_catalog AS $$ INSERT INTO public.noted VALUES (c); SELECT c $$;
	SELECT cqrs_register_command('Note', 'note(jsonb)');
	SELECT cqrs_create_command_queue();
	SELECT cqrs_emit('happened', '{"n": 1}'), cqrs_enqueue('Note', '{"n": 1}')));
ok(wait_recorded($node, 'postgres', 1), 'an event is delivered');
ok($node->poll_query_until('postgres', 'SELECT count(*) = 1 FROM noted'), 'and a command executed');
ok(wait_managers($node), 'the manager ends');

reconfigure($node, "cqrs_outbox.debug_points = 'manager_before_rest=wait'");

# while_ending(N, SQL): what happens while a manager, which came for event N, is
# about to end; returns its pid
sub while_ending
{
	my ($n, $sql) = @_;
	my $holder = hold_point($node, 'manager_before_rest');

	emit_numbers($node, 'postgres', $n);
	my $pid = at_point($node, 'manager_before_rest');
	$node->safe_psql('postgres', $sql);
	$holder->quit;
	return $pid;
}

my $pid = while_ending(2, q(SELECT cqrs_emit('happened', '{"n": 3}')));
ok(wait_recorded($node, 'postgres', 3), 'what was emitted then is delivered');
unlike(join(' ', processes($node, 'manager')), qr/\b$pid\b/, 'by another');
ok(wait_managers($node), 'which ends, too');
while_ending(4, q(SELECT cqrs_enqueue('Note', '{"n": 2}', run_at => clock_timestamp() + interval '2 s')));
ok($node->poll_query_until('postgres', 'SELECT count(*) = 2 FROM noted'), 'what was scheduled then is executed');
is(recorded($node, 'postgres'), '1 2 3 4', 'each event came once');

$node->stop;
done_testing();
