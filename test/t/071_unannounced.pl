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
set_up_recording($node, 'postgres');
replicate_prepared($node);
$node->safe_psql('postgres', "SELECT cqrs_register_event('busy', 'busy')");

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
ok(wait_prepared($node, 1), 'a transaction that emits is prepared');
$session->begin('CALL keep_busy(100000)');
$node->safe_psql('source', "COMMIT PREPARED 'one'");
ok(wait_prepared($node, 0), 'it is committed');
ok(wait_recorded($node, 'postgres', 2), 'and its event is found beside others that are announced');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CALL keep_busy%' AND state = 'active'"),
	'1', 'all the while');
$session->kill;
$node->poll_query_until('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CALL keep_busy%'");
$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE query LIKE 'CALL keep_busy%'");

# The newest transaction of all.
$node->safe_psql('source', "BEGIN; INSERT INTO replicated VALUES (2); PREPARE TRANSACTION 'two'");
ok(wait_prepared($node, 1), 'another is prepared');
my $xid = $node->safe_psql('postgres', 'SELECT max(transaction::text::bigint) FROM pg_prepared_xacts');
is($node->safe_psql('postgres', 'SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint') <= $xid, 1,
	'no snapshot lists it');
my ($manager) = processes($node, 'manager', 'postgres');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($manager, 60000)");
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity
	WHERE backend_type = 'cqrs_outbox manager' AND datname = 'postgres' AND pid <> $manager AND wait_event IN ('Extension', 'CqrsOutboxManager')"),
	'a manager has looked');
$node->safe_psql('source', "COMMIT PREPARED 'two'");
ok(wait_prepared($node, 0), 'it is committed');
ok(wait_recorded($node, 'postgres', 3), 'and its event is found');
is(recorded($node, 'postgres'), '0 1 2', 'each once');

$node->safe_psql('postgres', 'ALTER SUBSCRIPTION replicated DISABLE');
$node->stop;
done_testing();
