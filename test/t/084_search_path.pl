# In the worker, a handler finds what it found in the session that subscribed,
# whatever ALTER ROLE and ALTER DATABASE say since, and whoever else's handlers
# the worker calls.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

# One worker, for all of them.
my $node = new_server('main', "cqrs_outbox.max_workers = 1\n");
$node->start;

sub query { return $node->safe_psql('postgres', $_[0]); }

query(q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('happened', 'things');
	CREATE ROLE alice LOGIN;
	GRANT SELECT ON cqrs_topics.things TO alice;
	GRANT EXECUTE ON FUNCTION cqrs_subscribe, cqrs_alter_subscription TO alice;
	CREATE SCHEMA one AUTHORIZATION alice;
	CREATE SCHEMA two AUTHORIZATION alice;
	SET ROLE alice;
	CREATE TABLE one.got (n text, path text);
	CREATE TABLE two.got (n text, path text);
	CREATE TABLE one.later (n text);
	CREATE FUNCTION one.on_later() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN INSERT INTO got VALUES (NEW.n || ' later', current_setting('search_path')); RETURN NULL; END $$;
	CREATE CONSTRAINT TRIGGER later AFTER INSERT ON one.later DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW EXECUTE FUNCTION one.on_later();
	CREATE FUNCTION one.bare(event cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO got VALUES (event.payload->>'n', current_setting('search_path'));
		IF to_regclass('later') IS NOT NULL THEN
			INSERT INTO later VALUES (event.payload->>'n');
		ELSE
			SET search_path = pg_catalog;
		END IF;
	END $$;
	CREATE FUNCTION one.own(event cqrs_event) RETURNS void LANGUAGE plpgsql SET search_path = two AS $$
	BEGIN
		INSERT INTO got VALUES (event.payload->>'n' || ' own', current_setting('search_path'));
	END $$;
	CREATE FUNCTION one.run(command jsonb) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO got VALUES (command->>'n', current_setting('search_path'));
	END $$;
	RESET ROLE;
	SELECT cqrs_register_command('Run', 'one.run(jsonb)');
));

# got(SCHEMA): what was written there, and forget it
sub got
{
	return query("WITH g AS (DELETE FROM $_[0].got RETURNING *) SELECT string_agg(n || ' by ' || path, '; ' ORDER BY n, path COLLATE \"C\") FROM g");
}

sub wait_got
{
	my ($one, $two, $what) = @_;

	ok($node->poll_query_until('postgres', "SELECT (SELECT count(*) FROM one.got) = $one AND (SELECT count(*) FROM two.got) = $two"), $what);
}

my $alice = new_session($node, 'postgres', 'alice');
$alice->query('SET search_path = one, public');
$alice->query("SELECT cqrs_subscribe('in_one', ARRAY['things'], 'bare(cqrs_event)')");
$alice->query("SELECT cqrs_subscribe('own', ARRAY['things'], 'own(cqrs_event)')");
$alice->query('SET search_path = two, public');
$alice->query("SELECT cqrs_subscribe('in_two', ARRAY['things'], 'one.bare(cqrs_event)')");
$alice->query('RESET search_path');
query("SELECT cqrs_emit_many('happened', ARRAY['{\"n\": 1}', '{\"n\": 2}']::jsonb[])");
wait_got(4, 4, 'each finds its table');
is(got('one'), join('; ', map { my $n = $_; map { "$n$_ by one, public, pg_temp" } '', ' later' } 1, 2),
	'with the search_path of the session that subscribed, in deferred triggers, too, and whatever the event before set');
is(got('two'), '1 by two, public, pg_temp; 1 own by two; 2 by two, public, pg_temp; 2 own by two', '... and the function\'s own, if it has one');

# A session's default is not asked for.
query('ALTER ROLE alice SET search_path = two');
query('ALTER DATABASE postgres SET search_path = two');
$node->restart;
$alice->quit;
query("SELECT public.cqrs_emit('happened', '{\"n\": 3}')");
wait_got(2, 2, 'after ALTER ROLE and ALTER DATABASE, and in another worker');
is(got('one'), '3 by one, public, pg_temp; 3 later by one, public, pg_temp', 'nothing is different');
got('two');

# Changed, while the worker is there
query("SELECT public.cqrs_alter_subscription('in_one', search_path => 'two')");
query("SELECT public.cqrs_emit('happened', '{\"n\": 4}')");
wait_got(0, 3, 'another one');
is(got('two'), '4 by two, pg_temp; 4 by two, public, pg_temp; 4 own by two', '... counts from then on');

# Commands: where the role's queue was created
$alice = new_session($node, 'postgres', 'alice');
$alice->query('SET search_path = one, public');
$alice->query('SELECT cqrs_create_command_queue()');
$alice->query(q(SELECT cqrs_enqueue('Run', '{"n": 5}')));
$alice->query('SET search_path = public');
$alice->query(q(SELECT cqrs_enqueue('Run', '{"n": 6}')));
wait_got(2, 0, 'commands, too');
is(got('one'), '5 by one, public, pg_temp; 6 by one, public, pg_temp', '... have that of the queue');

done_testing();
