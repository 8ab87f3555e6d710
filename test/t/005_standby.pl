# On a standby the outbox can be looked at, and none of our processes runs.
# Once promoted, it delivers what had not been delivered, and nothing twice.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $primary = new_server('primary', '', allows_streaming => 1);

$primary->start;
set_up_recording($primary, 'postgres');
$primary->safe_psql('postgres', "SELECT cqrs_subscribe('puller', ARRAY['things'])");
emit_numbers($primary, 'postgres', 1 .. 5);
wait_recorded($primary, 'postgres', 5);

my $standby = new_standby($primary, 'standby');

# The handler is held, so that there is something that was not delivered.
my $holder = hold_handlers($primary, 'postgres');
emit_numbers($primary, 'postgres', 6 .. 10);
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));

for my $call ("cqrs_emit('happened', '{}')", "cqrs_emit_many('happened', ARRAY['{}']::jsonb[])", 'cqrs_tick()',
	"cqrs_receive('puller')", "cqrs_ack('puller')", "cqrs_drain('recorder')", "cqrs_create_topic('t')",
	"cqrs_subscribe('s', ARRAY['things'])", "cqrs_unsubscribe('puller')")
{
	like(error_of($standby, 'postgres', "SELECT * FROM $call"), qr/ERROR:  25006: /, "$call needs a primary");
}
is($standby->safe_psql('postgres', "SELECT string_agg(payload->>'n', ' ' ORDER BY position) FROM cqrs_events('things', status => 'all')"),
	join(' ', 1 .. 10), 'cqrs_events() shows the outbox');
is($standby->safe_psql('postgres', "SELECT lag_events FROM cqrs_subscription_status ORDER BY subscription"),
	"10\n5", 'and the status how far it is');
is($standby->safe_psql('postgres', 'SELECT count(*) FROM cqrs_worker_status'), '0', 'no process of ours is registered');
is($standby->safe_psql('postgres', 'SELECT * FROM cqrs_health()'), '', 'which is no problem');
is($standby->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'cqrs%'"), '0', 'nor runs');

# A standby that is restarted is still one.
$standby->restart;
is($standby->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'cqrs%'"), '0', 'nor after a restart');

$primary->stop('immediate');
$holder->quit;
$standby->promote;
ok(wait_managers($standby, 'postgres'), 'a promoted standby has a manager');
ok(wait_recorded($standby, 'postgres', 10), 'and delivers what was not delivered');
emit_numbers($standby, 'postgres', 11);
ok(wait_recorded($standby, 'postgres', 11), 'and what comes');
is(recorded($standby, 'postgres'), join(' ', 1 .. 11), 'each once, in order');
is($standby->safe_psql('postgres', "SELECT string_agg(payload->>'n', ' ' ORDER BY position) FROM cqrs_receive('puller')"),
	join(' ', 1 .. 11), 'the consumer outside gets what it had not acknowledged');
$standby->stop;

done_testing();
