# The worker executes commands after their commit, at their time and not before,
# once, whatever is killed or restarted; as the role that enqueued them; in
# order by key, with retries and dead letters. What cannot be done for one role
# does not hold up the others. And looking for what is due costs nothing for
# what is scheduled for later, nor for what was.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main', "restart_after_crash = on\ncqrs_outbox.max_workers = 4\nshared_buffers = '256MB'\n");
$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	CREATE ROLE app LOGIN;
	CREATE TABLE done (seq serial, n int, role text DEFAULT current_user, context cqrs_context DEFAULT cqrs_context(),
		done_at timestamptz DEFAULT clock_timestamp());
	CREATE TABLE broken (n int);
	CREATE TABLE secret (n int);
	GRANT SELECT, INSERT ON done TO app;
	GRANT USAGE ON SEQUENCE done_seq_seq TO app;
	GRANT SELECT ON broken TO app;
	GRANT EXECUTE ON FUNCTION cqrs_alter_subscription TO app;
	-- waits for who has advisory lock 1
	CREATE FUNCTION do_it(c jsonb) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
	BEGIN
		INSERT INTO done (n) VALUES ((c->>'n')::int);
		PERFORM pg_advisory_xact_lock_shared(1);
		IF EXISTS (SELECT FROM broken WHERE n = (c->>'n')::int) THEN
			RAISE '% is broken', c->>'n';
		END IF;
	END $$;
	CREATE FUNCTION steal(c jsonb) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
	BEGIN
		EXECUTE c->>'first';
		INSERT INTO secret VALUES (1);
	END $$;
	SELECT cqrs_register_command('Do', 'do_it(jsonb)');
	SELECT cqrs_register_command('Steal', 'steal(jsonb)');
	SELECT cqrs_create_command_queue(owner) FROM unnest('{app,postgres}'::text[]) owner));
ok(wait_managers($node, 'postgres'), 'the manager is there');

# enqueue(N, ARGUMENTS, ROLE): a command, with these further arguments of
# cqrs_enqueue(). Returns its id.
sub enqueue
{
	my ($n, $arguments, $role) = @_;

	$role //= 'app';
	return $node->safe_psql('postgres', "SET ROLE $role; " . enqueue_sql($n, $arguments));
}

sub enqueue_sql
{
	my ($n, $arguments) = @_;

	return "SELECT cqrs_enqueue('Do', '{\"n\": $n}'" . (defined $arguments ? ", $arguments" : '') . ')';
}

# done(N, NAME): wait until it is, and see that it is once, and not too early.
sub done
{
	my ($n, $name) = @_;

	ok($node->poll_query_until('postgres', "SELECT count(*) > 0 FROM done WHERE n = $n"), $name);
	is($node->safe_psql('postgres', "SELECT count(*) FROM done WHERE n = $n"), '1', "$name, once");
}

sub is_not_done
{
	my ($n, $name) = @_;

	is($node->safe_psql('postgres', "SELECT count(*) FROM done WHERE n = $n"), '0', $name);
}

# After the commit.
my $open = new_session($node, 'postgres');
$open->query('SET ROLE app; BEGIN');
$open->query(enqueue_sql(1));
enqueue(2, undef, 'postgres');
done(2, 'a command is executed');
is_not_done(1, 'one that is not committed is not');
$open->query('COMMIT');
done(1, 'it is after its commit');
is(query($node, 'SELECT role FROM done WHERE n = 1'), 'app', 'as the role that enqueued it');
$open->query('BEGIN');
$open->query(enqueue_sql(3));
$open->query('ROLLBACK');
my $id = enqueue(4);
done(4, 'the next one is executed');
is_not_done(3, 'one that was rolled back is not');
is(query($node, 'SELECT (context).id, (context).attempts, (context).causation_id IS NULL, (context).caller FROM done WHERE n = 4'),
	"$id|1|t|app", 'its context is that of who enqueued it');

