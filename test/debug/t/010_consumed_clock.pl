# How long ids of consumed messages are kept: for as long as their source is consumed
# after them, however long it rests; and no longer than that, so that the tables do
# not grow. While tables change, no message is consumed twice.
#
# Time is made to pass.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main', "cqrs_outbox.consumed_retention = '1 h'\ncqrs_outbox.deliver = off\n");

$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	CREATE FUNCTION set_clock(ahead bigint, passed bigint) RETURNS void LANGUAGE c AS 'cqrs_outbox', 'cqrs_debug_clock';
	CREATE VIEW ids AS SELECT * FROM cqrs.message_id_0 UNION ALL SELECT * FROM cqrs.message_id_1 UNION ALL SELECT * FROM cqrs.message_id_2));
my $session = new_session($node, 'postgres');
my $n = 0;
my $ahead = 0;

# passes(SECONDS): of time
sub passes
{
	my ($seconds) = @_;

	return $session->query("SELECT set_clock($ahead * 1000, $seconds * 1000)");
}

# steps(TIMES, SECONDS, SOURCE): so often, 100 messages are consumed after so much time.
# Returns the most ids that there were.
sub steps
{
	my ($times, $seconds, $source) = @_;
	my $most = 0;

	for (1 .. $times)
	{
		$n++;
		passes($seconds);
		$session->query(qq(SELECT count(*) FILTER (WHERE c) FROM unnest(cqrs_consumed('$source', ARRAY(SELECT '$n ' || i FROM generate_series(1, 100) i))) c)) == 100
			or die "messages of step $n are not new";
		$session->query('SELECT count(*) FROM cqrs_maintain()');
		my $ids = $session->query('SELECT count(*) FROM ids');
		$most = $ids if $ids > $most;
	}
	return $most;
}

sub consumed
{
	my ($source, $id) = @_;

	return $session->query("SELECT cqrs_consumed('$source', '$id')");
}

sub current
{
	return $session->query('SELECT current FROM cqrs.message_turn');
}

# changes(BEFORE): another table is written, once all is moved
sub changes
{
	my ($before) = @_;

	for (1 .. 100)
	{
		$session->query('SELECT count(*) FROM cqrs_maintain()');
		return 1 if current() ne $before;
	}
	return 0;
}

# A source that is consumed, for three retentions, and three more; another rests.
is(consumed('rests', 'last'), 't', 'the last message of a source that rests then');
my $first = steps(216, 50, 'steady');
is(consumed('steady', ($n - 70) . ' 1'), 'f', 'what is not older than the retention is known');
my $second = steps(216, 50, 'steady');
is(consumed('steady', ($n - 70) . ' 1'), 'f', 'so it is later');
cmp_ok($second, '<=', $first, "after three retentions, the tables do not grow ($first, $second ids)");
cmp_ok($first, '<', 12000, 'they have what is consumed in one and a half, and little more');
is($session->query(q(SELECT count(*) < 200 FROM cqrs.message_source)), 't', 'nor does what is noted of the sources');
is(consumed('steady', '1 1'), 't', 'what is much older is forgotten');

# Three days, in which others are consumed now and then: each time counts a minute.
steps(72, 3600, 'others');
is(consumed('rests', 'last'), 'f', 'a source that has rested for three days knows its last message');
is(consumed('steady', "432 1"), 'f', 'so does the one that rested then');
steps(144, 50, 'rests');
is(consumed('rests', 'last'), 't', 'when it was consumed for long enough again, that is forgotten');

# The clock is set back by a day, and goes on from there.
my $turn = current();
$ahead = -86400;
steps(1, 50, 'steady');
ok(changes($turn), 'a clock that was set back stops nothing');

# Sessions consume messages at random while tables change, and all is moved.
$node->safe_psql('postgres', q(
	CREATE TABLE handled (id text);
	CREATE TABLE stop ();
	CREATE PROCEDURE consume() LANGUAGE plpgsql AS $$
	DECLARE ids text[];
	BEGIN
		LOOP
			ids := ARRAY(SELECT (random() * 100000)::int::text FROM generate_series(1, 20));
			INSERT INTO handled SELECT id FROM unnest(ids, cqrs_consumed('random', ids)) u (id, first) WHERE first;
			IF random() < 0.2 THEN ROLLBACK; ELSE COMMIT; END IF;
			EXIT WHEN EXISTS (SELECT FROM stop);
		END LOOP;
	END $$));
my @sessions = map { new_session($node, 'postgres') } 1 .. 3;
my $changed = 0;

$_->begin('CALL consume()') foreach @sessions;
for (1 .. 12)
{
	$turn = current();
	passes(2000);
	$node->poll_query_until('postgres', 'SELECT max(noted_at) > since FROM cqrs.message_source, cqrs.message_turn GROUP BY since') or die 'not consumed';
	$changed += changes($turn);
}
$node->safe_psql('postgres', 'INSERT INTO stop DEFAULT VALUES');
is($_->finish, '', 'no session has an error') foreach @sessions;
is($changed, 12, 'other tables were written meanwhile');
is($node->safe_psql('postgres', q(SELECT count(*) - count(DISTINCT id), count(*) > 1000 FROM handled)), '0|t', 'no message was handled twice');
is($node->safe_psql('postgres', q(SELECT count(*) FROM handled WHERE cqrs_consumed('random', id))), 0, 'all that were handled are known');

# The manager does the same.
reconfigure($node, 'cqrs_outbox.deliver = on');
ok(wait_managers($node, 'postgres'), 'a manager comes');
$turn = current();
passes(4000);
consumed('steady', 'for the manager');
ok($node->poll_query_until('postgres', "SELECT current <> $turn FROM cqrs.message_turn"), 'it has another table written when the turn is over');
unlike(slurp_file($node->logfile), qr/maintaining message ids/, 'without an error');

$node->stop;
done_testing();
