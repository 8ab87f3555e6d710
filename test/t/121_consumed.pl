# Messages from elsewhere are consumed once: after a crash, by several sessions at a
# time whose transactions roll back now and then, and ten thousand in a transaction of a
# server whose table of locks has its usual size.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main');

sub consumed
{
	my ($id) = @_;

	return $node->safe_psql('postgres', "SELECT cqrs_consumed('q', '$id')");
}

$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION cqrs_outbox');

# The transaction's locks: ids have none.
my $locks = q((SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype <> 'virtualxid'));
my $many = new_session($node, 'postgres');
is($node->safe_psql('postgres', 'SHOW max_locks_per_transaction'), 64, 'as many locks as usual');
is($many->query(q(BEGIN; SELECT count(*) FILTER (WHERE cqrs_consumed('many', n::text)) FROM generate_series(1, 10000) n)), 10000, 'ten thousand in a transaction');
is($many->query(qq(SELECT count(*) FILTER (WHERE c), $locks < 64
	FROM unnest(cqrs_consumed('many', ARRAY(SELECT n::text FROM generate_series(5001, 15000) n))) c)), '5000|t', 'and in an array, without locks');
is($many->query('COMMIT; SELECT 1'), 1, 'committed');
is($node->safe_psql('postgres', q(SELECT count(*) FILTER (WHERE cqrs_consumed('many', n::text)) FROM generate_series(1, 15000) n)), 0, 'all are known');

is(consumed('committed'), 't', 'a message is consumed');
my $open = new_session($node, 'postgres');
is($open->query("BEGIN; SELECT cqrs_consumed('q', 'open')"), 't', 'so is one in a transaction that does not end');
$node->stop('immediate');
$node->start;
is(consumed('committed'), 'f', 'after a crash, the first is known');
is(consumed('open'), 't', 'and the other is not');

# Each transaction takes ids at random, of which others take some at the same time, by
# one call, in no order. It notes what it was told to handle.
$node->safe_psql('postgres', q(
	CREATE TABLE handled (id text, pid int DEFAULT pg_backend_pid());
	CREATE PROCEDURE consume(rounds int) LANGUAGE plpgsql AS $$
	DECLARE ids text[];
	BEGIN
		FOR i IN 1 .. rounds LOOP
			ids := ARRAY(SELECT (random() * 3000)::int::text FROM generate_series(1, 60));
			INSERT INTO handled SELECT id FROM unnest(ids, cqrs_consumed('random', ids)) u (id, first) WHERE first;
			IF random() < 0.3 THEN ROLLBACK; ELSE COMMIT; END IF;
		END LOOP;
	END $$));
my @sessions = map { new_session($node, 'postgres') } 1 .. 4;
$_->begin('CALL consume(100)') foreach @sessions;
is($_->finish, '', 'no session has an error') foreach @sessions;
is($node->safe_psql('postgres', q(SELECT count(*) - count(DISTINCT id), count(DISTINCT pid) FROM handled)), '0|4', 'no id was handled twice, and all sessions handled some');
is($node->safe_psql('postgres', q(
	SELECT count(*) FROM (SELECT DISTINCT id FROM handled) h WHERE cqrs_consumed('random', id))), 0, 'what was handled is known');
is($node->safe_psql('postgres', q(
	SELECT count(*) FROM generate_series(0, 3000) n WHERE NOT cqrs_consumed('random', n::text) AND NOT EXISTS (SELECT FROM handled WHERE id = n::text))), 0, 'what was not, is not');

$node->stop;
done_testing();
