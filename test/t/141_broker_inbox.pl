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

# Nothing tells a message without an id from another one with the same content.
my $nameless = q(FROM cqrs_consumer_dead_letters WHERE body = '{"n": 5}');
$peer->tell('deaf', 1);
$peer->feed('wire', { body => '{"n": 5}' });
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 $nameless"), 'without an id, it is a dead letter');
$peer->tell('close');
$peer->tell('deaf', 0);
ok($node->poll_query_until('postgres', "SELECT count(*) = 2 $nameless"), 'whose acknowledgement was lost: it is another one');
ok($peer->wait_consumed('wire'), 'until it is acknowledged');
is($node->safe_psql('postgres', "SELECT cqrs_redrive_consumed('in', array_agg(event_id)) $nameless"), 2, 'both can be redriven');

$peer->tell('forget', 'wire');
status_becomes(q(error ~ 'has no source "wire"'), 'a source that is dropped is missed');
$peer->feed('wire', { id => 'new', body => '{}' });
status_becomes('consumed = 804 AND error IS NULL', 'and consumed when it is there again');

# In a database that is not in UTF-8, an id may be text that its encoding does not have.
$node->safe_psql('postgres', q(CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'));
$node->safe_psql('latin', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('came', 'things')));
$peer->create_server($node, 'latin', 'peer');
$node->safe_psql('latin', q(
	CREATE USER MAPPING FOR PUBLIC SERVER peer OPTIONS (token 'x');
	SELECT cqrs_create_consumer('in', 'peer', 'foreign', 'things', event_name => 'came')));
$peer->feed('foreign', { id => "cl\x{e9}", body => '{"n": 1}' }, { id => "5 \x{20ac}", body => '{"n": 2}' },
	{ id => "\x{20ac}" x 100, body => '{"n": 3}' }, { id => 'key', key => "\x{20ac}", body => '{"n": 4}' },
	{ id => 'header', headers => [ 'one', "\x{20ac}" ], body => '{"n": 5}' }, { id => 'last', body => '{"n": 6}' });
ok($node->poll_query_until('latin', 'SELECT consumed = 2 AND dead = 4 FROM cqrs_consumer_status'), 'LATIN1: what is behind such a message is consumed')
  or diag($node->safe_psql('latin', 'SELECT * FROM cqrs_consumer_status'));
ok($peer->wait_consumed('foreign'), 'LATIN1: and all is acknowledged');
is($node->safe_psql('latin', q(SELECT string_agg(encode(convert_to(headers->>'source_message_id', 'LATIN1'), 'escape'), ' ' ORDER BY position) FROM cqrs_topics.things)),
	'cl\351 last', 'LATIN1: ids that it has are what they are');
is($node->safe_psql('latin', q(SELECT convert_from(body, 'UTF8'), message_id, error_sqlstate FROM cqrs_consumer_dead_letters ORDER BY body)),
	'{"n": 2}|\x3520e282ac|22P05' . "\n" . '{"n": 3}|' . $node->safe_psql('postgres', q(SELECT encode(sha256(convert_to(repeat(chr(8364), 100), 'UTF8')), 'hex'))) . '|22P05' . qq(\n{"n": 4}|key|22P05\n{"n": 5}|header|22P05),
	'LATIN1: of others, the bytes; of long ones, the hash');
$peer->feed('foreign', { id => "5 \x{20ac}", body => '{"n": 2}' });
ok($node->poll_query_until('latin', 'SELECT repeated = 1 FROM cqrs_consumer_status'), 'LATIN1: it is recognised when it comes again');
is($node->safe_psql('latin', q(SET client_min_messages = warning; SELECT cqrs_redrive_consumed('in', array_agg(event_id)) FROM cqrs_consumer_dead_letters WHERE message_id !~ '^(key|header)')), 2, 'LATIN1: redriven, it is an event');
is($node->safe_psql('latin', q(SELECT payload->>'n' FROM cqrs_topics.things WHERE headers->>'source_message_id' = '\x3520e282ac')), 2, 'LATIN1: with these bytes');

$node->stop('fast');
done_testing();
