# A schedule's runs: each once, and none is left out, whatever is killed.
#
# Time is made to pass; some passes by itself.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main', "cqrs_outbox.poll_interval = '200ms'\n");
my $passed = 0;

$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	CREATE FUNCTION set_clock(ahead bigint, passed bigint) RETURNS void LANGUAGE c AS 'cqrs_outbox', 'cqrs_debug_clock';
	CREATE TABLE ran (id uuid, schedule text);
	CREATE FUNCTION note(c jsonb) RETURNS void LANGUAGE sql AS
		$$ INSERT INTO ran SELECT id, correlation_id FROM cqrs_context() $$;
	CREATE FUNCTION minute(id uuid) RETURNS bigint LANGUAGE sql AS
		$$ SELECT ('x' || substr(replace(id::text, '-', ''), 1, 12))::bit(48)::bigint / 60000 $$;
	SELECT cqrs_register_command('Note', 'note');
	SELECT cqrs_create_command_queue();
	SELECT cqrs_schedule('each', '* * * * *', 'Note', catch_up => 'all'), cqrs_schedule('hourly', '0 * * * *', 'Note')));

# passes(SECONDS, WHAT): of time
sub passes
{
	my ($seconds, $what) = @_;

	$passed += $seconds;
	$node->safe_psql('postgres', "SELECT set_clock(0, $seconds * 1000)");
	ran($what);
	return;
}

# ran(WHAT): all runs are there
sub ran
{
	my ($what) = @_;

	ok($node->poll_query_until('postgres', "SELECT count(*) >= $passed / 60 FROM ran WHERE schedule = 'each'"), "$what: it ran");
	is($node->safe_psql('postgres', q(
			SELECT count(*) - count(DISTINCT minute(id)), max(minute(id)) - min(minute(id)) + 1 - count(*) FROM ran WHERE schedule = 'each')),
		'0|0', "$what: each minute once");
	return;
}

passes(60, 'a minute passes');
passes(300, 'five minutes pass');

# The server crashes now and then, while runs are due. Its clock is right again
# afterwards, and then set as before.
for my $round (1 .. 5)
{
	$passed += 600;
	$node->safe_psql('postgres', 'SELECT set_clock(0, 600000)');
	$node->stop('immediate');
	$node->start;
	$node->safe_psql('postgres', "SELECT set_clock(0, $passed * 1000)");
	ran("a crash, $round");
}
is($node->safe_psql('postgres', q(SELECT count(*) BETWEEN 0 AND 2 FROM ran WHERE schedule = 'hourly')), 't', 'the other one came at most as often as an hour was full');

$node->stop('fast');
done_testing();
