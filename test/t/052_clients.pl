# Commands work in pipelines, with statements parsed each time and prepared
# once; as many statements in one message; and with COPY. An error takes back
# all of the implicit transaction that it is in, and what comes after it in a
# pipeline is not handled.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main');

# joined(): who joined, the events of it, and what its own handler made of them;
# all of it is gone then
sub joined
{
	my $out = query($node, q(
		SELECT coalesce((SELECT string_agg(user_id::text, ' ' ORDER BY seq) FROM member), ''),
			   coalesce((SELECT string_agg(payload->>'user_id', ' ' ORDER BY e.position)
						 FROM seen, cqrs_events('meeting_events', 100000, after_position => seen.position) e), ''),
			   (SELECT count(*) FROM counted)));
	query($node, q(TRUNCATE member, counted; UPDATE seen SET position = coalesce((SELECT max(e.position) FROM cqrs_topics.meeting_events e), 0)));
	return $out;
}

# run_pgbench(MODE, EXIT CODE, PATTERN, NAME, SCRIPT, OPTIONS...): the script, once
# if nothing else is said
sub run_pgbench
{
	my ($mode, $status, $pattern, $name, $script, @options) = @_;
	my $file = PostgreSQL::Test::Utils::tempdir . '/script.sql';

	unlink $file;
	append_to_file($file, $script);
	@options = ('--transactions=1') unless @options;
	$node->command_checks_all(
		[ 'pgbench', '--no-vacuum', "--protocol=$mode", "--file=$file", @options, 'postgres' ],
		$status, [qr/processed/], [$pattern], $name);
}

$node->start;
query($node, q(
	CREATE EXTENSION cqrs_outbox;
	CREATE TABLE member (seq serial, user_id int);
	CREATE TABLE counted (user_id int);
	CREATE TABLE seen AS SELECT 0::bigint AS position;
	SELECT cqrs_register_event('user_joined', 'meeting_events');
	CREATE FUNCTION count_member(joined jsonb) RETURNS void LANGUAGE sql AS $$
		INSERT INTO counted VALUES ((joined->>'user_id')::int)
	$$;
	SELECT cqrs_register_event_handler('user_joined', 'count_member(jsonb)');
	CREATE FUNCTION join_meeting(command jsonb) RETURNS int LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO member (user_id) VALUES ((command->>'user_id')::int);
		PERFORM cqrs_emit('user_joined', command, key => command->>'user_id');
		RETURN 1 / (command->>'user_id')::int;
	END $$;
	SELECT cqrs_register_command('JoinMeeting', 'join_meeting(jsonb)');
	CREATE FUNCTION join_all(command jsonb) RETURNS SETOF jsonb LANGUAGE sql AS $$
		SELECT cqrs_send('JoinMeeting', jsonb_build_object('user_id', user_id)) FROM generate_series(1, 3) user_id
	$$;
	SELECT cqrs_register_command('JoinAll', 'join_all(jsonb)');
	CREATE FUNCTION count_members(jsonb) RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM member';
	SELECT cqrs_register_query('CountMembers', 'count_members(jsonb)');
));

my $join = q(SELECT cqrs_send('JoinMeeting', jsonb_build_object('user_id', :user::int));) . "\n";
sub join_user { return "\\set user $_[0]\n$join"; }

