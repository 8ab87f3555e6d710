# From PgQ to us, as docs/comparison.md says, while events are inserted, consumed,
# and now and then retried: each that was committed is handled once by each
# consumer, by the old or by the new one. Needs PgQ, and CQRS_MANUAL for Manual.pm.

use strict;
use warnings;

use CqrsTest;
use Manual;
use PostgreSQL::Test::Utils;
use Test::More;

my ($given, $ours, $pause, $hand_over, $pass_on, $end) = section('docs/comparison.md', 'Moving from PgQ');
my $node = new_server('main');
$node->start;
query($node, 'CREATE EXTENSION cqrs_outbox');
query($node, $_) for $given, $ours;

# What is inserted or emitted, and by whom it is handled. Every tenth is rolled
# back.
query($node, q(
	SELECT pgq.set_queue_config('orders', 'ticker_max_lag', '0.05 seconds'), pgq.set_queue_config('orders', 'ticker_idle_period', '0.05 seconds');
	CREATE SEQUENCE n START 100;
	CREATE TABLE sent (n bigint);
	CREATE TABLE handled (consumer text, n bigint, by text);
	CREATE TABLE stop (what text);
	INSERT INTO sent VALUES (1), (2);

	CREATE PROCEDURE produce(what text) LANGUAGE plpgsql AS $$
	DECLARE
		i bigint;
		data jsonb;
	BEGIN
		WHILE NOT EXISTS (SELECT FROM stop WHERE stop.what = produce.what) LOOP
			i := nextval('n');
			data := jsonb_build_object('order_id', i);
			INSERT INTO sent VALUES (i);
			IF what = 'emit' THEN
				PERFORM cqrs_emit('order_created', data, key => (i % 7)::text);
			ELSE
				PERFORM pgq.insert_event('orders', 'created', data::text, (i % 7)::text, NULL, NULL, NULL);
			END IF;
			IF i % 10 = 0 THEN
				ROLLBACK;
			ELSE
				COMMIT;
			END IF;
		END LOOP;
	END $$;

	-- what pgqd does
	CREATE PROCEDURE tick() LANGUAGE plpgsql AS $$
	BEGIN
		WHILE NOT EXISTS (SELECT FROM stop WHERE what = 'tick') LOOP
			PERFORM pgq.ticker();
			COMMIT;
			PERFORM pgq.maint_retry_events();
			COMMIT;
		END LOOP;
	END $$;

	-- retries some, once each, as long as it may
	CREATE PROCEDURE consume_pgq(consumer text) LANGUAGE plpgsql AS $$
	DECLARE
		batch bigint;
		retry boolean;
	BEGIN
		WHILE EXISTS (SELECT FROM pgq.get_consumer_info('orders', consumer)) LOOP
			batch := pgq.next_batch('orders', consumer);
			retry := NOT EXISTS (SELECT FROM stop WHERE what = 'retry');
			COMMIT;
			CONTINUE WHEN batch IS NULL;
			PERFORM pgq.event_retry(batch, ev_id, 0) FROM pgq.get_batch_events(batch)
			WHERE retry AND ev_id % 20 = 0 AND ev_retry IS NULL;
			INSERT INTO handled SELECT consumer, (ev_data::jsonb->>'order_id')::bigint, 'pgq' FROM pgq.get_batch_events(batch)
			WHERE NOT (retry AND ev_id % 20 = 0 AND ev_retry IS NULL);
			PERFORM pgq.finish_batch(batch);
			COMMIT;
		END LOOP;
	END $$;
	CREATE PROCEDURE consume_ours(consumer text) LANGUAGE plpgsql AS $$
	DECLARE
		last boolean;
	BEGIN
		LOOP
			last := EXISTS (SELECT FROM stop WHERE what = 'receive');
			INSERT INTO handled SELECT consumer, (payload->>'order_id')::bigint, 'ours' FROM cqrs_receive(consumer, 100, wait => '0.1 s');
			EXIT WHEN NOT FOUND AND last;
			PERFORM cqrs_ack(consumer);
			COMMIT;
		END LOOP;
	END $$;
));

# A consumer that was unregistered may end with PgQ's error.
sub run
{
	my ($sql, $may_fail) = @_;

	return in_background(sub { $may_fail ? $node->psql('postgres', $sql) : query($node, $sql) });
}

sub ended
{
	my ($what, @pids) = @_;

	for my $pid (@pids)
	{
		waitpid $pid, 0;
		is($?, 0, "$what has ended well");
	}
}

# handled_more(BY): until he has handled 100 more.
sub handled_more
{
	my ($by) = @_;
	my $before = query($node, "SELECT count(*) FROM handled WHERE by = '$by'");

	ok($node->poll_query_until('postgres', "SELECT count(*) >= $before + 100 FROM handled WHERE by = '$by'"), "$by handles");
}

my @senders = map { run("CALL produce('insert')") } 1 .. 2;
my $ticker = run('CALL tick()');
my @old = map { run("CALL consume_pgq('$_')", 1) } qw(billing shipping);
my @new = map { run("CALL consume_ours('$_')") } qw(billing shipping);

handled_more('pgq');
my ($status, undef, $error) = $node->psql('postgres', $hand_over);
isnt($status, 0, 'nothing is handed over while the ticker ticks');
my $retries = 0;
ok(wait_until(sub {
		query($node, $pause);
		# Until it is done, or there are events to retry, which the ticker must go on for.
		wait_until(sub {
			($status, undef, $error) = $node->psql('postgres', $hand_over);
			return $status == 0 || $error !~ /have come to the last tick/;
		});
		return 1 if $status == 0;
		die $error unless $error =~ /events to retry/;
		query($node, "INSERT INTO stop VALUES ('retry')") unless $retries++;
		query($node, "SELECT pgq.set_queue_config('orders', 'ticker_paused', 'false')");
		return 0;
	}), 'handed over') or die $error;
cmp_ok($retries, '>', 0, 'not while there are events to retry');
ended('an old consumer', @old);

# pass_on(): until the consumers of ours have got 100 more.
sub pass_on
{
	my $before = query($node, "SELECT count(*) FROM handled WHERE by = 'ours'");

	ok(wait_until(sub {
			query($node, $pass_on);
			return query($node, "SELECT count(*) FROM handled WHERE by = 'ours'") >= $before + 100;
		}), 'ours handles');
}

pass_on();
my @emitters = map { run("CALL produce('emit')") } 1 .. 2;
pass_on();
query($node, "INSERT INTO stop VALUES ('insert'), ('tick')");
ended('a sender', @senders);
ended('the ticker', $ticker);
query($node, $end);
query($node, "INSERT INTO stop VALUES ('emit')");
ended('an emitter', @emitters);
query($node, "INSERT INTO stop VALUES ('receive')");
ended('a new consumer', @new);

for my $consumer (qw(billing shipping))
{
	is(query($node, "SELECT n FROM sent EXCEPT ALL SELECT n FROM handled WHERE consumer = '$consumer'"), '', "$consumer: nothing is lost");
	is(query($node, "SELECT n FROM handled WHERE consumer = '$consumer' EXCEPT ALL SELECT n FROM sent"), '', "$consumer: nothing is there twice");
	cmp_ok(query($node, "SELECT count(*) FROM handled WHERE consumer = '$consumer' AND by = 'pgq'"), '>=', 50, "$consumer: both have handled");
}
$node->stop;
done_testing();
