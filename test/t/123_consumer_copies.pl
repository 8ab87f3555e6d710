# A consumer that was restored from a dump rests until cqrs_adopt(), and then goes on;
# so does one in a copy that CREATE DATABASE ... TEMPLATE made. Neither takes messages
# from the original before.

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
$node->safe_psql('postgres', 'CREATE DATABASE original');
$node->safe_psql('original', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('came', 'things')));
$peer->create_server($node, 'original', 'peer');
$node->safe_psql('original', q(
	CREATE USER MAPPING FOR PUBLIC SERVER peer OPTIONS (token 'x');
	SELECT cqrs_create_consumer('in', 'peer', 'wire', 'things', event_name => 'came');
	BEGIN;
	SELECT cqrs_create_consumer('late', 'peer', 'later', 'things', event_name => 'came'), cqrs_pause_consumer('late');
	COMMIT));

# consumed_becomes(DATABASE, COUNT, WHAT)
sub consumed_becomes
{
	my ($dbname, $count, $what) = @_;

	ok($node->poll_query_until($dbname, "SELECT consumed = $count AND state = 'active' FROM cqrs_consumer_status WHERE consumer = 'in'"), $what)
	  or diag($node->safe_psql($dbname, 'SELECT * FROM cqrs_consumer_status'));
	return;
}

# nothing_asked(DATABASE): by the time that something of its own is delivered
sub nothing_asked
{
	my ($dbname) = @_;

	$node->safe_psql($dbname, q(SELECT cqrs_emit('local', '{}')));
	is($node->safe_psql($dbname, q(SELECT cqrs_wait('local', '60 s'))), 't', 'while what is its own is delivered');
	is($peer->tell('kept', 'wire'), 1, 'the message is still there');
	is(scalar @{ $peer->tell('hellos') }, 0, 'nobody has even asked for it');
	return;
}

# rests(DATABASE, STATE): it is to go on, and its state is another one
sub rests
{
	my ($dbname, $state) = @_;

	$peer->tell('reset');
	$peer->feed('wire', { id => "for $dbname", body => '{}' });
	$node->safe_psql($dbname, q(SELECT cqrs_pause_consumer('in'), cqrs_resume_consumer('in')));
	is($node->safe_psql($dbname, q(SELECT state FROM cqrs_consumer_status WHERE consumer = 'in')), $state, "it is $state");
	return;
}

$peer->feed('wire', { id => 'first', body => '{}' }, { id => 'second', body => 'no JSON' });
consumed_becomes('original', 1, 'the original consumes');

# ----------------------------------------------------------------------
# A dump
# ----------------------------------------------------------------------

my $dump = $node->basedir . '/dump.sql';
$node->command_ok([ 'pg_dump', '-f', $dump, $node->connstr('original') ], 'dumped');
$node->safe_psql('original', q(SELECT cqrs_pause_consumer('in')));
ok($node->poll_query_until('original', q(SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox worker' AND state = 'active')), 'the original rests');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, '-d', $node->connstr('restored') ], 'restored');
rests('restored', 'restored');
is($node->safe_psql('restored', q(SELECT severity, problem, hint FROM cqrs_health() WHERE object = 'consumer "in"' AND severity = 'error')), q(error|consumer_restored|SELECT cqrs_adopt(); -- goes on where it was when the dump was made; or cqrs_drop_consumer('in')), 'health says so');
$node->safe_psql('restored', q(
	CREATE TABLE seen (n int);
	CREATE FUNCTION see(jsonb) RETURNS void LANGUAGE sql AS 'INSERT INTO public.seen VALUES (1)';
	SELECT cqrs_register_event('local', 'local');
	SELECT cqrs_subscribe('local', ARRAY['local'], 'see')));
nothing_asked('restored');

# One that had not been connected to has no place yet.
$peer->feed('later', { id => 'one', body => '{}' });
$node->safe_psql('restored', q(SELECT cqrs_resume_consumer('late')));
is($node->safe_psql('restored', q(SELECT state, partitions FROM cqrs_consumer_status WHERE consumer = 'late')), 'restored|0', 'so is one that has never been connected');
is($node->safe_psql('restored', q(SELECT problem FROM cqrs_health() WHERE object = 'consumer "late"')), 'consumer_restored', 'which health says, too');
nothing_asked('restored');
is($peer->tell('kept', 'later'), 1, 'its message is there as well');

# What is seen of it while it is being restored
$node->safe_psql('restored', q(
	DELETE FROM cqrs.consumer_position WHERE consumer_id = (SELECT consumer_id FROM cqrs.consumer WHERE consumer = 'late');
	SELECT cqrs_pause_consumer('late'), cqrs_resume_consumer('late')));
is($node->safe_psql('restored', q(SELECT state FROM cqrs_consumer_status WHERE consumer = 'late')), 'restored', 'it rests while nothing says where it was made');
is($node->safe_psql('restored', q(SELECT problem FROM cqrs_health() WHERE object = 'consumer "late"')), 'consumer_restored', 'and health says so');
nothing_asked('restored');

# Their numbers are those of subscriptions, too. A sequence may have been left out.
$node->safe_psql('restored', q(SELECT cqrs_unsubscribe('local'), setval('cqrs.subscription_id', 1, false)));
$node->safe_psql('restored', 'SELECT * FROM cqrs_adopt()');
consumed_becomes('restored', 2, 'once adopted, it goes on');
is($node->safe_psql('restored', q(SELECT nextval('cqrs.subscription_id') > (SELECT max(consumer_id) FROM cqrs.consumer))), 't', 'its number will be nobody else\'s');
ok($node->poll_query_until('restored', q(SELECT consumed = 1 AND state = 'active' FROM cqrs_consumer_status WHERE consumer = 'late')), 'and the other one begins');
is($node->safe_psql('restored', q(SELECT string_agg(headers->>'source_message_id', ', ' ORDER BY position) FROM cqrs_topics.things WHERE headers->>'source' = 'wire')), 'first, for restored', 'behind what it had');
is($node->safe_psql('restored', q(SELECT message_id, error_sqlstate FROM cqrs_consumer_dead_letters)), 'second|22P02', 'its dead letters are restored, too');
$peer->feed('wire', { id => 'first', body => '{}' });
ok($node->poll_query_until('restored', q(SELECT repeated = 1 FROM cqrs_consumer_status WHERE consumer = 'in')), 'and the ids that it knows');
is($node->safe_psql('restored', q(SELECT owner FROM cqrs_consumers WHERE consumer = 'in')), 'postgres', 'its owner is who it was');
$node->safe_psql('restored', q(SELECT cqrs_pause_consumer('in'), cqrs_pause_consumer('late')));

# ----------------------------------------------------------------------
# A copy
# ----------------------------------------------------------------------

ok($node->poll_query_until('postgres', q(SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox worker' AND state = 'active')), 'all rest');
$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE original');
$node->safe_psql('copy', q(SELECT cqrs_resume_consumer('in')));
rests('copy', 'copied');
ok($node->wait_for_log(qr/cqrs_outbox delivers nothing in database "copy"/), 'the copy has a manager');
is($peer->tell('kept', 'wire'), 1, 'which takes no message');
is(scalar @{ $peer->tell('hellos') }, 0, 'nor asks for one');
$node->safe_psql('copy', 'SELECT * FROM cqrs_adopt()');
consumed_becomes('copy', 2, 'once adopted, it consumes');
is($node->safe_psql('original', q(SELECT state, consumed FROM cqrs_consumer_status WHERE consumer = 'in')), 'paused|1', 'the original is what it was');

$node->stop('fast');
done_testing();
