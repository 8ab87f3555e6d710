# Topics and subscriptions come and go while somebody looks at everything that
# shows them: no look fails because of that.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main');

$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('happened', 'things');
	SELECT cqrs_subscribe('puller', ARRAY['things']);
	CREATE TABLE stop ();
	CREATE TABLE rounds (n int);
	CREATE PROCEDURE come_and_go() LANGUAGE plpgsql AS $$
	DECLARE
		n int := 0;
	BEGIN
		WHILE NOT EXISTS (SELECT FROM stop) LOOP
			n := n + 1;
			PERFORM cqrs_create_topic('passing'), cqrs_subscribe('passing', ARRAY['passing', 'things']);
			PERFORM cqrs_emit('happened', '{}', topic => 'passing');
			COMMIT;
			PERFORM cqrs_unsubscribe('passing');
			COMMIT;
			PERFORM cqrs_drop_topic('passing', cascade => true);
			COMMIT;
		END LOOP;
		INSERT INTO rounds VALUES (n);
	END $$));
my $session = new_session($node, 'postgres');

$session->begin('CALL come_and_go()');
for my $look (
	'SELECT count(*) FROM cqrs_subscription_status', 'SELECT count(*) FROM cqrs_topic_status', "SELECT count(*) FROM cqrs_events(status => 'all')",
	'SELECT count(*) FROM cqrs_health()', 'SELECT cqrs_diagram()', 'SELECT count(*) FROM cqrs_maintain()')
{
	append_to_file($node->basedir . '/look.sql', "$look;\n");
	$node->command_ok([ 'pgbench', '-n', '-c', '2', '-t', '1000', '-f', $node->basedir . '/look.sql', $node->connstr('postgres') ], $look);
	unlink $node->basedir . '/look.sql';
}
$node->safe_psql('postgres', 'INSERT INTO stop DEFAULT VALUES');
is($session->finish, '', 'meanwhile they come and go');
cmp_ok($node->safe_psql('postgres', 'SELECT n FROM rounds'), '>', 20, 'again and again');
$session->quit;
$node->stop;
done_testing();
