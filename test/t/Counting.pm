# A load that counts keys up in a table, and tells a handler and a consumer
# outside of it: whether they were told what happened, and in order, a server
# that crashes must not change.

package Counting;

use strict;
use warnings;

use Exporter 'import';
use Test::More;

use CqrsTest;

our @EXPORT = qw(set_up_counting receive_counts acknowledge_counts all_received happened check_counts);

# set_up_counting(SERVER): command "CountUp" of a "key"; its table "business"; a
# subscription with a handler, which writes table "recorded", and the
# subscription "outside".
sub set_up_counting
{
	my ($node) = @_;

	query($node, q(
		CREATE EXTENSION cqrs_outbox;
		SELECT cqrs_register_event('counted', 'counts');
		CREATE TABLE business (key int, n int, PRIMARY KEY (key, n));
		CREATE TABLE recorded (seq bigserial, event_id uuid, key int, n int);

		-- Counts a key up, and tells so. Another count is taken back.
		CREATE FUNCTION count_up(command jsonb) RETURNS int LANGUAGE plpgsql AS $$
		DECLARE
			k int := command->>'key';
			next int;
		BEGIN
			PERFORM pg_advisory_xact_lock(2, k);
			SELECT coalesce(max(n), 0) + 1 INTO next FROM business WHERE key = k;
			BEGIN
				INSERT INTO business VALUES (k, -next);
				PERFORM cqrs_emit('counted', jsonb_build_object('n', -next), key => k::text);
				RAISE EXCEPTION 'no';
			EXCEPTION WHEN raise_exception THEN
			END;
			INSERT INTO business VALUES (k, next);
			PERFORM cqrs_emit('counted', jsonb_build_object('n', next), key => k::text);
			RETURN (next);
		END $$;
		SELECT cqrs_register_command('CountUp', 'count_up(jsonb)');

		CREATE FUNCTION record_count(event cqrs_event) RETURNS void LANGUAGE sql SET search_path = public AS $$
			INSERT INTO recorded (event_id, key, n) VALUES (event.event_id, event.key::int, (event.payload->>'n')::int)
		$$;
		SELECT cqrs_subscribe('recorder', ARRAY['counts'], 'record_count(cqrs_event)');
		SELECT cqrs_subscribe('outside', ARRAY['counts']);
	));
}

# receive_counts(SESSION, LEASE): what the consumer outside is given, as
# "EVENT ID|KEY|N", in a transaction of its own; with or without a lease.
sub receive_counts
{
	my ($session, $lease) = @_;
	my $receive = "cqrs_receive('outside', 50" . (defined $lease ? ", lease => '$lease'" : '') . ')';
	my $answer = $session->query("BEGIN; SELECT 'event', position, receipt, event_id, key, payload->>'n' FROM $receive; COMMIT");
	my @batch;

	$session->{positions} = [];
	while ($answer =~ /^event\|(\d+)\|([^|]+)\|(.*)$/mg)
	{
		push @{ $session->{positions} }, $1;
		$session->{receipt} = $2;
		push @batch, $3;
	}
	return @batch;
}

# acknowledge_counts(SESSION): what that has received last.
sub acknowledge_counts
{
	my ($session) = @_;
	my $positions = join ',', @{ $session->{positions} };

	$session->query("SELECT cqrs_ack('outside', '{$positions}', '$session->{receipt}')");
}

# all_received(SERVER): whether the consumer outside has acknowledged all.
sub all_received
{
	my ($node) = @_;

	return query($node, q(SELECT lag_events FROM cqrs_subscription_status WHERE subscription = 'outside')) eq '0';
}

# happened(SERVER): what did, each "KEY|N" => 1.
sub happened
{
	my ($node) = @_;

	return map { $_ => 1 } split /\n/, query($node, 'SELECT key, n FROM business');
}

# check_counts(SERVER, WHAT): two tests of what was recorded.
sub check_counts
{
	my ($node, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	is(query($node, '(SELECT key, n FROM business EXCEPT ALL SELECT key, n FROM recorded) UNION ALL (SELECT key, n FROM recorded EXCEPT ALL SELECT key, n FROM business)'),
		'', "$what: each exactly once, and none that did not happen");
	is(query($node, 'SELECT count(*) FROM (SELECT n - lag(n, 1, 0) OVER (PARTITION BY key ORDER BY seq) AS step FROM recorded) s WHERE step <> 1'),
		'0', "$what: each key in order");
}

1;
