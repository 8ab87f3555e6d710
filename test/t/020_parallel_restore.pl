# pg_restore -j loads the extension's tables in any order: it never fails, and
# what is registered works afterwards, also where the owners are left out. A
# restored table is guarded as the original was.
#
# CQRS_RESTORES says how often it is restored.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $restores = $ENV{CQRS_RESTORES} // 4;

my $node = new_server('node');
$node->append_conf('postgresql.conf', "cqrs_outbox.deliver = off\n");
$node->start;
my $dump = $node->basedir . '/dump';

$node->safe_psql('postgres', 'CREATE ROLE app LOGIN; CREATE ROLE writer IN ROLE pg_write_all_data; CREATE DATABASE source');
$node->safe_psql('source', q(
	CREATE EXTENSION cqrs_outbox;
	GRANT CREATE ON SCHEMA public TO app;
	GRANT EXECUTE ON FUNCTION cqrs_subscribe TO app;
	SELECT cqrs_register_event('event_' || n, 'topic_' || n % 10) FROM generate_series(1, 200) n;
	GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA cqrs_topics TO app;
	SET ROLE app;
	CREATE FUNCTION handle(c jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT c';
	CREATE FUNCTION around(r cqrs_request) RETURNS jsonb LANGUAGE sql AS 'SELECT public.cqrs_proceed()';
	CREATE FUNCTION on_event(e cqrs_event) RETURNS void LANGUAGE sql AS '';
	SELECT cqrs_subscribe('subscription_' || n, ARRAY(SELECT 'topic_' || t FROM generate_series(0, 9) t), 'on_event(cqrs_event)')
	FROM generate_series(1, 20) n;
	RESET ROLE;
	SELECT cqrs_register_event_handler('event_' || n, 'handle(jsonb)') FROM generate_series(1, 200) n;
	SELECT cqrs_register_command('Command' || n, 'handle(jsonb)') FROM generate_series(1, 200) n;
	SELECT cqrs_register_middleware('around(cqrs_request)');
	SET ROLE app;
	SELECT count(cqrs_emit('event_' || 1 + n % 200, jsonb_build_object('n', n))) FROM generate_series(1, 2000) n;
	SELECT cqrs_create_command_queue();
	SELECT cqrs_enqueue('Command1');
	SELECT cqrs_enqueue('Command1', run_at => now() + interval '1 hour');
	SELECT cqrs_send('Command1', idempotency_key => 'key');
));
$node->command_ok([ 'pg_dump', '-Fd', '-f', $dump, $node->connstr('source') ], 'pg_dump');

# What is in the registry, and in the topics.
my $contents = q(
	SELECT string_agg(t, E'\n' ORDER BY t) FROM (
		SELECT 'event ' || event_name || ' ' || topic_id AS t FROM cqrs.event_type
		UNION ALL SELECT 'handler ' || event_name || ' ' || handler || ' ' || owner FROM cqrs.event_handler
		UNION ALL SELECT 'command ' || command_name || handlers::text || owners::text FROM cqrs.command
		UNION ALL SELECT 'middleware ' || handler || owner FROM cqrs.middleware
		UNION ALL SELECT 'subscription ' || subscription || ' ' || owner FROM cqrs_subscription_status
		UNION ALL SELECT 'topics ' || subscription_id || ' ' || topic_id FROM cqrs.subscription_topic
		UNION ALL SELECT 'scheduled ' || command_id FROM cqrs.scheduled_command
		UNION ALL SELECT 'rows ' || count(*) FROM cqrs_topics.topic_1
		UNION ALL SELECT 'unguarded ' || c.oid::regclass FROM pg_class c
			WHERE relnamespace = 'cqrs'::regnamespace AND relkind = 'r'
			  AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND tgname = 'refuse_write' AND tgenabled = 'A')) x);
my $expected = $node->safe_psql('source', $contents);
unlike($expected, qr/unguarded/, 'every table is guarded');

sub restore
{
	my ($name, @options) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $name");
	my $ok = run_log([ 'pg_restore', '--exit-on-error', @options, '-d', $node->connstr($name), $dump ]);
	ok($ok, "pg_restore @options, into $name");
	return $ok;
}

for my $n (1 .. $restores)
{
	next unless restore("copy_$n", '-j4');
	is($node->safe_psql("copy_$n", $contents), $expected, "copy_$n has all");
	is($node->safe_psql("copy_$n", q(SET ROLE app; SELECT cqrs_send('Command7', '{"a": 1}'))), '{"a": 1}', "copy_$n handles commands");
	is($node->safe_psql("copy_$n", q(SELECT count(*) FROM cqrs_health() WHERE problem = 'function_taken_over')), '0', "copy_$n has the functions that were registered");
	is($node->psql("copy_$n", q(SET ROLE writer; DELETE FROM cqrs.topic_2_0), on_error_stop => 1), 3, "copy_$n is guarded");
	$node->safe_psql('postgres', "DROP DATABASE copy_$n WITH (FORCE)");
}

# Everything is the restorer's then, a superuser's; but not the commands, which
# another role enqueued.
if (restore('without_owners', '-j4', '-O', '-x'))
{
	is($node->safe_psql('without_owners', q(SELECT count(*), count(*) FILTER (WHERE owner = current_user), count(*) FILTER (WHERE owner IS NULL AND subscription = 'commands_of_app')
		FROM cqrs_subscription_status)), '21|20|1', 'without owners, subscriptions are the restorer\'s');
	is($node->safe_psql('without_owners', q(SELECT cqrs_send('Command7', '{"a": 1}'))), '{"a": 1}', 'without owners, it handles commands');
}

$node->stop;
done_testing();
