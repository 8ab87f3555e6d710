# With synchronous replication, no broker is sent what the standby does not
# have: not even if a visible tick did not wait for it because whoever made it
# was ended or cancelled.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use ExamplePeer;

my $peer = ExamplePeer->new;
my $primary = new_server('primary', "synchronous_commit = local\n", allows_streaming => 1);

$primary->start;
$peer->create_server($primary, 'postgres', 'peer');
$primary->safe_psql('postgres', q(
	SELECT cqrs_register_event('happened', 'things');
	SELECT cqrs_subscribe('sender', ARRAY['things'], server => 'peer', format => 'raw');
	SELECT cqrs_subscribe('puller', ARRAY['things']);
));
my $standby = new_standby($primary, 'standby');
make_synchronous($primary, 'standby');

# sent(): the bodies that the broker got
sub sent
{
	return join ' ', map { $_->{message}{body} } $peer->messages;
}

# manager_waits(PID): a manager, other than this one, waits for the standby
sub manager_waits
{
	return $primary->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity
		WHERE backend_type = 'cqrs_outbox manager' AND wait_event = 'SyncRep' AND pid <> $_[0]");
}

emit_numbers($primary, 'postgres', 1);
ok($peer->wait_messages(undef, 1), 'with the standby, an event is sent');

$standby->stop;
emit_numbers($primary, 'postgres', 2);
ok(manager_waits(0), 'without it, the tick waits');
my ($manager) = processes($primary, 'manager');
$primary->safe_psql('postgres', "SELECT pg_cancel_backend($manager)");
is($primary->safe_psql('postgres', "SELECT wait_event FROM pg_stat_activity WHERE pid = $manager"), 'SyncRep',
	'and cannot be cancelled');

$primary->safe_psql('postgres', "SELECT pg_terminate_backend($manager)");
ok(manager_waits($manager), 'the manager is ended; the next one waits, too');
is($primary->safe_psql('postgres', "SELECT payload->>'n' FROM cqrs_receive('puller') ORDER BY 1"), "1\n2",
	'the first one has left a tick that shows the event');
ok($primary->poll_query_until('postgres', "SELECT w.state = 'idle' AND w.state_change > m.backend_start
	FROM pg_stat_activity w, pg_stat_activity m
	WHERE w.backend_type = 'cqrs_outbox worker' AND m.backend_type = 'cqrs_outbox manager'"),
	'the worker has looked');
is(sent(), '{"n":1}', 'and sent nothing');

$standby->start;
ok($peer->wait_messages(undef, 2), 'until the standby has it');
is(sent(), '{"n":1} {"n":2}', 'then it is sent, once');
is($standby->safe_psql('postgres', "SELECT count(*) FROM cqrs_topics.things"), '2', 'as the standby shows');
$standby->stop;
$primary->stop('immediate');

done_testing();
