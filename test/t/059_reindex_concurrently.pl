# REINDEX CONCURRENTLY of all that is ours, over and over, beside all kinds of
# statements: none of them fails, and no event is lost or delivered twice.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main', "max_connections = 40\nsynchronous_commit = off\n");

$node->start;
set_up_recording($node, 'postgres');
$node->safe_psql('postgres', q(
	SELECT cqrs_subscribe('pull', ARRAY['things']);
	CREATE TABLE pulled (event_id uuid);
	CREATE FUNCTION answer(command jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT command';
	SELECT cqrs_register_command('Answer', 'answer(jsonb)');
	SELECT cqrs_create_command_queue();
	CREATE TABLE stop ();
	CREATE PROCEDURE until_stop(statement text) LANGUAGE plpgsql AS $$
	BEGIN
		LOOP
			EXECUTE statement;
			COMMIT;
			EXIT WHEN EXISTS (SELECT FROM stop);
			PERFORM pg_sleep(0.002);
		END LOOP;
	END $$));

# Each of them in a session of its own, in transactions of their own, not faster
# than all is delivered.
my @statements = (
	q(SELECT cqrs_emit('happened', '{"n": 1}', key => 'a')),
	q(SELECT cqrs_emit_many('happened', '{"{\"n\": 2}", "{\"n\": 3}"}')),
	q(DO $d$ BEGIN
		INSERT INTO pulled SELECT event_id FROM cqrs_receive('pull', 3);
		IF FOUND THEN PERFORM cqrs_ack('pull'); END IF;
	END $d$),
	q(SELECT cqrs_send('Answer', '{}', idempotency_key => gen_random_uuid()::text)),
	q(SELECT cqrs_consumed('queue', ARRAY[gen_random_uuid()::text, (random() * 100)::int::text])),
	q(SELECT cqrs_enqueue('Answer', '{}')),
	q(SELECT cqrs_cancel_command(cqrs_enqueue('Answer', '{}', run_at => now() + interval '1 hour'))),
	q(SELECT count(*) FROM cqrs_subscription_status),
	q(SELECT count(*) FROM cqrs_events('things', 10)),
	q(SELECT count(*) FROM cqrs_health()));
my @sessions = map { new_session($node, 'postgres') } @statements;
my $failed = 0;

for my $i (0 .. $#statements)
{
	$sessions[$i]->begin("CALL until_stop(\$q\$$statements[$i]\$q\$)");
}
for (1 .. 3)
{
	my ($ret, undef, $stderr) = $node->psql('postgres', 'REINDEX SCHEMA CONCURRENTLY cqrs');

	$failed++, diag($stderr) if $ret != 0;
}
is($failed, 0, 'all is indexed anew, three times');
$node->safe_psql('postgres', 'INSERT INTO stop DEFAULT VALUES');
for my $i (0 .. $#statements)
{
	is($sessions[$i]->finish, '', "no error in $statements[$i]");
}

$node->safe_psql('postgres', q(SELECT cqrs_wait('recorder')));
$node->safe_psql('postgres', 'SELECT cqrs_tick()');
$node->safe_psql('postgres', q(DO $d$ BEGIN
	LOOP
		INSERT INTO pulled SELECT event_id FROM cqrs_receive('pull', 1000);
		EXIT WHEN NOT FOUND;
		PERFORM cqrs_ack('pull');
	END LOOP;
END $d$));
is($node->safe_psql('postgres', q(
	SELECT count(*) = count(DISTINCT event_id), count(*) = (SELECT count(*) FROM cqrs_topics.things), count(*) > 100 FROM recorded)),
	't|t|t', 'the handler got each event once');
is($node->safe_psql('postgres', q(
	SELECT count(*) = count(DISTINCT event_id), count(*) = (SELECT count(*) FROM cqrs_topics.things) FROM pulled)),
	't|t', 'so did who pulls');
unlike(slurp_file($node->logfile), qr/could not open relation|XX000|has no index/, 'no index was missed');

done_testing();
