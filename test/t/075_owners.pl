# Whoever owns a subscription's view owns the subscription: a worker delivers as
# that role, from the next batch on, and ends as soon as the owner changes. After
# a restore where the owner's number is a superuser's, or where there is no such
# role, nothing is executed as anybody else.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main');
$node->start;

# ran(N, AS): until what has this number was done, and as whom.
sub ran
{
	my ($n, $as, $what, $dbname, $server) = @_;
	$server //= $node;
	$dbname //= 'postgres';

	$server->poll_query_until($dbname, "SELECT count(*) > 0 FROM ran WHERE n = $n");
	is($server->safe_psql($dbname, "SELECT string_agg(role || ' ' || logged_in, ', ' ORDER BY seq) FROM ran WHERE n = $n"), "$as $as", $what);
}

my $set_up = q(
	CREATE EXTENSION cqrs_outbox;
	CREATE TABLE ran (seq serial, n int, role name DEFAULT current_user, logged_in name DEFAULT session_user, pid int DEFAULT pg_backend_pid());
	GRANT ALL ON ran, ran_seq_seq TO PUBLIC;
	CREATE FUNCTION on_event(e cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM pg_advisory_xact_lock_shared(1);
		INSERT INTO public.ran (n) VALUES ((e.payload->>'n')::int);
	END $$;
	CREATE FUNCTION run(c jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.ran (n) VALUES ((c->>'n')::int) $$;
	SELECT cqrs_register_event('happened', 'things'), cqrs_register_command('Run', 'run(jsonb)');
	GRANT SELECT ON cqrs_topics.things TO alice, bob;
	GRANT EXECUTE ON FUNCTION cqrs_subscribe TO alice;
	SET ROLE alice;
	SELECT cqrs_subscribe('s', ARRAY['things'], 'on_event(cqrs_event)'));
query($node, "CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN; $set_up");

emit_numbers($node, 'postgres', 1);
ran(1, 'alice', 'an event is delivered as the owner');

# A batch under way ends as it began; what comes next does not.
my $holder = hold_handlers($node, 'postgres');
emit_numbers($node, 'postgres', 2);
in_handler($node, 'postgres');
query($node, 'ALTER VIEW cqrs_subscriptions.s OWNER TO bob');
emit_numbers($node, 'postgres', 3);
$holder->quit;
ran(2, 'alice', 'what was begun ends as who it began');
ran(3, 'bob', 'what comes next is delivered as the new owner');

# It needs no event, and no poll, to notice.
my $noticed = sub {
	my ($n, $take, $give, $as, $what) = @_;

	query($node, $take);
	emit_numbers($node, 'postgres', $n);
	ok($node->poll_query_until('postgres', "SELECT count(*) > 0 FROM cqrs_health('1 day', '1 day') WHERE object = 'subscription \"s\"'"), "$what: health says so");
	query($node, $give);
	ran($n, $as, "$what: delivered when it is over");
};
$noticed->(4, 'ALTER VIEW cqrs_subscriptions.s SET SCHEMA public', 'ALTER VIEW public.s SET SCHEMA cqrs_subscriptions', 'bob', 'the view is elsewhere');
$noticed->(5, 'ALTER VIEW cqrs_subscriptions.s RENAME TO t', 'ALTER VIEW cqrs_subscriptions.t RENAME TO s', 'bob', 'the view has another name');
$noticed->(6, 'DROP VIEW cqrs_subscriptions.s', q(BEGIN; SELECT cqrs_alter_subscription('s'); ALTER VIEW cqrs_subscriptions.s OWNER TO alice; COMMIT), 'alice', 'the view is dropped');
$noticed->(7, 'CREATE ROLE carol; ALTER VIEW cqrs_subscriptions.s OWNER TO carol', 'BEGIN; GRANT SELECT ON cqrs_topics.things TO carol; REASSIGN OWNED BY carol TO alice; COMMIT', 'alice', 'the owner may not read');

# A role that goes takes what it has, and stops nobody else.
query($node, 'CREATE ROLE dave LOGIN; GRANT SELECT ON cqrs_topics.things TO dave; REASSIGN OWNED BY alice TO dave');
emit_numbers($node, 'postgres', 8);
ran(8, 'dave', 'reassigned');
isnt($node->psql('postgres', 'DROP ROLE dave'), 0, 'an owner is not dropped');
query($node, 'DROP OWNED BY dave; DROP ROLE dave');
emit_numbers($node, 'postgres', 9);
query($node, q(SET ROLE bob; SELECT cqrs_create_command_queue(); SELECT cqrs_enqueue('Run', '{"n": 10}')));
ran(10, 'bob', 'others go on');
is(query($node, q(SELECT problem FROM cqrs_health('1 day', '1 day') WHERE object = 'subscription "s"')), 'owner_missing', 'nobody owns it');
is(query($node, 'SELECT count(*) FROM ran WHERE n = 9'), '0', 'so nothing is delivered');
query($node, "SELECT cqrs_unsubscribe('s')");
is(query($node, q(SELECT count(*) FROM cqrs_health('1 day', '1 day') WHERE object LIKE 'subscription %')), '0', 'and it can be cleared up');

# ----------------------------------------------------------------------
# A dump, with what is not delivered yet: of alice; and of erin, whose view and
# commands nobody owns
# ----------------------------------------------------------------------
query($node, q(ALTER SYSTEM SET cqrs_outbox.deliver = off; SELECT pg_reload_conf(); CREATE DATABASE source; CREATE ROLE erin LOGIN));
$node->poll_query_until('postgres', "SELECT setting = 'off' FROM pg_settings WHERE name = 'cqrs_outbox.deliver'");
$node->safe_psql('source', "$set_up; RESET ROLE;" . q(
	CREATE FUNCTION enqueue(who text, m int) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		EXECUTE 'SET ROLE ' || who;
		PERFORM cqrs_enqueue('Run', jsonb_build_object('n', m)), cqrs_enqueue('Run', jsonb_build_object('n', m + 1), run_at => now() + interval '1 day');
		RESET ROLE;
	END $$;
	SELECT cqrs_create_command_queue(owner) FROM unnest('{alice,erin,postgres}'::text[]) owner;
	SELECT enqueue('alice', 10), enqueue('erin', 20), enqueue('postgres', 30);
	SET ROLE alice;
	SELECT cqrs_send('Run', '{"n": 40}', 'key');
	RESET ROLE;
	UPDATE cqrs.scheduled_command SET run_at = now();
	SELECT cqrs_emit('happened', '{"n": 1}');
	DROP OWNED BY erin));
my %number = map { split /\|/ } split /\n/, query($node, "SELECT rolname, oid FROM pg_roles WHERE rolname IN ('alice', 'erin')");
query($node, 'DROP ROLE erin');
my $dump = $node->basedir . '/dump';
$node->command_ok([ 'pg_dump', '-Fd', '-f', $dump, $node->connstr('source') ], 'pg_dump');

# The numbers are superusers' there. Scheduled commands that are restored are
# found when it polls.
my $target = new_server('target', "cqrs_outbox.poll_interval = '1s'\n");
for my $name (sort keys %number)
{
	$target->stop if $name ne (sort keys %number)[0];
	$target->command_ok([ 'pg_resetwal', '-o', $number{$name}, $target->data_dir ], "next number is that of $name");
	$target->start;
	$target->safe_psql('postgres', "CREATE ROLE other_$name LOGIN SUPERUSER");
	is($target->safe_psql('postgres', "SELECT 'other_$name'::regrole::oid"), $number{$name}, "the number of $name is a superuser's");
}

# restore(NAME, OPTIONS): and have all delivered that can be.
sub restore
{
	my ($name, @options) = @_;

	$target->safe_psql('postgres', "CREATE DATABASE $name");
	$target->run_log([ 'pg_restore', @$_, '-d', $target->connstr($name), $dump ]) for @options;
	$target->safe_psql($name, 'SELECT cqrs_adopt()');
	$target->safe_psql($name, 'SELECT cqrs_create_command_queue()');
	$target->safe_psql($name, q(SELECT cqrs_enqueue('Run', '{"n": 50}'), cqrs_emit('happened', '{"n": 2}')));
	ran(50, 'postgres', "$name: commands are executed", $name, $target);

	# Without privileges, nobody is told from anybody.
	if (grep { $_ eq '-x' } map { @$_ } @options)
	{
		is($target->safe_psql($name, 'SELECT count(*) FROM ran WHERE n IN (30, 31)'), '0', "$name: not those whose role nobody knows");
		$target->safe_psql($name, 'GRANT SELECT ON cqrs_topics.commands_of_postgres TO postgres WITH GRANT OPTION');
	}
	ran($_, 'postgres', "$name: a superuser's own, too", $name, $target) for 30, 31;
}

sub left
{
	my ($name) = @_;

	return $target->safe_psql($name, q(SELECT string_agg(problem || ' ' || object, ', ' ORDER BY object, problem) FROM cqrs_health('0', '1 day')
		WHERE problem IN ('owner_missing', 'commands_late', 'topic_privilege')));
}

sub roles
{
	my ($name) = @_;

	return $target->safe_psql($name, q(SELECT string_agg(DISTINCT n || ' ' || role, ', ') FROM ran WHERE n NOT IN (30, 31, 40, 50)));
}

# No such role: what PostgreSQL could not give it is the restorer's. Not the commands.
my $lost = 'commands_late commands of topic "commands_of_alice", commands_late commands of topic "commands_of_erin", '
  . 'owner_missing subscription "commands_of_alice", owner_missing subscription "commands_of_erin"';
for my $case ([ 'missing', [] ], [ 'sections', map { ["--section=$_"] } qw(pre-data data post-data) ], [ 'without_owners', [ '-O', '-x', '-j2' ] ])
{
	my ($name, @options) = @$case;

	restore($name, @options);
	is(left($name), $lost, "$name: the role's commands are nobody's");
	ran(2, 'postgres', "$name: subscriptions are the restorer's", $name, $target);
	is(roles($name), '1 postgres, 2 postgres', "$name: nothing is executed as anybody else");
	is($target->safe_psql($name, q(SELECT count(*), count(*) FILTER (WHERE owner IS NULL) FROM cqrs_subscription_status WHERE subscription <> 'commands_of_postgres_2')), '4|2', "$name: no subscription is lost");
}

# There is one: its number does not matter.
$target->safe_psql('postgres', 'CREATE ROLE bob; CREATE ROLE alice LOGIN');
restore('named', ['-e']);
ran(2, 'alice', 'named: the subscription is the role\'s', 'named', $target);
ran(11, 'alice', 'named: its commands are executed as the role', 'named', $target);
is(roles('named'), '1 alice, 10 alice, 11 alice, 2 alice', 'named: nothing is executed as anybody else');
is(left('named'), 'commands_late commands of topic "commands_of_erin", owner_missing subscription "commands_of_erin"', 'named: what was nobody\'s is nobody\'s');
is($target->safe_psql('named', q(SET ROLE alice; SELECT count(*) FROM (SELECT cqrs_send('Run', '{"n": 40}', 'key')) s; SELECT count(*) FROM ran WHERE n = 40)),
	"1\n1", 'named: a key is the role\'s');
$target->safe_psql('named', q(SET ROLE other_alice; SELECT cqrs_send('Run', '{"n": 40}', 'key')));
is($target->safe_psql('named', 'SELECT count(*) FROM ran WHERE n = 40'), '2', 'named: not of whoever has the number');

$_->stop for $node, $target;
done_testing();
