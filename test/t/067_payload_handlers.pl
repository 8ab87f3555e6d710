# A subscription's handler that takes the payload, called by a worker: what does
# not convert is given up at its first attempt, and costs nobody else anything.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main', '');

$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	CREATE TYPE numbered AS (n int);
	CREATE TABLE seen (seq serial, subscription text, n int);
	CREATE FUNCTION see(numbered) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.seen (subscription, n) VALUES ('batch', $1.n) $$;
	CREATE FUNCTION see_alone(numbered) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.seen (subscription, n) VALUES ('event', $1.n) $$;
	CREATE FUNCTION see_any(jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.seen (subscription, n) VALUES ('any', length($1->>'n')) $$;
	SELECT cqrs_register_event('happened', 'things');
	SELECT cqrs_subscribe('batch', '{things}', 'see'), cqrs_subscribe('any', '{things}', 'see_any'),
		   cqrs_subscribe('event', '{things}', 'see_alone', transaction => 'event');
));

# Every third one is no number; of the others, a key's are in order.
$node->safe_psql('postgres', q(
	SELECT cqrs_emit('happened', jsonb_build_object('n', CASE i % 3 WHEN 0 THEN 'x' ELSE i::text END), (i % 2)::text)
	FROM generate_series(1, 60) i;
));
for my $subscription ('batch', 'event')
{
	my $dead = "cqrs.dead_letter JOIN cqrs.subscription USING (subscription_id) WHERE subscription = '$subscription'";

	ok($node->poll_query_until('postgres', "SELECT (SELECT count(*) FROM seen WHERE subscription = '$subscription') + (SELECT count(*) FROM $dead) = 60"),
		"$subscription: all is done, whatever became of it") or note $node->safe_psql('postgres', 'SELECT * FROM cqrs_subscription_status');
	is($node->safe_psql('postgres', "SELECT count(*), count(DISTINCT n), bool_and(n % 3 <> 0) FROM seen WHERE subscription = '$subscription'"), '40|40|t',
		"$subscription: what converts was handled once");
	is($node->safe_psql('postgres', qq(
		SELECT bool_and(n > before) FROM (SELECT n, lag(n) OVER (PARTITION BY n % 2 ORDER BY seq) AS before FROM seen WHERE subscription = '$subscription') s
		WHERE before IS NOT NULL)), 't', "$subscription: each key in order");
	is($node->safe_psql('postgres', "SELECT count(*), min(attempts), max(attempts) FROM $dead"), '20|1|1',
		"$subscription: what does not was given up at once");
}
ok($node->poll_query_until('postgres', "SELECT count(*) = 60 FROM seen WHERE subscription = 'any'"), 'jsonb takes them all');

$node->stop;
done_testing();
