# The steps of a saga do not wait for the disk one by one; but who is told that a saga is
# over, or gets a command's answer, is told of what is safe.

use strict;
use warnings;

use CqrsTest;
use Test::More;

# Nobody but who commits writes WAL: the worker would after batch_duration.
my $node = new_server('main', q(
cqrs_outbox.batch_duration = '60s'
bgwriter_lru_maxpages = 0
checkpoint_timeout = '1h'
));

$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_create_topic('works');
	-- changes the registry, and so is the last one of its transaction
	CREATE FUNCTION work(c jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT NULL::jsonb FROM cqrs_register_event('worked', 'works') $$;
	-- waits for who has advisory lock 1
	CREATE FUNCTION hang(c jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT NULL::jsonb FROM pg_advisory_xact_lock_shared(1) $$;
	SELECT cqrs_create_saga_queue(partitions => 1), cqrs_create_command_queue(partitions => 1);
	SELECT cqrs_register_saga('works', ARRAY[cqrs_step('work', 'work')]), cqrs_register_saga('hangs', ARRAY[cqrs_step('hang', 'hang')]);
	SELECT cqrs_register_command('Work', 'work'), cqrs_register_command('Hang', 'hang');
	SELECT cqrs_alter_subscription('commands_of_' || current_user, transaction => 'event')));

# flushed(): how far the WAL is safe. What follows there is of what hangs.
sub flushed
{
	return query($node, 'SELECT pg_current_wal_flush_lsn()');
}

# check(WHAT, BEGIN, OVER, WAIT): something is done, and more that hangs then, in one
# transaction; OVER says that the first is done, of its id, and WAIT waits for that
sub check
{
	my ($what, $begin, $over, $wait) = @_;
	my $holder = hold_handlers($node, 'postgres');
	my $id = query($node, $begin);

	in_handler($node, 'postgres');
	is(query($node, sprintf($over, $id)), 't', "$what: others see that it is done");
	my $before = flushed();
	is(query($node, "SELECT '$before' < pg_current_wal_insert_lsn()"), 't', '... when it is not safe yet');
	is(flushed(), $before, '... nor is it a moment later');
	like(query($node, sprintf($wait, $id)), qr/^(completed|done)$/, '... who waits for it is told');
	is(query($node, "SELECT '$before' < pg_current_wal_flush_lsn()"), 't', '... what is safe');
	$holder->quit;
	return;
}

# stop_wal_writer(): it would flush what others have left to it; returns its pid
sub stop_wal_writer
{
	my $pid = query($node, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'");

	kill 'STOP', $pid or die 'there is no WAL writer';
	return $pid;
}

my $walwriter = stop_wal_writer();

check('a saga', q(WITH first AS MATERIALIZED (SELECT saga_id FROM cqrs_start_saga('works'))
	SELECT f.saga_id FROM first f, LATERAL (SELECT count(*) FROM cqrs_start_saga('hangs', jsonb_build_object('after', f.saga_id))) s),
	q(SELECT status = 'completed' FROM cqrs_saga_status WHERE saga_id = '%s'), q(SELECT status FROM cqrs_wait_saga('%s')));
ok($node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM cqrs.saga'), 'what hung is done, too');

check('a command', q(WITH first AS MATERIALIZED (SELECT cqrs_enqueue('Work', '{}', options => '{"keep_answer": true}') AS id)
	SELECT f.id FROM first f, LATERAL (SELECT cqrs_enqueue('Hang', jsonb_build_object('after', f.id))) s),
	q(SELECT state = 'done' FROM cqrs_command_result('%s')), q(SELECT state FROM cqrs_wait_command('%s')));

kill 'CONT', $walwriter;
$node->stop;
done_testing();
