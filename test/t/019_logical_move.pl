# A database is moved to another server by logical replication of all its tables: with
# cqrs_adopt() there, each event is delivered once, in order by key, and positions go on.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $old = new_server('old', "wal_level = logical\nmax_wal_senders = 10\nmax_replication_slots = 10\n");
my $new = new_server('new', "wal_level = logical\nmax_wal_senders = 10\nmax_replication_slots = 10\n");
$_->start, $_->safe_psql('postgres', 'CREATE DATABASE app') for $old, $new;

$old->safe_psql('app', q(
	CREATE EXTENSION cqrs_outbox;
	CREATE TABLE recorded (seq bigserial PRIMARY KEY, server text, key text, n integer, position bigint);
	CREATE FUNCTION on_thing(event cqrs_event) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
	BEGIN
		IF (event.payload->>'n')::integer = 3 AND event.key = 'a' AND current_setting('cluster_name') = 'old' THEN
			RAISE EXCEPTION 'not on the old server';
		END IF;
		INSERT INTO recorded (server, key, n, position)
		VALUES (current_setting('cluster_name'), event.key, (event.payload->>'n')::integer, event.position);
	END $$;
	SELECT cqrs_register_event('happened', 'things');
	SELECT cqrs_subscribe('things', ARRAY['things'], 'on_thing(cqrs_event)', max_attempts => 0, retry_delay => '200 ms');
));
is($old->safe_psql('app', 'SHOW cluster_name'), 'old', 'the servers have names');

sub emit
{
	my ($node, $from, $to, $role) = @_;

	$node->safe_psql('app', 'SET ROLE ' . ($role // 'NONE') . ';' .
		"SELECT cqrs_emit('happened', jsonb_build_object('n', n), key => k) FROM generate_series($from, $to) n, unnest(ARRAY['a', 'b']) k ORDER BY n");
}

emit($old, 1, 5);
ok($old->poll_query_until('app', "SELECT string_agg(n::text, ' ' ORDER BY seq) = '1 2 3 4 5' FROM recorded WHERE key = 'b'"),
	'the old server delivers');
ok($old->poll_query_until('app', 'SELECT count(*) = 3 FROM cqrs.retry'), 'one event fails there, and others wait for it');

# The schema as pg_dump has it; then the data by replication. Both sides tick.
command_ok([ 'pg_dump', '-s', '-d', $old->connstr('app'), '-f', $old->basedir . '/schema.sql' ], 'the schema is dumped');
command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $new->connstr('app'), '-f', $old->basedir . '/schema.sql' ],
	'and restored');
$old->safe_psql('app', 'SELECT cqrs_tick()') for 1 .. 3;
$new->safe_psql('app', 'SELECT cqrs_tick()') for 1 .. 3;
$old->safe_psql('app', 'CREATE PUBLICATION moved FOR ALL TABLES');
$new->safe_psql('app', "CREATE SUBSCRIPTION moved CONNECTION \$\$" . $old->connstr('app') . "\$\$ PUBLICATION moved");
ok($new->poll_query_until('app', "SELECT count(*) > 10 AND bool_and(srsubstate IN ('r', 's')) FROM pg_subscription_rel"),
	'every table is synchronised');
emit($old, 6, 8);
ok($old->poll_query_until('app', "SELECT count(*) = 8 FROM recorded WHERE key = 'b'"), 'the old server goes on');
$old->safe_psql('app', 'SELECT cqrs_tick()') for 1 .. 3;

# Switched off; some are emitted that it does not deliver any more.
reconfigure($old, "cqrs_outbox.deliver = off");
$old->safe_psql('app', "SELECT cqrs_pause('things')");
emit($old, 9, 10);
$old->safe_psql('app', "SELECT cqrs_resume('things')");
my $highest = $old->safe_psql('app', 'SELECT max(position) FROM cqrs_topics.things');
$old->wait_for_catchup('moved');
$new->safe_psql('app', 'DROP SUBSCRIPTION moved');

# An application that is too early: its events come after all that was moved.
$new->safe_psql('app', 'CREATE ROLE early; GRANT INSERT ON cqrs_topics.things TO early');
emit($new, 11, 11, 'early');
is($new->safe_psql('app', 'SELECT state FROM cqrs_subscription_status'), 'restored', 'nothing is delivered before it is adopted');
$new->safe_psql('app', 'SELECT * FROM cqrs_adopt()');
emit($new, 12, 14);
is($new->safe_psql('app', "SELECT cqrs_wait('things', '60 s')"), 't', 'the new server delivers');
ok($new->poll_query_until('app', 'SELECT count(*) = 28 FROM recorded'), 'all of it');
is($new->safe_psql('app', "SELECT key, string_agg(n::text, ' ' ORDER BY position) FROM recorded WHERE server = 'new' GROUP BY key ORDER BY key"),
	"a|3 4 5 6 7 8 9 10 11 12 13 14\nb|9 10 11 12 13 14", 'each event once, on one of the servers, in order by position');
is($new->safe_psql('app', "SELECT string_agg(n::text, ' ' ORDER BY seq) FROM recorded WHERE server = 'new' AND key = 'b'"),
	'9 10 11 12 13 14', 'and in the order in which they were delivered');
is($new->safe_psql('app', "SELECT string_agg(n::text, ' ' ORDER BY seq) FROM recorded WHERE server = 'new' AND key = 'a'"),
	'3 4 5 6 7 8 9 10 11 12 13 14', 'also those that had waited for one that failed');
is($new->safe_psql('app', 'SELECT count(*) - count(DISTINCT position) FROM cqrs_topics.things'), '0', 'no position stands twice');
is($new->safe_psql('app', "SELECT min(position) > $highest FROM cqrs_topics.things WHERE (payload->>'n')::integer > 10"), 't',
	'positions go on behind those of the old server');
is($new->safe_psql('app', "SELECT cqrs_create_topic('more')"), 't', 'and so do the ids of topics');

$_->stop for $old, $new;
done_testing();
