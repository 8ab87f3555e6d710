# With synchronous replication, nothing is received before the standby has it:
# even if everybody's synchronous_commit is local, the tick waits.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $primary = new_server('primary', "synchronous_commit = local\nclient_min_messages = warning\n", allows_streaming => 1);

$primary->start;
set_up_recording($primary, 'postgres');
$primary->safe_psql('postgres', "SELECT cqrs_subscribe('puller', ARRAY['things'])");
my $standby = new_standby($primary, 'standby');
make_synchronous($primary, 'standby');

sub received
{
	return $primary->safe_psql('postgres', "BEGIN; SELECT payload->>'n' FROM cqrs_receive('puller'); SELECT cqrs_ack('puller') > 0; COMMIT");
}

sub received_in_time
{
	return $primary->poll_query_until('postgres', "SELECT count(*) = 1 FROM cqrs_receive('puller')");
}

emit_numbers($primary, 'postgres', 1);
ok(received_in_time(), 'with the standby, an event can be received');
is(received(), "1\nt", 'which was emitted');

$standby->stop;
emit_numbers($primary, 'postgres', 2);
is($primary->safe_psql('postgres', "SELECT payload->>'n' FROM cqrs_events('things') WHERE payload->>'n' = '2'"), '2',
	'without it, an event may be committed here');
ok($primary->poll_query_until('postgres', "SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox manager' AND datname = 'postgres'"),
	'but its tick waits');
is(received(), 'f', 'and it cannot be received');

$standby->start;
ok(received_in_time(), 'until the standby has it');
is(received(), "2\nt", 'once');
is($standby->safe_psql('postgres', "SELECT count(*) FROM cqrs_events('things', status => 'all')"), '2', 'as the standby shows');
$standby->stop;
$primary->stop('immediate');

done_testing();
