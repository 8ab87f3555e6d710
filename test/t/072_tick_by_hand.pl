# Ticking by hand does not hold up delivery to brokers, even if a broker has
# much to get, and the ticks that its worker may use are far behind.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use ExamplePeer;

my $peer = ExamplePeer->new;
my $node = new_server('main');

$node->start;
$peer->create_server($node, 'postgres', 'peer');
$node->safe_psql('postgres', q(
	SELECT cqrs_register_event('happened', 'things');
	SELECT cqrs_subscribe('sender', ARRAY['things'], server => 'peer', format => 'raw');
));

# Nothing is emitted or polled after this.
$peer->tell('hold');
$node->safe_psql('postgres',
	"SELECT cqrs_emit_many('happened', ARRAY(SELECT jsonb_build_object('n', n) FROM generate_series(1, 20000) n))");
ok($peer->wait_messages(undef, 1), 'much is being sent');
my $tick = $node->safe_psql('postgres', 'SELECT max(tick_id) FROM cqrs.tick');

for (1 .. 3)
{
	$node->safe_psql('postgres', 'SELECT cqrs_tick();' x 100);
	is($node->safe_psql('postgres', "SELECT count(*) FROM cqrs.tick WHERE tick_id = $tick"), '1',
		'ticks by hand leave the one that brokers go by');
}
$peer->tell('release');
ok($peer->wait_messages(undef, 20000), 'the rest is sent');
is(scalar($peer->messages), 20000, 'once');
ok($node->poll_query_until('postgres', "SELECT lag_events = 0 FROM cqrs_subscription_status WHERE subscription = 'sender'"),
	'and recorded');

# The manager's own ticks delete those by hand, in turn.
emit_numbers($node, 'postgres', 0) for 1 .. 70;
ok($peer->wait_messages(undef, 20070), 'what comes later is sent');
cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM cqrs.tick'), '<', 130, 'old ticks are deleted');

$node->stop;
done_testing();
