# How long sagas are kept that are over, and how those under way get out of their way;
# what is told of sagas: health, diagrams, dry runs.

use strict;
use warnings;

use CqrsTest;
use Test::More;

my $node = new_server('main');

$node->append_conf('postgresql.conf', "cqrs_outbox.poll_interval = 500\n");
$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	CREATE FUNCTION noted(state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state || jsonb_build_object('n', coalesce((state->>'n')::int, 0) + 1) $$;
	CREATE FUNCTION undone(state jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN IF state ? 'fail' THEN RAISE 'no'; END IF; END $$;
	CREATE FUNCTION fails(state jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
	SELECT cqrs_register_event('noted', 'notes');
	CREATE FUNCTION emits(state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT cqrs_emit('noted', state); SELECT state || '{"emitted": true}' $$;
	SELECT cqrs_create_saga_queue();
	SELECT cqrs_register_saga('napping', ARRAY[cqrs_sleep('night', '1 hour'), cqrs_step('one', 'noted')]);
	SELECT cqrs_register_saga('short', ARRAY[cqrs_step('one', 'noted')]);
	SELECT cqrs_register_saga('long', ARRAY[cqrs_step('one', 'noted'), cqrs_await('first'), cqrs_await('second', timeout => '1 day'), cqrs_step('two', 'noted')]);
	SELECT cqrs_register_saga('bad', ARRAY[cqrs_step('one', 'noted', compensation => 'undone', max_attempts => 1), cqrs_step('two', 'fails', max_attempts => 1)]);
	SELECT cqrs_register_saga('drawn', ARRAY[
		cqrs_step('hotel', 'noted', compensation => 'undone'),
		cqrs_parallel('both', ARRAY[cqrs_step('a', 'noted', compensation => 'undone'), cqrs_step('b', 'emits')]),
		cqrs_await('paid', event_name => 'noted', timeout => '3 days'),
		cqrs_step('tickets', 'noted', pivot => true),
		cqrs_sleep('night', '1 day'),
		cqrs_step('remind', 'emits', fallback => 'noted')]);
));

# A dry run.
is($node->safe_psql('postgres', q(SELECT step_name, action, state, cardinality(events) FROM cqrs_dry_run_saga('drawn', '{"x": 1}'))), <<'E' =~ s/\n\z//r, 'a dry run');
hotel|done|{"n": 1, "x": 1}|0
both|passed by||0
a|done|{"a": {"n": 2, "x": 1}, "n": 1, "x": 1}|0
b|done|{"a": {"n": 2, "x": 1}, "b": {"a": {"n": 2, "x": 1}, "n": 1, "x": 1, "emitted": true}, "n": 1, "x": 1}|1
paid|passed by||0
tickets|done|{"a": {"n": 2, "x": 1}, "b": {"a": {"n": 2, "x": 1}, "n": 1, "x": 1, "emitted": true}, "n": 2, "x": 1}|0
night|passed by||0
remind|done|{"a": {"n": 2, "x": 1}, "b": {"a": {"n": 2, "x": 1}, "n": 1, "x": 1, "emitted": true}, "n": 2, "x": 1, "emitted": true}|1
a|undone||0
hotel|undone||0
E
is($node->safe_psql('postgres', q(SELECT (SELECT count(*) FROM cqrs_events('notes')), (SELECT count(*) FROM cqrs_saga_status))), '0|0', '... leaves nothing');

# A picture.
is($node->safe_psql('postgres', q(SELECT cqrs_diagram('saga', 'drawn'))), <<'E', 'a diagram');
flowchart TD
    start(["saga<br/>drawn"])
    s0["hotel<br/>public.noted(pg_catalog.jsonb)"]
    s1{{"both<br/>side by side"}}
    s2["a<br/>public.noted(pg_catalog.jsonb)"]
    s3["b<br/>public.emits(pg_catalog.jsonb)"]
    s4(["paid<br/>waits for noted"])
    s5["tickets<br/>public.noted(pg_catalog.jsonb)<br/>point of no return"]
    s6(["night<br/>sleeps P1D"])
    s7["remind<br/>public.emits(pg_catalog.jsonb)<br/>or public.noted(pg_catalog.jsonb)"]
    completed(["completed"])
    u0["undo hotel<br/>public.undone(pg_catalog.jsonb)"]
    u2["undo a<br/>public.undone(pg_catalog.jsonb)"]
    compensated(["compensated"])
    failed(["failed: a person decides"])
    start --> s0
    s0 --> s1
    s1 --> s2
    s2 --> s4
    s1 --> s3
    s3 --> s4
    s4 --> s5
    s5 --> s6
    s6 --> s7
    s7 --> completed
    s0 -. "fails" .-> compensated
    s2 -. "fails" .-> u0
    s3 -. "fails" .-> u2
    s4 -. "not in time" .-> u2
    s5 -. "fails" .-> u2
    s7 -. "fails" .-> failed
    u2 --> u0
    u0 --> compensated
E

# One that failed is a problem; one that sleeps and should not, another.
my $bad = $node->safe_psql('postgres', q(SELECT saga_id FROM cqrs_start_saga('bad', '{"fail": true}')));
is($node->safe_psql('postgres', "SELECT status FROM cqrs_wait_saga('$bad', '60 s')"), 'failed', 'one failed');
is($node->safe_psql('postgres', q(SELECT severity, problem, detail FROM cqrs_health())), 'error|saga_failed|It failed at step "one": no', '... and is told');
$node->safe_psql('postgres', "SELECT cqrs_skip_step('$bad', 'one')");
$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM cqrs.saga") or die 'not skipped';
is($node->safe_psql('postgres', q(SELECT count(*) FROM cqrs_health())), '0', '... no longer');

# One that is asleep, as what was to wake it is lost.
$node->safe_psql('postgres', q(
	SELECT saga_id FROM cqrs_start_saga('long') \gset
	SELECT saga_id AS sleeping FROM cqrs_start_saga('napping') \gset));
$node->poll_query_until('postgres', q(SELECT count(*) = 2 FROM cqrs_saga_status WHERE status IN ('waiting', 'sleeping'))) or die 'not begun';
is($node->safe_psql('postgres', q(SELECT count(*) FROM cqrs_health())), '0', 'one that waits, and one that sleeps, are well');
$node->safe_psql('postgres', q(
	ALTER TABLE cqrs.scheduled_command DISABLE TRIGGER refuse_write;
	DELETE FROM cqrs.scheduled_command;
	ALTER TABLE cqrs.scheduled_command ENABLE ALWAYS TRIGGER refuse_write;
	DO $$ BEGIN
		FOR n IN 0 .. 2 LOOP
			EXECUTE format('ALTER TABLE cqrs.saga_entry_%s DISABLE TRIGGER refuse_write', n);
			EXECUTE format('UPDATE cqrs.saga_entry_%s SET due = due - interval ''1 day'' WHERE due IS NOT NULL', n);
			EXECUTE format('ALTER TABLE cqrs.saga_entry_%s ENABLE ALWAYS TRIGGER refuse_write', n);
		END LOOP;
	END $$));
like($node->safe_psql('postgres', q(SELECT severity, problem, detail FROM cqrs_health())),
	qr/^error\|saga_asleep\|It was to go on with step "night" at .*, and nothing is on its way to it\.$/, 'one that is asleep is told');
is($node->safe_psql('postgres', q(SELECT cqrs_resume_sagas())), '1', '... and is woken');
$node->poll_query_until('postgres', q(SELECT count(*) = 0 FROM cqrs_saga_status WHERE status = 'sleeping')) or die 'not woken';
$node->safe_psql('postgres', q(SELECT cqrs_cancel_saga(saga_id) FROM cqrs_saga_status WHERE status = 'waiting'));
$node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM cqrs.saga') or die 'not cancelled';

# What will not come is told.
$node->safe_psql('postgres', q(
	CREATE ROLE starter LOGIN;
	GRANT EXECUTE ON FUNCTION cqrs_register_saga TO starter;
	GRANT SELECT ON cqrs_topics.notes TO starter;
	SELECT cqrs_create_saga_queue('starter');
	SET ROLE starter;
	SELECT cqrs_register_saga('fed', ARRAY[cqrs_step('one', 'noted')], on_event => 'noted');
	RESET ROLE;
	SELECT cqrs_create_topic('gone');
	SELECT cqrs_register_saga('hopeless', ARRAY[cqrs_await('one', topic => 'gone')])));
is($node->safe_psql('postgres', q(SELECT count(*) FROM cqrs_health())), '0', 'all is well');
$node->safe_psql('postgres', q(SELECT cqrs_drop_topic('gone'); ALTER ROLE starter RENAME TO other));
is($node->safe_psql('postgres', q(SELECT severity, problem, object, detail FROM cqrs_health())),
	qq(error|saga_not_started|saga "fed"|Event "noted" of topic "notes" does not start it: role "starter" does not exist.
warning|saga_topic_missing|saga "hopeless"|Step "one" waits for events of topic "gone", which was dropped.), 'events that will not come');
$node->safe_psql('postgres', q(SELECT cqrs_unregister_saga('fed'), cqrs_unregister_saga('hopeless')));

# What is over goes; what is under way stays, with its signals and its time, however often
# the tables are turned.
my $key = $node->safe_psql('postgres', q(SELECT saga_id FROM cqrs_start_saga('short', '{}', 'k')));
my $long = $node->safe_psql('postgres', q(SELECT saga_id FROM cqrs_start_saga('long', '{"x": 1}', 'long')));
$node->poll_query_until('postgres', "SELECT status = 'waiting' FROM cqrs_saga_status WHERE saga_id = '$long'") or die 'does not wait';
$node->safe_psql('postgres', "SELECT cqrs_signal('$long', 'second', '2')");
reconfigure($node, 'cqrs_outbox.saga_retention = 1');
$node->poll_query_until('postgres', "SELECT count(*) >= 2 FROM cqrs_saga_history('$long') WHERE event = 'moved'") or die 'not moved';
$node->poll_query_until('postgres', "SELECT NOT EXISTS (SELECT FROM cqrs_saga_status WHERE saga_id = '$key')") or die 'not forgotten';
is($node->safe_psql('postgres', q(SELECT started FROM cqrs_start_saga('short', '{}', 'k'))), 't', 'a key is free again');
is($node->safe_psql('postgres', q(SELECT started, saga_id FROM cqrs_start_saga('long', '{}', 'long'))), "f|$long", '... not that of one under way');
$node->poll_query_until('postgres', "SELECT NOT EXISTS (SELECT FROM cqrs_saga_history('$long') WHERE event = 'started')") or die 'its history is kept';
$node->safe_psql('postgres', "SELECT cqrs_signal('$long', 'first', '1')");
is($node->safe_psql('postgres', "SELECT status, state FROM cqrs_wait_saga('$long', '60 s')"), 'completed|{"n": 2, "x": 1, "first": 1, "second": 2}', 'it goes on where it was');
is($node->safe_psql('postgres', 'SELECT count(*) FROM cqrs.scheduled_command'), '0', 'no time is left behind');
$node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM cqrs.saga_entry') or die 'entries are left';
is($node->safe_psql('postgres', 'SELECT pg_relation_size(\'cqrs.saga_entry_0\') + pg_relation_size(\'cqrs.saga_entry_1\') + pg_relation_size(\'cqrs.saga_entry_2\')'), '0', 'nothing is left');
my ($ret, $out, $err) = $node->psql('postgres', "SELECT cqrs_wait_saga('$long')");
like($err, qr/saga $long does not exist/, 'one that is not kept');

$node->stop;
done_testing();
