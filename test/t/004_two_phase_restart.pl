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
emit_numbers($node, 'postgres', 1);
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
	emit_numbers($node, 'postgres', 1);
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
replicate_prepared($node);
$node->safe_psql('source', "BEGIN; INSERT INTO replicated VALUES (7); PREPARE TRANSACTION 'remote'");
ok(wait_prepared($node, 1), 'a replicated transaction is prepared');
$node->safe_psql('source', "COMMIT PREPARED 'remote'");
ok(wait_prepared($node, 0), 'and committed');
is($node->safe_psql('postgres', "SELECT lag_events FROM cqrs_subscription_status WHERE subscription = 'recorder'"), '1', 'nobody noticed its event');
$node->safe_psql('postgres', "SELECT cqrs_subscribe('puller', ARRAY['things'])");
reconfigure($node, "cqrs_outbox.poll_interval = '100ms'");
ok(wait_recorded($node, 'postgres', 1), 'polling does');
is(recorded($node, 'postgres'), '7', 'once');
my $tick = $node->safe_psql('postgres', 'SELECT max(tick_id) FROM cqrs.tick');
$node->safe_psql('source', "BEGIN; INSERT INTO replicated VALUES (8); PREPARE TRANSACTION 'remote'; COMMIT PREPARED 'remote'");
ok(wait_recorded($node, 'postgres', 2), 'and again');
$node->poll_query_until('postgres', "SELECT count(*) > 0 FROM cqrs.tick WHERE tick_id > $tick");
is($node->safe_psql('postgres', "SELECT count(*) FROM cqrs.tick WHERE tick_id > $tick"), 1, 'without a tick when there is nothing');

# Without a manager, too.
reconfigure($node, "cqrs_outbox.manager_idle_timeout = 0");
ok(wait_managers($node), 'the manager ends');
$node->safe_psql('source', "BEGIN; INSERT INTO replicated VALUES (9); PREPARE TRANSACTION 'remote'");
ok(wait_prepared($node, 1), 'another is prepared');
$node->safe_psql('source', "COMMIT PREPARED 'remote'");
ok(wait_recorded($node, 'postgres', 3), 'and found when it is committed, though no manager stays');
ok(wait_managers($node), 'then nobody polls any more');
$node->safe_psql('postgres', 'DROP SUBSCRIPTION replicated');
$node->stop;

done_testing();