# At its time.
my $at = query($node, "SELECT clock_timestamp() + interval '1 s'");
enqueue(10, "run_at => now() + interval '1 hour'");
enqueue(11, "run_at => '$at'");
done(11, 'a command is executed at its time');
is(query($node, "SELECT done_at >= '$at' FROM done WHERE n = 11"), 't', 'and not before');
is(query($node, "SELECT payload->>'n' FROM cqrs.scheduled_command"), '10', 'one for later is not executed');

# Across a crash and a restart.
for my $mode (qw(immediate fast))
{
	my $n = $mode eq 'fast' ? 20 : 30;

	$at = query($node, "SELECT clock_timestamp() + interval '2 s'");
	enqueue($n, "run_at => '$at'");
	enqueue($n + 1, "run_at => now() + interval '10 ms'");
	$node->stop($mode);
	$node->start;
	done($n, "$mode: a command is executed after the restart");
	is(query($node, "SELECT done_at >= '$at' FROM done WHERE n = $n"), 't', "$mode: not before its time");
	done($n + 1, "$mode: so is one whose time came meanwhile");
}
$open->quit;

# In order by key, with retries.
query($node, "INSERT INTO broken VALUES (40), (44)");
query($node, "SET ROLE app; SELECT cqrs_alter_subscription('commands_of_app', max_attempts => 3, retry_delay => '10 ms')");
enqueue(40, "'k'");
enqueue(41, "'k'");
enqueue(42, "'other'");
enqueue(43);
done(42, 'one that fails holds up no other key');
done(43, 'nor one without a key');
done(41, 'the next one of its key comes when it is given up');
is(query($node, "SET ROLE app; SELECT event_name, key, payload, attempts, error_sqlstate, error FROM cqrs_dead_letters WHERE subscription = 'commands_of_app'"),
	'Do|k|{"n": 40}|3|P0001|40 is broken', 'after its attempts');
query($node, "SET ROLE app; SELECT cqrs_alter_subscription('commands_of_app', max_attempts => 0)");
enqueue(44, "'l'");
enqueue(45, "'l'");
ok($node->poll_query_until('postgres', "SELECT count(*) = 2 FROM cqrs.retry WHERE key = 'l'"), 'another one fails, and one waits for it');
query($node, 'TRUNCATE broken');
is(query($node, "SET ROLE app; SELECT cqrs_redrive('commands_of_app', ARRAY[event_id]) > 0 FROM cqrs_dead_letters WHERE subscription = 'commands_of_app' AND payload->>'n' = '40'"), 't', 'redriven');
done(40, 'it is executed after all');
done(44, 'so is the one that was still tried');
done(45, 'and what waited for it');
is(query($node, 'SELECT (context).attempts > 1 FROM done WHERE n = 44'), 't', 'in a later attempt');

# No more than the role may.
query($node, "SET ROLE app; SELECT cqrs_alter_subscription('commands_of_app', max_attempts => 1)");
for my $first ('SELECT 1', 'RESET ROLE', 'SET ROLE postgres', 'RESET SESSION AUTHORIZATION')
{
	query($node, "SET ROLE app; SELECT cqrs_enqueue('Steal', '{\"first\": \"$first\"}')");
}
# That others are executed is the evidence that these are at fault.
for my $n (200 .. 299)
{
	last if query($node, "SELECT count(*) = 4 FROM cqrs.dead_letter WHERE event_name = 'Steal'") eq 't';
	enqueue($n, "'witness'");
	$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM done WHERE n = $n") or last;
	$node->poll_query_until('postgres', "SELECT coalesce(min(retry_at) <= clock_timestamp(), true) FROM cqrs.retry WHERE event_name = 'Steal' AND due_at IS NOT NULL");
}
is(query($node, "SELECT count(*) FROM cqrs.dead_letter WHERE event_name = 'Steal'"), '4', 'what a role may not, its commands may not');
is(query($node, "SELECT string_agg(DISTINCT sqlstate, ' '), (SELECT count(*) FROM secret) FROM cqrs.dead_letter WHERE event_name = 'Steal'"), '42501|0', 'whatever they try');
query($node, "SET ROLE app; SELECT cqrs_alter_subscription('commands_of_app', max_attempts => 5)");

