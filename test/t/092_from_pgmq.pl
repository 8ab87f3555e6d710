# From pgmq to us, as docs/comparison.md says, while messages are sent, consumed,
# and now and then dropped by a consumer that dies: each that was committed is
# handled once, by either. Needs pgmq, and CQRS_MANUAL for Manual.pm.

use strict;
use warnings;

use CqrsTest;
use Manual;
use PostgreSQL::Test::Utils;
use Test::More;

my ($given, $ours, $hand_over, $move, $end) = section('docs/comparison.md', 'Moving from pgmq');
my $node = new_server('main');
$node->start;
query($node, $_) for $given, $ours;

# What is sent, and in which transaction it is handled. Every tenth is rolled back.
query($node, q(
	CREATE SEQUENCE n START 100;
	CREATE TABLE sent (n bigint);
	CREATE TABLE handled (n bigint, by text);
	CREATE TABLE stop (what text);
	INSERT INTO sent VALUES (1), (2);

	CREATE PROCEDURE produce(what text) LANGUAGE plpgsql AS $$
	DECLARE
		i bigint;
		message jsonb;
	BEGIN
		WHILE NOT EXISTS (SELECT FROM stop WHERE stop.what = produce.what) LOOP
			i := nextval('n');
			message := jsonb_build_object('to', i % 7, 'n', i);
			INSERT INTO sent VALUES (i);
			IF what = 'emit' THEN
				PERFORM cqrs_emit('email', message, key => message->>'to');
			ELSIF i % 20 = 7 THEN
				PERFORM pgmq.send('emails', message, 1);
			ELSE
				PERFORM pgmq.send('emails', message);
			END IF;
			IF i % 10 = 0 THEN
				ROLLBACK;
			ELSE
				COMMIT;
			END IF;
		END LOOP;
	END $$;

	-- one that dies has read some, and does no more
	CREATE PROCEDURE consume_pgmq(die boolean DEFAULT false) LANGUAGE plpgsql AS $$
	DECLARE
		found_any boolean;
	BEGIN
		LOOP
			WITH taken AS MATERIALIZED (SELECT msg_id, message FROM pgmq.read('emails', 1, 5)),
				done AS (SELECT message FROM taken WHERE NOT die AND pgmq.delete('emails', msg_id)),
				noted AS (INSERT INTO handled SELECT (message->>'n')::bigint, 'pgmq' FROM done)
			SELECT count(*) > 0 INTO found_any FROM taken;
			COMMIT;
			EXIT WHEN die AND found_any;
			EXIT WHEN NOT found_any AND EXISTS (SELECT FROM stop WHERE what = 'consume');
		END LOOP;
	END $$;
	CREATE PROCEDURE consume_ours() LANGUAGE plpgsql AS $$
	DECLARE
		last boolean;
	BEGIN
		LOOP
			last := EXISTS (SELECT FROM stop WHERE what = 'receive');
			INSERT INTO handled SELECT (payload->>'n')::bigint, 'ours' FROM cqrs_receive('mailer', 100, wait => '0.1 s');
			EXIT WHEN NOT FOUND AND last;
			PERFORM cqrs_ack('mailer');
			COMMIT;
		END LOOP;
	END $$;
));

sub run
{
	my ($sql) = @_;

	return in_background(sub { query($node, $sql) });
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

my @senders = map { run("CALL produce('send')") } 1 .. 2;
my @old = map { run('CALL consume_pgmq()') } 1 .. 2;
my @new = map { run('CALL consume_ours()') } 1 .. 2;

handled_more('pgmq');
query($node, 'CALL consume_pgmq(true)');
query($node, $hand_over);
handled_more('ours');

# Producers move.
my @emitters = map { run("CALL produce('emit')") } 1 .. 2;
handled_more('ours');
query($node, "INSERT INTO stop VALUES ('consume'), ('send')");
ended('a sender', @senders);
ended('an old consumer', @old);

# What was dropped or delayed is visible again, sooner or later.
ok(wait_until(sub { (split /\n/, query($node, $move))[-1] eq '0' }), 'all has moved');
query($node, $end);
push @emitters, run("SELECT cqrs_emit('email', '{\"n\": -1, \"to\": \"x\"}', key => 'x')");
query($node, 'INSERT INTO sent VALUES (-1)');
handled_more('ours');
query($node, "INSERT INTO stop VALUES ('emit')");
ended('an emitter', @emitters);
query($node, "INSERT INTO stop VALUES ('receive')");
ended('a new consumer', @new);

is(query($node, 'SELECT n FROM sent EXCEPT ALL SELECT n FROM handled'), '', 'nothing is lost');
is(query($node, 'SELECT n, by FROM handled WHERE n NOT IN (SELECT n FROM sent)'), '', 'nothing is invented');
is(query($node, 'SELECT n, string_agg(by, $$ $$) FROM handled GROUP BY n HAVING count(*) > 1'), '', 'nothing is handled twice');
cmp_ok(query($node, "SELECT count(*) FROM handled WHERE by = 'pgmq'"), '>=', 100, 'both have handled');
$node->stop;
done_testing();
