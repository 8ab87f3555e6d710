# What is committed without anybody announcing it, as logical replication does
# with a prepared transaction, is found by a poll: even beside others that are
# announced all the time, and even if its transaction was the newest of all
# when the manager last looked.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main', "wal_level = logical\nmax_wal_senders = 5\nmax_replication_slots = 5\ncqrs_outbox.poll_interval = '300ms'\n");

$node->start;
plan skip_all => 'no two-phase logical replication' if $node->safe_psql('postgres', 'SHOW server_version_num') < 150000;
$node->safe_psql('postgres', 'CREATE DATABASE source');
set_up_recording($node, 'postgres');
my $connstr = 'dbname=source host=' . $node->host . ' port=' . $node->port;
$node->safe_psql('source', q(
	CREATE TABLE replicated (n int PRIMARY KEY);
	CREATE PUBLICATION everything FOR ALL TABLES;
	SELECT pg_create_logical_replication_slot('everything', 'pgoutput', false, true)));
$node->safe_psql('postgres', q(
	SELECT cqrs_register_event('busy', 'busy');
	CREATE TABLE replicated (n int PRIMARY KEY);
	CREATE FUNCTION emit_replicated() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$
	BEGIN
		PERFORM cqrs_emit('happened', jsonb_build_object('n', new.n));
		RETURN NULL;
	END $$;
	CREATE TRIGGER emit_replicated AFTER INSERT ON replicated FOR EACH ROW EXECUTE FUNCTION emit_replicated();
	ALTER TABLE replicated ENABLE ALWAYS TRIGGER emit_replicated));
$node->safe_psql('postgres', "CREATE SUBSCRIPTION everything CONNECTION '$connstr' PUBLICATION everything
	WITH (create_slot = false, slot_name = 'everything', two_phase = true, copy_data = false)");

# prepared(COUNT): until so many transactions are prepared in the target
sub prepared
{
	my ($count) = @_;

	return $node->poll_query_until('postgres', "SELECT count(*) = $count FROM pg_prepared_xacts WHERE database = 'postgres'");
}

# The replication is up once this has arrived.
$node->safe_psql('source', 'INSERT INTO replicated VALUES (0)');
ok(wait_recorded($node, 'postgres', 1), 'replication works');

# Beside announced ones.
my $session = new_session($node, 'postgres');

$session->query(q(CREATE PROCEDURE keep_busy(n int) LANGUAGE plpgsql AS $$
	BEGIN
		FOR i IN 1 .. n LOOP
			PERFORM cqrs_emit('busy', '{}');
			COMMIT;
			PERFORM pg_sleep(0.02);
			COMMIT;
		END LOOP;
	END $$));
$node->safe_psql('source', "BEGIN; INSERT INTO replicated VALUES (1); PREPARE TRANSACTION 'one'");
ok(prepared(1), 'a transaction that emits is prepared');
$session->begin('CALL keep_busy(100000)');
$node->safe_psql('source', "COMMIT PREPARED 'one'");
ok(prepared(0), 'it is committed');
ok(wait_recorded($node, 'postgres', 2), 'and its event is found beside others that are announced');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CALL keep_busy%' AND state = 'active'"),
	'1', 'all the while');
$session->kill;
$node->poll_query_until('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CALL keep_busy%'");
$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE query LIKE 'CALL keep_busy%'");

# The newest transaction of all.
$node->safe_psql('source', "BEGIN; INSERT INTO replicated VALUES (2); PREPARE TRANSACTION 'two'");
ok(prepared(1), 'another is prepared');
my $xid = $node->safe_psql('postgres', 'SELECT max(transaction::text::bigint) FROM pg_prepared_xacts');
is($node->safe_psql('postgres', 'SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint') <= $xid, 1,
	'no snapshot lists it');
my ($manager) = processes($node, 'manager', 'postgres');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($manager, 60000)");
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity
	WHERE backend_type = 'cqrs_outbox manager' AND datname = 'postgres' AND pid <> $manager AND wait_event IN ('Extension', 'CqrsOutboxManager')"),
	'a manager has looked');
$node->safe_psql('source', "COMMIT PREPARED 'two'");
ok(prepared(0), 'it is committed');
ok(wait_recorded($node, 'postgres', 3), 'and its event is found');
is(recorded($node, 'postgres'), '0 1 2', 'each once');

$node->safe_psql('postgres', 'ALTER SUBSCRIPTION everything DISABLE');
$node->stop;
done_testing();
