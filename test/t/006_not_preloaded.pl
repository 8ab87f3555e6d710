# Without preloading: what the worker would do is done by hand.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = PostgreSQL::Test::Cluster->new('main');

$node->init;
$node->append_conf('postgresql.conf', "max_prepared_transactions = 10\n");
$node->start;
set_up_recording($node, 'postgres');
$node->safe_psql('postgres', "SELECT cqrs_subscribe('puller', ARRAY['things'])");

like(error_of($node, 'postgres', 'SELECT * FROM cqrs_worker_status'), qr/ERROR:  55000: .*cqrs_outbox is not preloaded.*shared_preload_libraries/s, 'cqrs_worker_status says why there are none');
is($node->safe_psql('postgres', 'SELECT subscription, kind, state, pid FROM cqrs_subscription_status ORDER BY 1'),
	"puller|pull|idle|\nrecorder|handler|idle|", 'subscriptions have nothing to do');

# Settings of the processes can be seen, but a session has none of its own.
reconfigure($node, "cqrs_outbox.max_workers = 7");
is($node->safe_psql('postgres', "LOAD 'cqrs_outbox'; SHOW cqrs_outbox.max_workers; SHOW cqrs_outbox.poll_interval"), "7\n1s", 'settings are shown');
like(error_of($node, 'postgres', "LOAD 'cqrs_outbox'; $_"), qr/cannot be changed now/, "$_: refused")
  for 'SET cqrs_outbox.max_workers = 8', 'SET cqrs_outbox.deliver = off';

emit_numbers($node, 'postgres', 1);
is($node->safe_psql('postgres', 'SELECT subscription, state FROM cqrs_subscription_status ORDER BY 1'), "puller|pending\nrecorder|no_worker", 'one would need a worker');
$node->safe_psql('postgres', "BEGIN; SELECT cqrs_emit('happened', '{\"n\": 2}'); PREPARE TRANSACTION 'two'");
is($node->safe_psql('postgres', "SELECT count(*) FROM cqrs_receive('puller')"), '0', 'nothing is received before a tick');
like($node->safe_psql('postgres', 'SELECT cqrs_tick()'), qr/^\d+$/, 'which is made by hand');
is($node->safe_psql('postgres', "SELECT cqrs_drain('recorder')"), '1', 'delivered by hand');
$node->safe_psql('postgres', "COMMIT PREPARED 'two'");
$node->safe_psql('postgres', 'SELECT cqrs_tick()');
is($node->safe_psql('postgres', "SELECT cqrs_drain('recorder')"), '1', 'what was prepared, too');
is($node->safe_psql('postgres', "SELECT cqrs_drain('recorder')"), '0', 'but once');
is(recorded($node, 'postgres'), '1 2', 'to the handler');
is($node->safe_psql('postgres', "BEGIN; SELECT payload->>'n' FROM cqrs_receive('puller'); SELECT cqrs_ack('puller'); COMMIT"), "1\n2\n2", 'and received, and acknowledged');
is($node->safe_psql('postgres', "SELECT count(*) FROM cqrs_receive('puller')"), '0', 'for good');
like(error_of($node, 'postgres', "SELECT * FROM cqrs_receive('puller', wait => '1 s')"), qr/cqrs_outbox is not preloaded/, 'nobody would wake who waits');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'cqrs%'"), '0', 'no process of ours runs');

# Utility commands are not ours to look at.
$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE template1');
$node->safe_psql('postgres', 'ALTER DATABASE copy RENAME TO renamed');
$node->safe_psql('postgres', 'DROP DATABASE renamed');

# Preloaded from now on, the worker takes over where it was left.
emit_numbers($node, 'postgres', 3);
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'cqrs_outbox'\n");
$node->restart;
ok(wait_recorded($node, 'postgres', 3), 'once preloaded, the worker delivers');
is(recorded($node, 'postgres'), '1 2 3', 'what is left');
$node->stop;

done_testing();