# Cancelled while it waits for the end of an outage: that is over then.
query($node, q(
	CREATE FUNCTION wait_for_it(c jsonb) RETURNS void LANGUAGE plpgsql AS $$BEGIN RAISE 'closed' USING ERRCODE = 'OB101'; END$$;
	SELECT cqrs_register_command('Wait', 'wait_for_it')));
$id = query($node, "SET ROLE app; SELECT cqrs_enqueue('Wait')");
ok($node->poll_query_until('postgres', "SELECT error_sqlstate = 'OB101' AND retry_at > error_at FROM cqrs_subscription_status WHERE subscription = 'commands_of_app'"), 'a command waits');
is(query($node, "SET ROLE app; SELECT cqrs_cancel_command('$id'), cqrs_cancel_command('$id')"), 't|f', 'it is cancelled, once');
ok($node->poll_query_until('postgres', "SELECT state = 'idle' AND error <> 'closed' FROM cqrs_subscription_status WHERE subscription = 'commands_of_app'"), 'nothing waits any more');
enqueue(46);
done(46, 'what comes then is executed');

# Killed in the middle.
my $holder = hold_handlers($node, 'postgres');
enqueue(50);
crash_server($node, in_handler($node, 'postgres'));
$holder->quit;
done(50, 'killed in the middle, a command is executed');

# The manager is killed, with a thousand due.
query($node, "SET ROLE app; SELECT count(cqrs_enqueue('Do', jsonb_build_object('n', i), run_at => clock_timestamp() + interval '500 ms')) FROM generate_series(1001, 4000) i");
ok($node->poll_query_until('postgres', 'SELECT count(*) < 3000 FROM cqrs.scheduled_command WHERE run_at <= clock_timestamp()'), 'some of many are put into the outbox');
crash_server($node, processes($node, 'manager', 'postgres'));
ok($node->poll_query_until('postgres', 'SELECT count(*) >= 3000 FROM done WHERE n > 1000'), 'the manager killed, all are executed');
is(query($node, 'SELECT count(*), count(DISTINCT n) FROM done WHERE n > 1000'), '3000|3000', 'each once');

# A transaction that removes a command, and does not commit, tells of it.
ok(wait_managers($node, 'postgres'), 'the manager is there again');
my $canceller = new_session($node, 'postgres');
$canceller->query('SET ROLE app');
for my $end ('ROLLBACK', 'ROLLBACK TO s; COMMIT', 'disconnect')
{
	query($node, 'DELETE FROM done WHERE n IN (60, 61)');
	# So much later that it is cancelled before, on a slow machine, too.
	$id = enqueue(60, "run_at => clock_timestamp() + interval '3 s'");
	$canceller->query('BEGIN; SAVEPOINT s');
	is($canceller->query("SELECT cqrs_cancel_command('$id')"), 't', "$end: a command is cancelled");
	enqueue(61, "run_at => clock_timestamp() + interval '3 s'");
	done(61, "$end: one for later is executed");
	is_not_done(60, "$end: while the first one is passed by");
	$end eq 'disconnect' ? $canceller->quit : $canceller->query($end);
	done(60, "$end: it is executed then");
}

# A role whose topic cannot be written to holds up no other.
my $segments = query($node, "SELECT string_agg(format('cqrs.topic_%s_%s', topic_id, i), ', ') FROM cqrs.topic, generate_series(0, 2) i WHERE topic = 'commands_of_app'");
my $locker = new_session($node, 'postgres');
$locker->query("BEGIN; LOCK $segments IN SHARE MODE");
enqueue(70, "run_at => clock_timestamp() + interval '100 ms'");
enqueue(71, "run_at => clock_timestamp() + interval '200 ms'", 'postgres');
done(71, "another role's command is executed while a topic is locked");
is_not_done(70, 'the one of that topic is not');
$locker->query('COMMIT');
done(70, 'it is when the lock is gone');

