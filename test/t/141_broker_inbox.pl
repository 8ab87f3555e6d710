# The example of a broker module consumes: any bytes, a lot at a time, while the
# peer reads nothing that we acknowledge, and each message once, however often the
# peer forgets that it was acknowledged.

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
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('came', 'things')));
$peer->create_server($node, 'postgres', 'peer', window => 100);
$node->safe_psql('postgres', q(
	CREATE USER MAPPING FOR PUBLIC SERVER peer OPTIONS (token 'x');
	SELECT cqrs_create_consumer('in', 'peer', 'wire', 'things', event_name => 'came')));

# status_becomes(CONDITION, WHAT)
sub status_becomes
{
	my ($condition, $what) = @_;

	ok($node->poll_query_until('postgres', "SELECT $condition FROM cqrs_consumer_status"), $what)
	  or diag($node->safe_psql('postgres', 'SELECT * FROM cqrs_consumer_status'));
	return;
}

status_becomes(q(error ~ 'has no source "wire": nobody has heard of it'), 'without the source, the status says so');
$peer->feed('wire',
	{ id => 'a b%', key => 'k/1', body => '{"n": 1, "text": "100 %"}', timestamp => '1700000000000000', headers => [ 'one', 'v w', 'two', undef, 'three', '-' ] },
	{ id => '-', body => '{"n": 2}' },
	{ id => "a\0b", body => '{"n": 3}' },
	{ body => '{"n": 4}' },
	{ id => 'tombstone', key => 'k/1' });
status_becomes('consumed = 3 AND dead = 2', 'it is consumed when it is there');
is($node->safe_psql('postgres', q(
	SELECT key, payload, headers->>'source_message_id', headers->>'one', headers->'two', headers->>'three', headers->>'occurred_at'
	FROM cqrs_topics.things ORDER BY position)),
	qq(k/1|{"n": 1, "text": "100 %"}|a b%|v w|null|-|2023-11-14T22:13:20.000000+00:00\n|{"n": 2}|-||||\nk/1||tombstone||||), 'as it was sent');
ok($peer->wait_consumed('wire'), 'all is acknowledged, dead letters too');

# More than sockets and the window hold.
$peer->feed('wire', map { { id => "n-$_", body => qq({"n": $_, "fill": ") . 'x' x 2000 . '"}' } } 1 .. 500) for 1 .. 2;
status_becomes('consumed = 503 AND repeated = 500', 'repeats are dropped');
ok($peer->wait_consumed('wire'), 'and acknowledged');
is($node->safe_psql('postgres', q(
	SELECT count(*), bool_and(n = r)
	FROM (SELECT (payload->>'n')::int AS n, row_number() OVER (ORDER BY position) AS r FROM cqrs_topics.things WHERE payload ? 'fill') o)),
	'500|t', 'each once, in order');

# Messages that were with us come again.
my $blocker = new_session($node, 'postgres');
$blocker->query('BEGIN; LOCK TABLE cqrs.consumer_position IN SHARE MODE; SELECT 1');
$peer->feed('wire', map { { id => "again-$_", body => qq({"n": $_}) } } 1 .. 300);
ok($node->poll_query_until('postgres', q(SELECT count(*) > 0 FROM pg_locks WHERE NOT granted)), 'they are on their way');
$peer->tell('close');
$blocker->query('COMMIT; SELECT 1');
status_becomes('consumed = 803', 'the connection ends: they come again');
ok($peer->wait_consumed('wire'), 'until they are acknowledged');
is($node->safe_psql('postgres', q(SELECT count(*), count(DISTINCT headers->>'source_message_id') FROM cqrs_topics.things)), '803|803', 'each once');

$peer->tell('forget', 'wire');
status_becomes(q(error ~ 'has no source "wire"'), 'a source that is dropped is missed');
$peer->feed('wire', { id => 'new', body => '{}' });
status_becomes('consumed = 804 AND error IS NULL', 'and consumed when it is there again');

$node->stop('fast');
done_testing();
