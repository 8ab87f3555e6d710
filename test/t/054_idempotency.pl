# An idempotency key is known after a crash if its command was committed, and
# only then. The manager truncates keys by itself when they are old enough, and
# not before; after that, the command is handled again.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main');
my $size = q(SELECT sum(pg_relation_size(format('cqrs.idempotency_%s', i))) FROM generate_series(0, 2) i);

sub draw
{
	my ($key) = @_;

	return $node->safe_psql('postgres', "SELECT cqrs_send('Draw', '{}', '$key')");
}

$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	CREATE TABLE drawn (n int);
	CREATE FUNCTION draw(jsonb) RETURNS int LANGUAGE sql AS $$
		INSERT INTO drawn SELECT count(*) + 1 FROM drawn RETURNING n
	$$;
	SELECT cqrs_register_command('Draw', 'draw(jsonb)')));
ok(wait_managers($node, 'postgres'), 'the manager is there');

is(draw('committed'), '1', 'the first command is handled');
my $open = new_session($node, 'postgres');
is($open->query("BEGIN; SELECT cqrs_send('Draw', '{}', 'open')"), '2', 'so is one that is not committed');
$node->stop('immediate');
$node->start;
is(draw('committed'), '1', 'after a crash, the answer of the first is there');
is(draw('open'), '2', 'and the other is handled');
is($node->safe_psql('postgres', 'SELECT count(*) FROM drawn'), '2', 'each once');

# The manager looks at once when the setting changes.
ok(wait_managers($node, 'postgres'), 'the manager is there again');
reconfigure($node, 'cqrs_outbox.idempotency_retention = 3600');
reconfigure($node, 'cqrs_outbox.idempotency_retention = 0');
ok($node->poll_query_until('postgres', $size, '0'), 'the manager truncates what is old enough');
reconfigure($node, 'cqrs_outbox.idempotency_retention = 3600');
is(draw('committed'), '3', 'then the command is handled again');
reconfigure($node, 'cqrs_outbox.idempotency_retention = 3599');
is(draw('committed'), '3', 'what is not, is kept');

unlike(slurp_file($node->logfile), qr/maintaining idempotency keys/, 'without an error');
$node->stop;
done_testing();
