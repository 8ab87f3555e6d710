# A message's size is limited, however small its event: the text of a number
# may be ten thousand times as long as the number. Such an event is a dead
# letter at once, and costs no more memory than the limit.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use ExamplePeer;

my $peer = ExamplePeer->new;
my $node = new_server('main', 'log_statement = none');
$node->start;
$peer->create_server($node, 'postgres', 'peer', max_message_size => 100000);
$peer->create_server($node, 'postgres', 'by_default');
$node->safe_psql('postgres', q(
	SELECT cqrs_register_event('happened', 'things');
	SELECT cqrs_subscribe('cqrs', ARRAY['things'], server => 'peer');
	SELECT cqrs_subscribe('raw', ARRAY['things'], server => 'peer', format => 'raw');
	SELECT cqrs_subscribe('cloudevents', ARRAY['things'], server => 'peer', format => 'cloudevents');
	SELECT cqrs_subscribe('by_default', ARRAY['things'], server => 'by_default');
	CREATE FUNCTION status() RETURNS text LANGUAGE sql AS $$
		SELECT string_agg(concat_ws('/', subscription, lag_events, retrying, waiting, dead), ' ' ORDER BY subscription COLLATE "C")
		FROM cqrs_subscription_status
	$$));

# wait_dead(COUNT OF THE SMALL, COUNT OF THE LARGE, NAME)
sub wait_dead
{
	my ($small, $large, $name) = @_;

	ok($node->poll_query_until('postgres', 'SELECT status()',
			"by_default/0/0/0/$large cloudevents/0/0/0/$small cqrs/0/0/0/$small raw/0/0/0/$small"), $name);
	return;
}

# emit(PAYLOAD, HEADERS): SQL, both
sub emit
{
	my ($payload, $headers) = @_;

	$node->safe_psql('postgres', "SELECT cqrs_emit('happened', $payload, headers => $headers)");
	return;
}

emit(q('{"n": 1}'), 'NULL');
wait_dead(0, 0, 'a small event is delivered');

# 2 kB of payload, as it is stored; 900 MB of text.
emit(q(jsonb_build_object('a', (SELECT jsonb_agg('1e131071'::jsonb) FROM generate_series(1, 7000)))), 'NULL');
wait_dead(1, 1, 'numbers that are long as text');
is($node->safe_psql('postgres', q(SELECT DISTINCT attempts, error FROM cqrs_dead_letters WHERE subscription = 'raw')),
	'1|the message has more bytes than option "max_message_size" of the server allows', 'after one attempt, and for a reason');
for my $subscription (qw(cqrs raw cloudevents by_default))
{
	my $peak = $node->safe_psql('postgres', qq(
		SELECT substring(pg_read_file(format('/proc/%s/status', pid)) FROM 'VmHWM:\\s*(\\d+)')::int / 1024
		FROM cqrs_worker_status WHERE subscription = '$subscription'));

	ok($peak && $peak < 300, "the worker of $subscription has used little memory: $peak MB");
}

emit(q('{}'), q(jsonb_build_object('n', '1e131071'::jsonb, 'm', '1e131071'::jsonb)));
wait_dead(2, 1, 'the same in headers');
emit(q(jsonb_build_object('t', repeat('x', 100001))), 'NULL');
wait_dead(3, 1, 'a text that is longer');
emit(q(jsonb_build_object('t', repeat(E'\x01', 20000))), 'NULL');
wait_dead(4, 1, 'a text that is longer with escapes');
emit(q(jsonb_build_object('t', repeat('x', 99000))), 'NULL');
emit(q('{"n": 2}'), 'NULL');
wait_dead(4, 1, 'others are delivered');
ok((grep { $_->{message}{body} =~ /"n":2/ } $peer->messages("postgres/$_")), "... to $_") for qw(cqrs raw cloudevents by_default);
$node->safe_psql('postgres', q(ALTER SERVER peer OPTIONS (SET max_message_size '1000000')));
$node->safe_psql('postgres', q(SELECT cqrs_redrive_all(subscription) FROM unnest('{cqrs,raw,cloudevents}'::text[]) subscription));
wait_dead(1, 1, 'with another limit, what is redriven is delivered');

like(error_of($node, 'postgres', q(ALTER SERVER peer OPTIONS (SET max_message_size '536870913'))), qr/ERROR:.*max_message_size/, 'there is a limit of limits');
$node->stop('fast');
done_testing();
