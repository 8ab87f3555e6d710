# A manager whose database was told of something stays for manager_idle_timeout after
# that; one that came only for a look ends sooner. Time is made to pass.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main', "cqrs_outbox.manager_idle_timeout = '5min'\ncqrs_outbox.segment_age = '1d'\nmax_prepared_transactions = 0\n");

$node->start;
set_up_recording($node, 'postgres');
$node->safe_psql('postgres', q(
	CREATE FUNCTION set_clock(ahead bigint, passed bigint) RETURNS void LANGUAGE c AS 'cqrs_outbox', 'cqrs_debug_clock';
	CREATE DATABASE other));
$node->safe_psql('other', 'CREATE EXTENSION cqrs_outbox');

# passes(SECONDS): of time; managers look at the clock when they are woken.
sub passes
{
	my ($seconds) = @_;

	return $node->safe_psql('postgres', "SELECT set_clock(0, $seconds * 1000), pg_reload_conf()");
}

# Each database is looked at when the server starts.
$node->restart;
emit_numbers($node, 'postgres', 1);
ok(wait_recorded($node, 'postgres', 1), 'an event is delivered');
ok(wait_managers($node, 'other', 'postgres'), 'two databases have a manager');
my $pid = join ' ', processes($node, 'manager', 'postgres');

passes(11);
ok(wait_managers($node, 'postgres'), 'that which only came for a look ends after ten seconds');
passes(270);
emit_numbers($node, 'postgres', 2);
ok(wait_recorded($node, 'postgres', 2), 'another event is delivered');
is(join(' ', processes($node, 'manager', 'postgres')), $pid, 'the other one stayed');
passes(280);
emit_numbers($node, 'postgres', 3);
ok(wait_recorded($node, 'postgres', 3), 'a third is delivered');
is(join(' ', processes($node, 'manager', 'postgres')), $pid, 'it counts from the last one');
passes(301);
ok(wait_managers($node), 'it ends after five minutes');

$node->stop;
done_testing();
