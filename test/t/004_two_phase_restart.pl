# Events of prepared transactions are delivered when COMMIT PREPARED makes them
# visible, even after a restart and if nothing else happens; until then, they
# hold up no others.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main', "wal_level = logical\nmax_wal_senders = 4\nmax_replication_slots = 4\n");

$node->start;
set_up_recording($node, 'postgres');

sub prepare
{
	my ($name, $n) = @_;

	$node->safe_psql('postgres', qq(
		BEGIN;
		SELECT cqrs_emit('happened', '{"n": $n}');
		PREPARE TRANSACTION '$name';
	));
}

# While it is prepared.
prepare('one', 2);
prepare('none', -1);
$node->safe_psql('postgres', "SELECT cqrs_emit('happened', '{\"n\": 1}')");
ok(wait_recorded($node, 'postgres', 1), 'a prepared transaction holds up nobody');
$node->safe_psql('postgres', "ROLLBACK PREPARED 'none'");
$node->safe_psql('postgres', "COMMIT PREPARED 'one'");
ok(wait_recorded($node, 'postgres', 2), 'COMMIT PREPARED wakes the worker');
is(recorded($node, 'postgres'), '1 2', 'which delivers what was committed');

# Across a restart, and a crash.
for my $mode (qw(fast immediate))
{
	$node->safe_psql('postgres', 'TRUNCATE recorded');
	prepare('one', 2);
	prepare('two', 3);
	$node->safe_psql('postgres', "SELECT cqrs_emit('happened', '{\"n\": 1}')");
	ok(wait_recorded($node, 'postgres', 1), "$mode: the others are delivered before");
	$node->stop($mode);
	$node->start;
	wait_managers($node, 'postgres');
	$node->poll_query_until('postgres', "SELECT ticked_at > pg_postmaster_start_time() FROM cqrs.tick ORDER BY tick_id DESC LIMIT 1");
	is(recorded($node, 'postgres'), '1', "$mode: nothing is delivered before its commit");
	$node->safe_psql('postgres', "COMMIT PREPARED 'one'");
	ok(wait_recorded($node, 'postgres', 2), "$mode: COMMIT PREPARED has it delivered");
	$node->safe_psql('postgres', "COMMIT PREPARED 'two'");
	ok(wait_recorded($node, 'postgres', 3), "$mode: so has the next");
	is(recorded($node, 'postgres'), '1 2 3', "$mode: each once");
}

# Nobody announces what logical replication commits in two phases: the manager
# finds it when it polls.
$node->safe_psql('postgres', 'TRUNCATE recorded');
$node->safe_psql('postgres', 'CREATE DATABASE publisher');
$node->safe_psql('publisher', q(
	CREATE TABLE source (n int);
	CREATE PUBLICATION pub FOR TABLE source;
	SELECT pg_create_logical_replication_slot('sub', 'pgoutput', false, true);
));
$node->safe_psql('postgres', qq(
	CREATE TABLE source (n int);
	CREATE FUNCTION emit_row() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS \$\$
	BEGIN
		PERFORM cqrs_emit('happened', jsonb_build_object('n', new.n));
		RETURN NULL;
	END \$\$;
	CREATE TRIGGER emit AFTER INSERT ON source FOR EACH ROW EXECUTE FUNCTION emit_row();
	ALTER TABLE source ENABLE ALWAYS TRIGGER emit;
	CREATE SUBSCRIPTION sub CONNECTION '@{[ $node->connstr =~ s/'//gr ]} dbname=publisher' PUBLICATION pub
		WITH (create_slot = false, two_phase = true, copy_data = false);
));
$node->poll_query_until('postgres', "SELECT subtwophasestate = 'e' FROM pg_subscription") or die 'no two-phase replication';
$node->safe_psql('publisher', "BEGIN; INSERT INTO source VALUES (7); PREPARE TRANSACTION 'remote'");
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_prepared_xacts WHERE database = 'postgres'"), 'a replicated transaction is prepared');
$node->safe_psql('publisher', "COMMIT PREPARED 'remote'");
ok($node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_prepared_xacts WHERE database = 'postgres'"), 'and committed');
is($node->safe_psql('postgres', "SELECT lag_events FROM cqrs_subscription_status WHERE subscription = 'recorder'"), '1', 'nobody noticed its event');
$node->append_conf('postgresql.conf', "cqrs_outbox.poll_interval = '100ms'");
$node->safe_psql('postgres', "SELECT cqrs_subscribe('puller', ARRAY['things'])");
$node->reload;
ok(wait_recorded($node, 'postgres', 1), 'polling does');
is(recorded($node, 'postgres'), '7', 'once');
my $tick = $node->safe_psql('postgres', 'SELECT max(tick_id) FROM cqrs.tick');
$node->safe_psql('publisher', "BEGIN; INSERT INTO source VALUES (8); PREPARE TRANSACTION 'remote'; COMMIT PREPARED 'remote'");
ok(wait_recorded($node, 'postgres', 2), 'and again');
$node->poll_query_until('postgres', "SELECT count(*) > 0 FROM cqrs.tick WHERE tick_id > $tick");
is($node->safe_psql('postgres', "SELECT count(*) FROM cqrs.tick WHERE tick_id > $tick"), 1, 'without a tick when there is nothing');

# Without a manager, too.
$node->append_conf('postgresql.conf', "cqrs_outbox.manager_idle_timeout = 0");
$node->reload;
ok($node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox manager'"), 'the manager ends');
$node->safe_psql('publisher', "BEGIN; INSERT INTO source VALUES (9); PREPARE TRANSACTION 'remote'");
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_prepared_xacts WHERE database = 'postgres'"), 'another is prepared');
$node->safe_psql('publisher', "COMMIT PREPARED 'remote'");
ok(wait_recorded($node, 'postgres', 3), 'and found when it is committed, though no manager stays');
ok($node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox manager'"), 'then nobody polls any more');
$node->safe_psql('postgres', 'DROP SUBSCRIPTION sub');
$node->stop;

done_testing();
