# Queries are answered by a hot standby: the registry and the outbox are there to
# read. What writes is refused as the server refuses it, whoever calls it; and
# what has been registered on the primary is known once it has been replayed.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $primary = new_server('primary', '', allows_streaming => 1);

$primary->start;
$primary->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	CREATE TABLE member (user_id int);
	SELECT cqrs_register_event('user_joined', 'meeting_events');
	SELECT cqrs_register_event('noticed');
	CREATE FUNCTION join_meeting(c jsonb) RETURNS jsonb LANGUAGE sql AS $$
		INSERT INTO member VALUES ((c->>'user_id')::int);
		SELECT cqrs_emit('user_joined', c);
		SELECT c
	$$;
	CREATE FUNCTION count_members(jsonb) RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM member';
	CREATE FUNCTION list_members(jsonb) RETURNS SETOF member LANGUAGE sql AS 'SELECT * FROM member ORDER BY 1';
	CREATE FUNCTION what(jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
	BEGIN
		RETURN jsonb_build_array((cqrs_context()).kind, (cqrs_context()).name, (cqrs_context()).id IS NOT NULL, cqrs_query('CountMembers'));
	END $$;
	CREATE FUNCTION notice(jsonb) RETURNS void LANGUAGE sql AS '';
	CREATE FUNCTION fails(jsonb) RETURNS bigint LANGUAGE sql AS 'SELECT 1 / (SELECT count(*) FROM member WHERE user_id < 0)';
	CREATE FUNCTION writes(jsonb) RETURNS bigint LANGUAGE sql AS 'INSERT INTO member VALUES (9); SELECT 9';
	CREATE FUNCTION pass_on(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT cqrs_next()';
	SELECT cqrs_register_command('JoinMeeting', 'join_meeting(jsonb)');
	SELECT cqrs_register_query('CountMembers', 'count_members(jsonb)');
	SELECT cqrs_register_query('What', 'what(jsonb)');
	SELECT cqrs_register_command('ListMembers', 'list_members(jsonb)');
	SELECT cqrs_register_command('Reads', 'what(jsonb)');
	SELECT cqrs_register_chain('Chain', ARRAY['pass_on(jsonb)', 'what(jsonb)']);
	SELECT cqrs_register_query('Fails', 'fails(jsonb)');
	SELECT cqrs_register_fallback('fails(jsonb)', 'count_members(jsonb)');
	SELECT cqrs_register_query('Writes', 'writes(jsonb)');
	SELECT cqrs_register_event_handler('noticed', 'notice(jsonb)');
	SELECT cqrs_send('JoinMeeting', jsonb_build_object('user_id', n)) FROM generate_series(1, 4) n;
));

my $standby = new_standby($primary, 'standby');
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));

is(query($standby, q(SELECT cqrs_query('CountMembers'))), '4', 'a query');
is(query($standby, q(SELECT cqrs_query('What'))), '["query", "What", true, 4]', 'with a context, and a query within');
is(query($standby, q(SELECT cqrs_query('Fails'))), '4', 'and a fallback');
is(query($standby, q(SELECT cqrs_stream('ListMembers'))), join("\n", map { qq({"user_id": $_}) } 1 .. 4), 'a stream that only reads');
is(query($standby, q(SELECT cqrs_send('Reads'))), '["command", "Reads", true, 4]', 'so may a command');
is(query($standby, q(SELECT cqrs_send('Chain'))), '["command", "Chain", true, 4]', 'and a chain, whose subtransactions need no write');
is(query($standby, q(SELECT string_agg(payload->>'user_id', ' ') FROM cqrs_events('meeting_events'))), '1 2 3 4', 'the outbox');
is(query($standby, 'SELECT state FROM cqrs_command_result(gen_random_uuid())'), 'unknown', 'what became of a command');
is(query($standby, q(SELECT cqrs_context() IS NULL)), 't', 'nothing is being handled');
is(query($standby, q(SELECT count(*) FROM cqrs_subscription_status)), '0', 'nothing is subscribed');

my %refused = (
	q(cqrs_send('JoinMeeting', '{"user_id": 5}')) => 'INSERT',
	q(cqrs_query('Writes')) => 'INSERT',
	q(cqrs_send('Reads', '{}', 'key')) => 'cqrs_send() with an idempotency key',
	q(cqrs_consumed('queue', 'id')) => 'cqrs_consumed()',
	q(cqrs_emit('user_joined', '{}')) => 'cqrs_emit()',
	q(cqrs_emit('noticed', '{}')) => 'cqrs_emit()',
	q(cqrs_register_command('x', 'what(jsonb)')) => 'cqrs_register_command()',
	q(cqrs_register_query('x', 'what(jsonb)')) => 'cqrs_register_query()',
	q(cqrs_unregister_query('Reads')) => 'cqrs_unregister_query()',
	q(cqrs_create_topic('x')) => 'cqrs_create_topic()',
	q(cqrs_drop_topic('x', if_exists => true)) => 'cqrs_drop_topic()',
	q(cqrs_register_event('x')) => 'cqrs_register_event()',
	q(cqrs_register_event_handler('user_joined', 'notice(jsonb)')) => 'cqrs_register_event_handler()',
	q(cqrs_register_fallback('what(jsonb)', 'pass_on(jsonb)')) => 'cqrs_register_fallback()');
for my $call (sort keys %refused)
{
	like(error_of($standby, 'postgres', "SELECT $call"), qr/ERROR:  25006: cannot execute \Q$refused{$call}\E (in a read-only transaction|during recovery)/, "$call is refused");
}
is(query($standby, q(SELECT cqrs_query('CountMembers'))), '4', 'after which it goes on');

# In one session, which has the registry cached.
my $session = new_session($standby, 'postgres');
like($session->query(q(SELECT cqrs_query('CountMembersAgain'))), qr/query "CountMembersAgain" is not registered/, 'a query that is not registered');
$primary->safe_psql('postgres', q(
	SELECT cqrs_register_query('CountMembersAgain', 'count_members(jsonb)');
	SELECT cqrs_send('JoinMeeting', '{"user_id": 5}');
));
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));
is($session->query(q(SELECT cqrs_query('CountMembersAgain'))), '5', 'once it is on the primary');
is($session->query(q(BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT cqrs_query('CountMembers'))), '5', 'in a snapshot');
$primary->safe_psql('postgres', q(
	SELECT cqrs_unregister_query('CountMembersAgain');
	SELECT cqrs_send('JoinMeeting', '{"user_id": 6}');
));
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));
is($session->query(q(SELECT cqrs_query('CountMembers'); COMMIT)), '5', 'the same is seen');
is($session->query(q(SELECT cqrs_query('CountMembers'))), '6', 'and then what is new');
like($session->query(q(SELECT cqrs_query('CountMembersAgain'))), qr/query "CountMembersAgain" is not registered/, 'what is unregistered is');

# Promoted, it handles commands.
$session->quit;
$primary->stop('immediate');
$standby->promote;
is(query($standby, q(SELECT cqrs_send('JoinMeeting', '{"user_id": 7}', 'key'))), '{"user_id": 7}', 'promoted, it handles commands');
is(query($standby, q(SELECT cqrs_query('CountMembers'))), '7', 'and queries as before');
$standby->stop;

done_testing();
