# A topic that is locked, altered or broken, in whatever way, does not affect
# the other topics of the database: the manager waits for no locks, and no
# topic's error ends it.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main', "cqrs_outbox.poll_interval = '50ms'\ncqrs_outbox.segment_age = '100ms'\n");
my $n = 0;

$node->start;
set_up_recording($node, 'postgres');
$node->safe_psql('postgres', q(
	SELECT cqrs_register_event('moved', 'others');
	SELECT cqrs_alter_topic('others', retention => '100 ms');
	SELECT cqrs_subscribe('other', ARRAY['others'], 'record_event(cqrs_event)');
	SELECT cqrs_subscribe('puller', ARRAY['things'])));
$node->safe_psql('postgres', "SELECT cqrs_emit('moved', '{\"n\": 0}')");
ok(wait_recorded($node, 'postgres', 1), 'at first');
my ($manager) = processes($node, 'manager');
my $topic_id = $node->safe_psql('postgres', "SELECT topic_id FROM cqrs.topic WHERE topic = 'others'");
my ($first, $second) = (new_session($node, 'postgres'), new_session($node, 'postgres'));

# goes_on(WHAT): for some polls and looks at what may be truncated, while a
# transaction that has an id is open, events of another topic are delivered.
sub goes_on
{
	my ($what) = @_;

	for (1 .. 4)
	{
		$n++;
		emit_numbers($node, 'postgres', $n);
		$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM recorded WHERE payload->>'n' = '$n'")
		  or return fail("$what: event $n is not delivered");
		$second->query("SELECT pg_sleep(0.4)");
	}
	is(join(' ', processes($node, 'manager')), $manager, "$what: the others are delivered, by the same manager");
}

sub locked
{
	my ($what, @statements) = @_;

	$first->query('BEGIN');
	is($first->query('SELECT pg_current_xact_id() IS NOT NULL'), 't', "$what: in a transaction");
	unlike($first->query($_), qr/ERROR/, $what) for @statements;
	goes_on($what);
	$first->query('ROLLBACK');
	goes_on("$what, and over");
}

$second->query('SELECT 1');
locked('a topic is being dropped', "SELECT cqrs_drop_topic('others', true)");
locked('a segment is locked', "LOCK TABLE cqrs.topic_${topic_id}_1");
locked("a segment's index is rebuilt", "REINDEX INDEX cqrs.topic_${topic_id}_0_xid");
locked('a TOAST table is locked',
	"DO \$\$ BEGIN EXECUTE format('REINDEX TABLE %s', (SELECT reltoastrelid::regclass FROM pg_class WHERE oid = 'cqrs.topic_${topic_id}_0'::regclass)); END \$\$");

# Altered, and broken.
$node->safe_psql('postgres', qq(
	CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END';
	CREATE TRIGGER hung BEFORE INSERT ON cqrs.topic_${topic_id}_0 FOR EACH ROW EXECUTE FUNCTION nothing()));
locked('a segment was altered', 'SELECT 1');
$node->safe_psql('postgres', "DROP TRIGGER hung ON cqrs.topic_${topic_id}_0; DROP INDEX cqrs.topic_${topic_id}_1_xid");
locked('an index is not there', 'SELECT 1');
$node->safe_psql('postgres', "CREATE INDEX topic_${topic_id}_1_xid ON cqrs.topic_${topic_id}_1 (xid, position)");

# An error of one topic's tables, that only reading them shows.
my $damaged = $node->data_dir . '/' . $node->safe_psql('postgres', "SELECT pg_relation_filepath('cqrs.topic_${topic_id}_2_xid')");
$node->safe_psql('postgres', 'CHECKPOINT');
open my $file, '+<:raw', $damaged or die "could not open $damaged: $!";
print $file "\xde\xad" x 4096;
close $file;
$node->restart;
$second = new_session($node, 'postgres');
$first = new_session($node, 'postgres');
wait_managers($node, 'postgres');
($manager) = processes($node, 'manager');
locked('an index is damaged', 'SELECT 1');
like(slurp_file($node->logfile), qr/topic_${topic_id}_2_xid.*\n(.*\n)*?.*CONTEXT:  (looking for unannounced events|maintaining topic)/, 'what is wrong is told');
$node->safe_psql('postgres', "REINDEX INDEX cqrs.topic_${topic_id}_2_xid");

# What was passed by is not forgotten.
$n++;
$node->safe_psql('postgres', "SELECT cqrs_emit('moved', '{\"n\": $n}')");
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM recorded WHERE payload->>'n' = '$n'"),
	'in the end, the topic delivers again');

# The limit of one subscription is applied although another's cannot be looked at.
$node->safe_psql('postgres', qq(
	SELECT cqrs_register_event('kept', 'kept');
	SELECT cqrs_subscribe('a_bad', ARRAY['others'], max_retained_size => 1);
	SELECT cqrs_subscribe('b_bad', ARRAY['kept'], max_retained_size => 1);
	SELECT cqrs_emit('moved', '{}'), cqrs_emit('kept', '{}');
	CREATE TRIGGER hung BEFORE INSERT ON cqrs.topic_${topic_id}_0 FOR EACH ROW EXECUTE FUNCTION nothing();
	CREATE TRIGGER hung BEFORE INSERT ON cqrs.topic_${topic_id}_1 FOR EACH ROW EXECUTE FUNCTION nothing();
	CREATE TRIGGER hung BEFORE INSERT ON cqrs.topic_${topic_id}_2 FOR EACH ROW EXECUTE FUNCTION nothing()));
ok($node->poll_query_until('postgres', "SELECT state = 'suspended' FROM cqrs.subscription WHERE subscription = 'b_bad'"),
	"another subscription's limit is applied");

# Somebody who ticks by hand, and takes his time.
$first->begin('SELECT cqrs_tick(), pg_sleep(100)');
$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'");
($manager) = processes($node, 'manager');
goes_on('somebody ticks');

$node->stop('immediate');
done_testing();