my $offset = -s $node->logfile;
my ($altered) = split /,/, query($node, "SELECT format('cqrs.topic_%s_%s', topic_id, current_segment) FROM cqrs.topic WHERE topic = 'commands_of_app'");
query($node, "ALTER TABLE $altered ADD CHECK (true)");
# Enqueuing for later does not look at it.
enqueue(72, "run_at => clock_timestamp() + interval '100 ms'");
enqueue(73, "run_at => clock_timestamp() + interval '200 ms'", 'postgres');
done(73, "another role's command is executed while a topic is altered");
is_not_done(72, 'the one of that topic is not');
like(slurp_file($node->logfile, $offset), qr/ERROR:  table "topic_\d+_\d" of topic "commands_of_app" was altered.*CONTEXT:  putting scheduled commands into the outbox/s, 'the log says why');
is(query($node, "SELECT object FROM cqrs_health(max_lag => '0') WHERE problem = 'commands_late'"), 'commands of role "app"', 'so does cqrs_health()');
query($node, "ALTER TABLE $altered DROP CONSTRAINT " . query($node, "SELECT conname FROM pg_constraint WHERE conrelid = '$altered'::regclass AND contype = 'c'"));
$node->restart;
done(72, 'it is executed when that is undone');

# Delivery turned off.
reconfigure($node, 'cqrs_outbox.deliver = off');
enqueue(80);
enqueue(81, "run_at => clock_timestamp() + interval '1 s'");
ok($node->poll_query_until('postgres', "SELECT count(*) = 0 FROM cqrs.scheduled_command WHERE payload->>'n' = '81' AND run_at >= clock_timestamp()"), 'the time has come');
reconfigure($node, 'cqrs_outbox.deliver = on');
done(80, 'what waited for delivery is executed');
done(81, 'so is what was scheduled');

# Prepared transactions: nobody announces them, so the manager polls.
sub prepare
{
	my ($name, $sql) = @_;

	query($node, "SET ROLE app; BEGIN; $sql; PREPARE TRANSACTION '$name'");
}
prepare('one', enqueue_sql(90) . '; ' . enqueue_sql(91, "run_at => clock_timestamp() + interval '100 ms'"));
$id = enqueue(92, "run_at => clock_timestamp() + interval '3 s'");
prepare('two', "SELECT cqrs_cancel_command('$id')");
enqueue(93, "run_at => clock_timestamp() + interval '3 s'");
done(93, 'prepared transactions hold up nobody');
is_not_done($_, "$_: not before the commit") for 90, 91, 92;
reconfigure($node, 'cqrs_outbox.poll_interval = 100');
query($node, "COMMIT PREPARED 'one'");
query($node, "ROLLBACK PREPARED 'two'");
done(90, 'what a prepared transaction enqueued is executed');
done(91, 'so is what it scheduled');
done(92, 'and what it would have cancelled');
reconfigure($node, 'cqrs_outbox.poll_interval = 3600000');

# What is scheduled for later costs nothing: the manager does not look. It
# counts what it does when it next reports.
my $looks = "SELECT idx_scan FROM pg_stat_all_indexes WHERE indexrelname = 'scheduled_command_run_at'";
my $reads = $looks =~ s/idx_scan/idx_tup_read/r;

