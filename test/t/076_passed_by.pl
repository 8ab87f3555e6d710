# If a role's topic is locked when its commands' time comes, they are released
# once it is not, whatever commands of other roles are passed by meanwhile.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

# Nothing is found because all commands are looked through again.
my $node = new_server('main');

$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	CREATE ROLE early LOGIN;
	CREATE ROLE late LOGIN;
	CREATE TABLE ran (who text);
	CREATE FUNCTION note(c jsonb) RETURNS jsonb LANGUAGE sql SECURITY DEFINER
		SET search_path = pg_catalog AS $$ INSERT INTO public.ran VALUES (c->>'who'); SELECT c $$;
	SELECT cqrs_register_command('Note', 'note(jsonb)');
	SELECT cqrs_create_command_queue('early'), cqrs_create_command_queue('late')));

# enqueue(ROLE, DELAY)
sub enqueue
{
	my ($role, $delay) = @_;

	$node->safe_psql('postgres', qq(SELECT cqrs_enqueue('Note', '{"who": "$role"}', run_at => clock_timestamp() + interval '$delay')),
		extra_params => [ '-U', $role ]);
}

sub ran
{
	my ($who, $count) = @_;

	return $node->poll_query_until('postgres', "SELECT count(*) >= $count FROM ran WHERE who = '$who'");
}

enqueue($_, '1 ms') for qw(early late);
ok(ran($_, 1), "a command of $_ is executed") for qw(early late);

my $locker = new_session($node, 'postgres');

$locker->query('BEGIN');
$locker->query(q(DO $$
	DECLARE segment record;
	BEGIN
		FOR segment IN
			SELECT oid::regclass AS name FROM pg_class
			WHERE relnamespace = 'cqrs'::regnamespace AND relkind = 'r' AND relname ~ '^topic_[0-9]+_[0-9]$'
		LOOP
			EXECUTE format('LOCK TABLE %s IN SHARE MODE', segment.name);
		END LOOP;
	END $$));

# What is due at once is not scheduled, but waits for the topic: so later.
enqueue('early', '2 s');
for (1 .. 20)
{
	enqueue('late', '2 s');
	$locker->query('SELECT pg_sleep(0.1)');
}
ok($node->poll_query_until('postgres', "SELECT max(run_at) < clock_timestamp() - interval '1 s' FROM cqrs.scheduled_command"), 'their times come');
is($node->safe_psql('postgres', 'SELECT count(*) FROM cqrs.scheduled_command'), '21', 'while topics are locked, nothing is released');
$locker->query('ROLLBACK');
ok(ran('late', 21), 'the later ones are executed');
ok(ran('early', 2), 'and the earlier one');

$node->stop;
done_testing();