for my $mode (qw(extended prepared))
{
	# Without BEGIN, all up to the end of the pipeline is one transaction.
	run_pgbench($mode, 0, qr/^/, "$mode: a pipeline",
		"\\startpipeline\n" . join_user(1) . join_user(2) . join_user(3) . "\\endpipeline\n");
	is(joined(), '1 2 3|1 2 3|3', 'does all of it');
	run_pgbench($mode, 2, qr/division by zero/, "$mode: a pipeline with an error",
		"\\startpipeline\n" . join_user(1) . join_user(0) . join_user(3) . "\\endpipeline\n");
	is(joined(), '||0', 'does nothing of it');

	# Several transactions in a pipeline. One that is committed is; what comes
	# after an error is not handled.
	run_pgbench($mode, 2, qr/division by zero/, "$mode: a pipeline of transactions",
		"\\startpipeline\nBEGIN;\n" . join_user(1) . "COMMIT;\nBEGIN;\n" . join_user(2) . join_user(0) . "COMMIT;\n" . join_user(4) . "\\endpipeline\n");
	is(joined(), '1|1|1', 'does those before the error');

	# A key that was sent again in the pipeline, as a client does that was
	# cut off; streams and queries.
	run_pgbench($mode, 0, qr/^/, "$mode: a pipeline with keys, streams and queries",
		"\\startpipeline\n\\set user 5\n"
		  . "SELECT cqrs_send('JoinMeeting', jsonb_build_object('user_id', :user::int), '$mode');\n" x 2
		  . "SELECT cqrs_stream('JoinAll');\nSELECT 1 / (cqrs_query('CountMembers')::int - 3);\n"
		  . "\\endpipeline\n");
	is(joined(), '5 1 2 3|5 1 2 3|4', 'each does what it does');

	# Several clients, the same statements over and over.
	run_pgbench($mode, 0, qr/^/, "$mode: many pipelines",
		"\\startpipeline\n" . join_user(1) x 5 . "SELECT cqrs_query('CountMembers');\n\\endpipeline\n",
		'--client=4', '--transactions=50');
	like(joined(), qr/^1( 1){999}\|1( 1){999}\|1000$/, 'lose nothing');
}

# Several statements in one message of the simple protocol are one transaction,
# too. What psql gets with -c is sent so.
sub one_message
{
	my ($sql) = @_;
	my ($out, $err) = ('', '');

	IPC::Run::run([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', $sql ], '>', \$out, '2>', \$err);
	return $out . $err;
}
sub send_user { return "SELECT cqrs_send('JoinMeeting', '{\"user_id\": $_[0]}');"; }

is(one_message(send_user(1) . send_user(2)), "1\n0\n", 'two commands in one message');
is(joined(), '1 2|1 2|2', 'are both handled');
like(one_message(send_user(1) . send_user(0) . send_user(3)), qr/^1\nERROR:  division by zero\n/, 'an error among them');
is(joined(), '||0', 'takes back all');
like(one_message(send_user(1) . 'COMMIT;' . send_user(2) . send_user(0)), qr/^1\n0\n(WARNING:.*\n)?ERROR:  division by zero\n/, 'what is committed between');
is(joined(), '1|1|1', 'stays');
like(one_message('BEGIN;' . send_user(1) . 'SAVEPOINT s;' . send_user(2) . 'ROLLBACK TO s;' . send_user(3) . 'COMMIT'),
	qr/^1\n0\n0\n$/, 'a block with a savepoint');
is(joined(), '1 3|1 3|2', 'has what it did not roll back');

# COPY: a trigger sends a command for each row that comes in.
query($node, q(
	CREATE TABLE incoming (user_id int);
	CREATE FUNCTION send_join() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM cqrs_send('JoinMeeting', to_jsonb(NEW));
		RETURN NULL;
	END $$;
	CREATE TRIGGER send_join AFTER INSERT ON incoming FOR EACH ROW EXECUTE FUNCTION send_join();
));
is(query($node, "COPY incoming FROM STDIN;\n1\n2\n3\n\\.\n"), '', 'COPY');
is(joined(), '1 2 3|1 2 3|3', 'sends a command for each row');
like(error_of($node, 'postgres', "COPY incoming FROM STDIN;\n1\n0\n3\n\\.\n"), qr/ERROR:  22012: division by zero\n.*function send_join\(\)/s, 'one that fails');
is(joined(), '||0', 'takes back all');
is(query($node, q(COPY (SELECT cqrs_stream('JoinAll')) TO STDOUT)), "1\n0\n0", 'a stream copied out');
is(joined(), '1 2 3|1 2 3|3', 'is handled once');

$node->stop;
done_testing();