# counted(NAME, N): have a command executed, and all that was done before counted.
sub counted
{
	my ($n) = @_;
	my $before = query($node, $looks);

	enqueue($n, "run_at => clock_timestamp() + interval '100 ms'");
	done($n, "$n is executed");
	ok($node->poll_query_until('postgres', "SELECT ($looks) > $before"), 'and counted');
}
counted(100);
my ($looks_before, $reads_before) = (query($node, $looks), query($node, $reads));
query($node, "SET ROLE app; SELECT count(cqrs_enqueue('Do', '{\"n\": 0}', run_at => now() + i * interval '1 day')) FROM generate_series(1, 100000) i");
query($node, "SELECT cqrs_cancel_command(command_id) FROM cqrs.scheduled_command WHERE payload = '{\"n\": 0}' ORDER BY run_at LIMIT 100");
counted(101);
cmp_ok(query($node, $looks) - $looks_before, '<', 20, 'for 100,000 scheduled for later, the manager does not look');
cmp_ok(query($node, $reads) - $reads_before, '<', 100, 'nor does it read them');

# Nor do dead rows that a long transaction keeps.
my $old = new_session($node, 'postgres');
$old->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
query($node, "SET ROLE app; SELECT cqrs_pause('commands_of_app')");
$reads_before = query($node, $reads);
query($node, "SET ROLE app; SELECT count(cqrs_enqueue('Do', '{\"n\": 0}', run_at => now() + interval '1 s')) FROM generate_series(1, 10000) i");
ok($node->poll_query_until('postgres', "SELECT count(*) = 0 FROM cqrs.scheduled_command WHERE run_at <= clock_timestamp() + interval '2 s' AND payload = '{\"n\": 0}'"), '10,000 of one time are put into the outbox');
my $reads_moving = $reads_before;
enqueue(102, "run_at => clock_timestamp() + interval '100 ms'", 'postgres');
done(102, 'and one more is executed');
for my $n (103 .. 105)
{
	my $before = query($node, $looks);

	enqueue($n, "run_at => clock_timestamp() + interval '100 ms'", 'postgres');
	done($n, "$n is executed");
	ok($node->poll_query_until('postgres', "SELECT ($looks) > $before"), 'and counted');
	$reads_before = query($node, $reads) if $n == 103;
}
cmp_ok($reads_before - $reads_moving, '<', 20000, 'each of them is read once');
cmp_ok(query($node, $reads) - $reads_before, '<', 100, 'where 10,000 were, the manager does not look again');
$old->quit;

# Dumped and restored: what is scheduled comes along, and is executed once it is
# adopted. Its time may come before the dump is made: so nothing is executed
# until then.
query($node, "DELETE FROM cqrs.scheduled_command WHERE payload = '{\"n\": 0}'");
query($node, "SET ROLE app; SELECT cqrs_cancel_command(command_id) FROM cqrs_enqueued_commands WHERE state = 'scheduled'");
reconfigure($node, 'cqrs_outbox.deliver = off');
$at = query($node, "SELECT clock_timestamp() + interval '1 s'");
$id = enqueue(110, "run_at => '$at'", 'postgres');
my $dump = $node->backup_dir . '/dump.sql';
$node->command_ok([ 'pg_dump', '-f', $dump, '-d', $node->connstr('postgres') ], 'dumped');
reconfigure($node, 'cqrs_outbox.deliver = on');
done(110, 'a command is executed where it was enqueued');
query($node, 'CREATE DATABASE copy');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, '-d', $node->connstr('copy') ], 'restored');
ok(wait_managers($node, 'copy', 'postgres'), 'the copy has a manager');
reconfigure($node, 'cqrs_outbox.poll_interval = 100');
ok($node->poll_query_until('copy', 'SELECT count(*) = 0 FROM cqrs.scheduled_command'), 'the command is put into the outbox there');
is($node->safe_psql('copy', 'SELECT count(*) FROM done WHERE n = 110'), '0', 'and not executed, as nothing restored is');
$node->safe_psql('copy', 'SELECT cqrs_adopt()');
ok($node->poll_query_until('copy', 'SELECT count(*) > 0 FROM done WHERE n = 110'), 'until it is adopted');
is($node->safe_psql('copy', 'SELECT (context).id, count(*) OVER () FROM done WHERE n = 110'), "$id|1", 'once, with its id');

$node->stop;
done_testing();
