# When something is announced in a database that has no process, a worker starts
# beside the manager, and delivers it. Where it is another owner's, that one's comes.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use DebugPoints;

my $node = new_server('main', "cqrs_outbox.manager_idle_timeout = '100ms'\n");

$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	CREATE TABLE got (n integer, pid integer DEFAULT pg_backend_pid());
	GRANT ALL ON got TO PUBLIC;
	CREATE FUNCTION on_event(e cqrs_event) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.got VALUES ((e.payload->>'n')::integer) $$;
	SELECT cqrs_register_event('happened', 'things');
	SELECT cqrs_subscribe('it', ARRAY['things'], 'on_event');
	SELECT cqrs_emit('happened', '{"n": 1}')));

# got(N): wait until there are so many
sub got
{
	my ($n) = @_;

	return $node->poll_query_until('postgres', "SELECT count(*) = $n FROM got");
}

# rest(): until there is neither manager nor worker
sub rest
{
	$node->poll_query_until('postgres', q(
		SELECT count(*) FILTER (WHERE backend_type = 'cqrs_outbox manager') = 0
			AND count(pg_terminate_backend(pid, 10000)) FILTER (WHERE backend_type = 'cqrs_outbox worker') = 0
		FROM pg_stat_activity WHERE backend_type ~ '^cqrs_outbox (manager|worker)')) or die 'they do not end';
}

# announced(N): emits the event; returns the worker that is there when the manager
# is about to look, which goes on then
sub announced
{
	my ($n) = @_;
	my $holder = hold_point($node, 'manager_before_look');

	query($node, qq(SELECT cqrs_emit('happened', '{"n": $n}')));
	at_point($node, 'manager_before_look');
	$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox worker' AND wait_event_type = 'Extension'") or return '';
	my $pid = query($node, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox worker'");

	$holder->quit;
	return $pid;
}

ok(got(1), 'an event is delivered');
reconfigure($node, "cqrs_outbox.debug_points = 'manager_before_look=wait'");
rest();
my $pid = announced(2);

like($pid, qr/^\d+$/, 'a worker is there before the manager has looked');
ok(got(2), 'the next event is delivered');
is(query($node, 'SELECT pid FROM got WHERE n = 2'), $pid, 'by that one');

# Those of another owner need another worker.
$node->safe_psql('postgres', q(
	CREATE ROLE other LOGIN;
	GRANT SELECT ON cqrs_topics.things TO other;
	GRANT EXECUTE ON FUNCTION cqrs_subscribe TO other));
$node->safe_psql('postgres', q(
	GRANT CREATE ON SCHEMA public TO other;
	SET ROLE other;
	CREATE FUNCTION other_on_event(e cqrs_event) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.got VALUES ((e.payload->>'n')::integer) $$;
	SELECT cqrs_subscribe('other', ARRAY['things'], 'other_on_event', start => 'latest')));
for my $n (3 .. 6)
{
	rest();
	like(announced($n), qr/^\d+$/, 'a worker is there, of one owner');
	ok(got(2 * $n - 2), 'that of the other comes, too');
	is(query($node, "SELECT count(*), count(DISTINCT pid) FROM got WHERE n = $n"), '2|2', 'each gets the event once');
}

$node->stop;
done_testing();
