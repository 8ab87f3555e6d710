# Random calls of every function of the extension, beside what makes them fail.
#
#   caller.pl SECONDS SEED
#
# Several processes call, each with a seed of its own; another one does what
# makes a mess. What they say is looked through for internal errors. Exits with
# 0 if there is none, nothing hangs, the server is the same, and all public
# functions are known.

use strict;
use warnings;

use POSIX ();
use Time::HiRes qw(time);

$| = 1;
my ($seconds, $seed) = @ARGV;
my $callers = 3;
my $chunk = 60;		# calls of one session
my $hang = 120;		# seconds that such a session may take
my $database = 'fuzz';
my $dir = POSIX::getcwd();

# Every public function, and how often it is called compared with others. What is
# not here is not known: say how to call it, here and in argument(). What takes
# away all privileges is never called: it would leave nothing to be tried.
my %known = map { /^(\S+?)(?:=(\d+))?$/ ? ($1 => $2 // 3) : () } qw(
  cqrs_send=12 cqrs_send_once=6 cqrs_dry_run=6 cqrs_stream=4 cqrs_next cqrs_query=6 cqrs_proceed cqrs_log_dispatch cqrs_context
  cqrs_emit=12 cqrs_emit_many=6 cqrs_emit_trigger=1 cqrs_events cqrs_wait=1 cqrs_receive=6 cqrs_ack=6 cqrs_nack=6 cqrs_renew=4
  cqrs_enqueue=8 cqrs_create_command_queue=2 cqrs_drop_command_queue=1 cqrs_cancel_command cqrs_command_result cqrs_wait_command=1 cqrs_schedule cqrs_unschedule=1 cqrs_pause_schedule=1 cqrs_resume_schedule cqrs_next_runs cqrs_create_topic cqrs_alter_topic cqrs_drop_topic=1
  cqrs_register_event cqrs_unregister_event=1 cqrs_register_event_handler cqrs_unregister_event_handler=1
  cqrs_register_command cqrs_register_chain cqrs_register_query cqrs_unregister_command=1 cqrs_unregister_query=1 cqrs_register_fallback cqrs_unregister_fallback=1
  cqrs_register_middleware=1 cqrs_unregister_middleware=2 cqrs_subscribe cqrs_alter_subscription cqrs_unsubscribe=1
  cqrs_pause=1 cqrs_resume=2 cqrs_seek=2 cqrs_envelope=3 cqrs_retry cqrs_retry_all cqrs_redrive cqrs_redrive_all cqrs_discard cqrs_discard_all cqrs_tick cqrs_drain=6 cqrs_enqueue_scheduled
  cqrs_adopt=1 cqrs_grant_admin=1 cqrs_revoke_admin=1 cqrs_maintain=1 cqrs_health=1 cqrs_diagram=1 run_command announce
  registry_changed=1 refuse_write=1 withdraw_privileges=0 copy_privileges=1 breaker_state usable library_version background broken_tables find_function diagram_label no_diagram flowchart sequence_diagram topic_progress subscription_progress subscription_owner worker_status cursor_holders event_lane event_partition
  insert_event=1 refuse_change=1 occurred_at
  cqrs_step=1 cqrs_await=1 cqrs_sleep=1 cqrs_parallel=1 cqrs_sub_saga=1 cqrs_register_saga=6 cqrs_unregister_saga=1 cqrs_create_saga_queue=2 cqrs_drop_saga_queue=1
  cqrs_start_saga=12 cqrs_signal=6 cqrs_cancel_saga cqrs_retry_saga cqrs_skip_step cqrs_resume_sagas=1 cqrs_wait_saga=1 cqrs_saga_history cqrs_dry_run_saga
  cqrs_consumed=6
  cqrs_create_consumer=4 cqrs_alter_consumer cqrs_drop_consumer=1 cqrs_pause_consumer=1 cqrs_resume_consumer=2 cqrs_seek_consumer cqrs_redrive_consumed cqrs_redrive_all_consumed cqrs_discard_consumed cqrs_discard_all_consumed=1 consumer_owner
  run_saga route_to_sagas resume_sagas=1 saga_steps saga_diagram);

# What an error may say though it has the code of an internal one: the server's
# own answers to who changes the same thing at the same time, or names a type that
# is just being dropped.
my $excused = qr/tuple concurrently (?:updated|deleted)|cache lookup failed for type \d+ in LookupTypeNameExtended/;

# Its answers to who uses a table or type that is just being dropped, which
# nothing locks. Those of a function that server.conf has a backtrace logged of
# are judged by that, in run; any other is a finding.
my $dropped = qr/could not open relation with OID|cache lookup failed for (?:type|relation)|type with OID \d+ does not exist/;
my %traced;

# psql(SQL, ROLE): what it says, of up to $hang seconds; undef: it hangs.
sub psql
{
	my ($sql, $role, $name) = @_;
	my $file = "$dir/fuzz_$$";

	open my $out, '>', "$file.sql" or die "$file.sql: $!";
	print $out $sql;
	close $out;
	system("timeout -k 5 $hang psql -XAtq -v VERBOSITY=verbose -v SHOW_CONTEXT=never -U $role -d $database -f $file.sql >$file.out 2>&1");
	my $status = $? >> 8;
	open my $in, '<', "$file.out" or die "$file.out: $!";
	local $/;
	my $said = <$in>;
	return $status == 124 || $status == 137 ? undef : $said;
}

sub pick { return $_[ int rand @_ ]; }

sub quote
{
	my ($text) = @_;

	$text =~ s/'/''/g;
	return "'$text'";
}

my @names = qw(a b c d e commands_of_fuzz_app);
my @handlers = qw(f_ok f_fails f_emits f_sends f_rethrows f_next f_stream f_composite f_event f_middleware f_catches f_drops f_several);
my @hostile = (
	'', ' ', "x'; DROP TABLE x; --", '"', '\\', "a\nb", 'ä' x 40, 'x' x 63, 'x' x 64, 'x' x 5000, '%s%n', '{}', 'NULL', 'pg_temp.f', "\x{1}",
	'commands_of_postgres', 'cqrs.topic', 'public', '..', '0', '-1', 'latest', 'earliest', 'now', 'happened');
my @json = (
	'{}', '{"n": 1}', '{"n": null}', '[]', '[1, "correlation_id"]', '"x"', '1', 'null', 'true', '{"correlation_id": 7}', '{"correlation_id": "x", "occurred_at": "2024-12-31T23:59:60.1234567-23:59"}', '{"occurred_at": "2024-02-30T00:00:00Z"}',
	'["AA\u008fAAA\u0001", "xxxxxxxxxxxxco", "rrelation_idzzzz"]', '{"correlation_id": "a\nb", "traceparent": ["x"]}',
	'{"a": {"a": {"a": [[[[[[[[]]]]]]]]}}}', '{"n": 1e131071}', '{"n": "x"}', '{"N": 1}', '{"": ""}', '{"n": 1, "m": [1, [2]]}',
	'{"items": [{"n": 1}, {"n": "y"}, null]}');

my @options = ('{}', '{"expires_at": "2000-01-01T00:00:00Z"}', '{"expires_at": "9999-12-31T23:59:59+00:00", "keep_answer": true}', '{"keep_answer": true}',
	'{"keep_answer": null}', '{"keep_answer": [true]}', '{"expires_at": "infinity"}', '{"priority": 1}');

sub name { return rand() < 0.75 ? pick(@names) : pick(@hostile); }

sub function_name
{
	my $name = rand() < 0.9 ? pick(@handlers) : pick('no_such', 'pg_sleep', 'pg_terminate_backend', 'cqrs.run_command', 'pg_temp.f', 'f_overloaded');
	my $argument = $name eq 'f_event' || $name eq 'cqrs.run_command' || rand() < 0.05 ? 'cqrs_event'
	  : $name eq 'f_several' ? 'cqrs_event[]' : $name eq 'f_middleware' ? 'cqrs_request' : $name eq 'f_composite' ? 'thing' : 'jsonb';

	$name = "public.$name" if rand() < 0.2 && $name !~ /\./;
	return rand() < 0.5 ? $name : "$name($argument)";
}

# argument(TYPE, NAME): an expression. Now and then, what nobody would pass.
sub argument
{
	my ($type, $name) = @_;

	return 'NULL' if rand() < 0.06;
	return "'$1'" . "::$type" if $type =~ /^(?:text|name)$/ && $name eq 'start' && pick('earliest', 'latest', 'x') =~ /(.*)/;
	return quote($name eq 'cron' ? pick('* * * * *', '*/5 * * * * *', '0 0 29 2 *', '@hourly', '1-5/2,7 8 * jan mon-fri', '0 0 30 2 *', '*/0 * * * *', ',,, * * * *', '') :
		$name eq 'time_zone' ? pick('Europe/Berlin', 'UTC', 'Asia/Kathmandu', 'x', '<+01>-1') : $name eq 'catch_up' ? pick('none', 'one', 'all', 'x') :
		$name =~ /rate$/ ? pick('0', '100000/s', '10/s', '1000000/h', '1/', '-1/s', '99999999999/s') : $name eq 'ordering' ? pick('key', 'topic', 'x') : $name =~ /format/ ? pick('cqrs', 'raw', 'cloudevents', 'x') : $name =~ /server/ ? pick('peer', 'x') :
		$name eq 'payload_type' ? pick(qw(jsonb thing int 0 things cqrs_event dom thing[] public.thing nowhere.x)) : $name =~ /kind/ ? pick('flowchart', 'sequence', 'x') : $name =~ /^handler$|^fallback$/ ? function_name() : name()) . '::text'
	  if $type eq 'text';
	return quote(pick(@options)) . '::jsonb' if $name eq 'options' && rand() < 0.8;
	return quote(pick(@json)) . '::jsonb' if $type eq 'jsonb' && rand() < 0.95;
	return "jsonb_build_object('n', repeat('x', " . pick(10, 3000, 100000) . '))' if $type eq 'jsonb';
	return 'ARRAY[' . join(', ', map { argument('jsonb', '') } 1 .. int rand 5) . ']::jsonb[]' if $type eq 'jsonb[]';
	return 'ARRAY[' . join(', ', map { argument('text', $name =~ /^handlers$/ ? 'handler' : '') } 1 .. int rand 4) . ']::text[]' if $type eq 'text[]';
	return pick('ARRAY[]', 'ARRAY[NULL]', 'ARRAY[gen_random_uuid()]', '(SELECT array_agg(event_id) FROM cqrs_dead_letters)',
		'(SELECT array_agg(event_id) FROM cqrs_retries)', '(SELECT array_agg(event_id) FROM cqrs_topics.a)') . '::uuid[]' if $type eq 'uuid[]';
	return argument(pick('text', 'text', 'integer', 'bigint', 'uuid', 'jsonb', 'interval', 'boolean', 'text[]'), $name) if $type eq 'anycompatible';
	return pick('0', '1242', '4294967295') . '::oid::regprocedure' if $type eq 'regprocedure';
	return quote(pick('0', '1 day', '1 hour', '-1 s', '1 ms', '178000000 years', '10 s', '300 ms')) . '::interval' if $type eq 'interval';
	return pick('now()', "'infinity'", "'-infinity'", "'2000-01-01'", "now() + '100 ms'", "now() + '1 year'") . '::timestamptz' if $type eq 'timestamp with time zone';
	return "(SELECT receipt FROM cqrs_receive('c', " . pick(1, 3) . pick('', ", lease => '1 s'") . ') LIMIT 1)' if $name eq 'receipt' && rand() < 0.7;
	return '(SELECT saga_id FROM cqrs_saga_status ORDER BY random() LIMIT 1)' if $name eq 'saga_id' && rand() < 0.9;
	return 'ARRAY[' . join(', ', map { saga_step(1) } 1 .. 1 + int rand 4) . ']::cqrs_saga_step[]' if $type eq 'cqrs_saga_step[]';
	return quote(pick(qw(a b c d x))) . '::text' if $name =~ /^(?:step|signal)_name$/ && rand() < 0.9;
	return pick('gen_random_uuid()', "'00000000-0000-0000-0000-000000000000'", '(SELECT event_id FROM cqrs_topics.a ORDER BY 1 DESC LIMIT 1)',
		'(SELECT command_id FROM cqrs_enqueued_commands ORDER BY random() LIMIT 1)') . '::uuid'
	  if $type eq 'uuid';
	return pick('true', 'false') if $type eq 'boolean';
	return pick('ARRAY[]', 'ARRAY[NULL]', 'ARRAY[1, 2, 1]', 'ARRAY[9223372036854775807]', 'ARRAY[[1], [2]]',
		'(SELECT array_agg(position) FROM cqrs_topics.a)', "(SELECT array_agg(position) FROM cqrs_receive('c', 5))") . '::bigint[]' if $type eq 'bigint[]';
	return pick(0, 1, 2, 3, 10, 1000, -1, 2147483647, -2147483648) if $type eq 'integer';
	return pick(0, 1, 5, 100, 100000, -1, 9223372036854775807, '(-9223372036854775808)') if $type eq 'bigint';
	return "ROW(1)::thing" if $type eq 'record';
	return "ROW('command', 'a', '{}')::cqrs_request" if $type eq 'cqrs_request';
	return pick('(SELECT e FROM (SELECT NULL::cqrs_event) v (e))', "ROW(1, gen_random_uuid(), 'a', 'b', NULL, '{}', '[1]', now())::cqrs_event",
		"(SELECT ROW(position, event_id, event_name, 'a', key, payload, headers, emitted_at)::cqrs_event FROM cqrs_topics.a LIMIT 1)") if $type eq 'cqrs_event';
	return 'NULL';
}

# saga_step(OUTER): a step; of a saga, or within a parallel one
sub saga_step
{
	my ($outer) = @_;
	my $name = quote(pick(qw(a b c d e f g h)));
	my $kind = $outer ? pick(qw(step step step await sleep parallel saga)) : 'step';

	return "cqrs_await($name, timeout => " . pick("'50 ms'", 'NULL', "'1 hour'") . ', event_name => ' . pick('NULL', "'a'", "'b'") . pick('', ", on_timeout => 'd'") . ')' if $kind eq 'await';
	return "cqrs_sleep($name, " . pick("'0'", "'20 ms'", "'1 hour'") . ')' if $kind eq 'sleep';
	return "cqrs_sub_saga($name, " . quote(name()) . ')' if $kind eq 'saga';
	return "cqrs_parallel($name, ARRAY[" . join(', ', map { saga_step(0) } 1 .. 1 + int rand 3) . '])' if $kind eq 'parallel';
	return "cqrs_step($name, " . quote(function_name()) . pick('', ', compensation => ' . quote(function_name())) . pick('', ', fallback => ' . quote(function_name())) .
	  pick('', '', ', pivot => true') . ', max_attempts => ' . pick(1, 2) . ", retry_delay => '10 ms'" . pick('', ", timeout => '50 ms'") . ')';
}

# call(FUNCTION): a statement
sub call
{
	my ($function) = @_;
	my @arguments;
	my @given = map { rand() < 0.85 ? $_ : () } 0 .. $#{ $function->{types} };

	for my $i (0 .. $#{ $function->{types} })
	{
		my ($type, $name) = ($function->{types}[$i], $function->{names}[$i]);
		my $value;

		# Those that have a default may be left out.
		last if $i >= $function->{required} && rand() < 0.4;
		$value = argument($type, $name);
		push @arguments, rand() < 0.01 ? quote(pick(@hostile)) : $value;
	}
	return sprintf 'SELECT %s FROM %s.%s(%s) LIMIT %d;', pick('*', '*', 'count(*)'), $function->{schema}, $function->{name},
	  join(', ', @arguments), pick(1, 3, 1000);
}

# insert_event(): a statement
sub insert_event
{
	my %columns = (event_name => 'text', key => 'text', payload => 'jsonb', headers => 'jsonb', event_id => 'uuid', occurred_at => 'timestamp with time zone',
		position => 'bigint', emitted_at => 'timestamp with time zone');
	my @given = ('event_name', grep { rand() < 0.5 } qw(key payload headers event_id occurred_at));

	push @given, pick(qw(position emitted_at)) if rand() < 0.05;
	return sprintf 'INSERT INTO cqrs_topics.%s (%s) VALUES %s RETURNING *', pick(qw(a b commands_of_fuzz_app)), join(', ', @given),
	  join(', ', map { '(' . join(', ', map { argument($columns{$_}, $_) } @given) . ')' } 1 .. 1 + int rand 3);
}

# statements(FUNCTIONS): of a session
sub statements
{
	my ($functions) = @_;
	my @all = map { ($_) x $known{ $_->{name} } } @$functions;
	my $sql = "SET statement_timeout = '3s'; SET lock_timeout = '1s'; SET client_min_messages = error;\n";

	for (1 .. $chunk)
	{
		my $roll = rand;

		$sql .= 'BEGIN' . pick('', ' ISOLATION LEVEL REPEATABLE READ', ' READ ONLY', ' ISOLATION LEVEL SERIALIZABLE') . ";\n" if $roll < 0.06;
		$sql .= pick('COMMIT', 'ROLLBACK', 'COMMIT', 'SAVEPOINT s', 'ROLLBACK TO s', 'RELEASE s') . ";\n" if $roll > 0.85;
		$sql .= 'SET cqrs_outbox.' . pick('max_command_depth = 2', 'max_event_depth = 1', "correlation_id = 'x'", "correlation_id = E'a\\nb'", "traceparent = 'x'")
		  . ";\n" if $roll > 0.48 && $roll < 0.5;
		$sql .= pick('SELECT * FROM cqrs_subscription_status', 'SELECT * FROM cqrs_topic_status', 'SELECT * FROM cqrs_worker_status', 'SELECT * FROM cqrs_dead_letters', 'SELECT * FROM cqrs_retries',
			'SELECT * FROM cqrs_topics.a LIMIT 3',
			insert_event(), insert_event(), 'SELECT * FROM cqrs_subscriptions.a', "INSERT INTO captured VALUES (1, 'x')", 'UPDATE captured SET t = t || t', 'DELETE FROM captured', 'TRUNCATE captured') . ";\n"
		  if $roll > 0.44 && $roll < 0.48;
		$sql .= call(pick(@all)) . "\n";
	}
	return $sql . "ROLLBACK;\n";
}

# Whatever is gone, is made again.
my $set_up = join "\n", map { "DO \$do\$ BEGIN $_; EXCEPTION WHEN OTHERS THEN NULL; END \$do\$;" } (
	'CREATE TYPE thing AS (n int)', 'CREATE DOMAIN dom AS thing CHECK ((VALUE).n > 0)', 'CREATE TABLE captured (i int, t text)',
	'GRANT ALL ON captured TO PUBLIC',
	'CREATE FUNCTION f_ok(jsonb) RETURNS jsonb LANGUAGE sql AS $f$ SELECT $1 $f$',
	'CREATE FUNCTION f_fails(jsonb) RETURNS jsonb LANGUAGE plpgsql AS $f$ BEGIN RAISE EXCEPTION \'%\', $1; END $f$',
	'CREATE FUNCTION f_rethrows(jsonb) RETURNS jsonb LANGUAGE plpgsql AS $f$ BEGIN BEGIN RAISE EXCEPTION \'boo\'; EXCEPTION WHEN unique_violation THEN NULL; END; RETURN $1; END $f$',
	'CREATE FUNCTION f_emits(jsonb) RETURNS jsonb LANGUAGE plpgsql AS $f$ BEGIN PERFORM cqrs_emit(\'a\', $1); PERFORM cqrs_emit(\'b\', $1); RETURN $1; END $f$',
	'CREATE FUNCTION f_sends(jsonb) RETURNS jsonb LANGUAGE plpgsql AS $f$ BEGIN PERFORM cqrs_enqueue(\'b\', $1); RETURN cqrs_send(\'b\', $1); END $f$',
	'CREATE FUNCTION f_next(jsonb) RETURNS jsonb LANGUAGE plpgsql AS $f$ BEGIN PERFORM cqrs_next(); RETURN NULL; END $f$',
	'CREATE FUNCTION f_catches(jsonb) RETURNS jsonb LANGUAGE plpgsql AS $f$ BEGIN RETURN cqrs_query(\'c\', $1); EXCEPTION WHEN OTHERS THEN RETURN to_jsonb(SQLERRM); END $f$',
	'CREATE FUNCTION f_drops(jsonb) RETURNS jsonb LANGUAGE plpgsql AS $f$ BEGIN PERFORM cqrs_unregister_command(\'a\'); RETURN cqrs_send(\'a\', $1); END $f$',
	'CREATE FUNCTION f_stream(jsonb) RETURNS SETOF jsonb LANGUAGE sql AS $f$ SELECT to_jsonb(i) FROM generate_series(1, 5) i $f$',
	'CREATE FUNCTION f_composite(thing) RETURNS thing LANGUAGE sql AS $f$ SELECT $1 $f$',
	'CREATE FUNCTION f_overloaded(jsonb) RETURNS jsonb LANGUAGE sql AS $f$ SELECT $1 $f$',
	'CREATE FUNCTION f_overloaded(thing) RETURNS thing LANGUAGE sql AS $f$ SELECT $1 $f$',
	'CREATE FUNCTION f_several(cqrs_event[]) RETURNS void LANGUAGE plpgsql AS $f$ BEGIN IF random() < 0.2 THEN RAISE EXCEPTION \'no\'; END IF; END $f$',
	'CREATE FUNCTION f_event(cqrs_event) RETURNS void LANGUAGE plpgsql AS $f$ BEGIN IF random() < 0.2 THEN RAISE EXCEPTION \'no\'; END IF; END $f$',
	'CREATE FUNCTION f_middleware(cqrs_request) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER AS $f$ BEGIN RETURN cqrs_proceed(); EXCEPTION WHEN OTHERS THEN RETURN cqrs_proceed(); END $f$',
	(map {; "PERFORM cqrs_create_topic('$_')", "PERFORM cqrs_register_event('$_', '$_')", "PERFORM cqrs_register_chain('$_', ARRAY['f_emits(jsonb)', 'f_ok(jsonb)'])",
			"PERFORM cqrs_subscribe('$_', ARRAY['$_'], 'f_event(cqrs_event)', max_attempts => 2, retry_delay => '10 ms')",
			"EXECUTE 'GRANT SELECT, INSERT ON cqrs_topics.$_ TO fuzz_app'" } qw(a b)),
	"PERFORM cqrs_subscribe('c', ARRAY['a'])", "PERFORM cqrs_register_query('c', 'f_ok(jsonb)')",
	"PERFORM cqrs_register_command('d', 'f_stream(jsonb)')", "PERFORM cqrs_register_command('e', 'f_composite(thing)')",
	"PERFORM cqrs_register_event_handler('b', 'f_sends(jsonb)')",
	'CREATE TRIGGER capture AFTER INSERT OR UPDATE OR DELETE ON captured FOR EACH ROW EXECUTE FUNCTION cqrs_emit_trigger(\'a\', \'i\')');

# mess(): a statement of a superuser's that gets in the way
sub mess
{
	return pick(
		"SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename LIKE 'fuzz%' ORDER BY random() LIMIT 1",
		"SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'cqrs%' ORDER BY random() LIMIT 1",
		"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'cqrs%' ORDER BY random() LIMIT 1",
		'DROP FUNCTION IF EXISTS ' . pick(@handlers[0 .. 6]) . '(jsonb)', 'DROP TYPE IF EXISTS thing CASCADE',
		'ALTER TYPE thing ADD ATTRIBUTE m text', 'ALTER FUNCTION f_ok(jsonb) OWNER TO ' . pick('postgres', 'fuzz_app'),
		'REVOKE ALL ON ALL TABLES IN SCHEMA cqrs_topics FROM fuzz_app', 'GRANT ALL ON ALL TABLES IN SCHEMA cqrs_topics TO fuzz_app',
		'ALTER ROLE fuzz_app ' . pick('NOLOGIN', 'LOGIN'), "ALTER ROLE fuzz_app SET search_path = '" . pick('public', 'pg_temp', 'nowhere') . "'",
		"UPDATE cqrs.retry SET headers = '" . pick('[1]', '"x"', 'null', '{"correlation_id": []}') . "'",
		"UPDATE cqrs.scheduled_command SET headers = '[\"correlation_id\"]', run_at = '2000-01-01'",
		'DROP VIEW cqrs_subscriptions.' . pick(qw(a b c)), 'DROP OWNED BY fuzz_app', 'REASSIGN OWNED BY fuzz_app TO fuzz_admin',
		'ALTER VIEW cqrs_subscriptions.' . pick(qw(a b c)) . ' ' . pick('OWNER TO fuzz_app', 'OWNER TO fuzz_admin', 'OWNER TO postgres', 'RENAME TO d', 'SET SCHEMA public'),
		'GRANT ALL ON ALL TABLES IN SCHEMA cqrs_subscriptions TO fuzz_app',
		'VACUUM FULL cqrs.cursor', 'ANALYZE', 'CHECKPOINT', 'CALL pg_sleep(0)', "SELECT cqrs_drop_topic('b', cascade => true)",
		'ALTER EXTENSION cqrs_outbox SET SCHEMA ' . pick('public', 'public', 'elsewhere')) . ";\n";
}

# bad(WHAT): report it, with the seed
sub bad
{
	my ($what) = @_;

	print "not ok: $what\nseed $seed\n";
	return 1;
}

# run(NUMBER, FUNCTIONS, UNTIL): one caller; 0 is who makes the mess. Writes how
# many calls it made.
sub run
{
	my ($number, $functions, $until) = @_;
	my $failed = 0;
	my $calls = 0;

	srand($seed + $number);
	while (time < $until && !$failed)
	{
		my $role = $number == 0 ? 'postgres' : pick('fuzz_app', 'fuzz_app', 'fuzz_admin', 'fuzz_nobody', 'postgres');
		my $sql = $number == 0 ? "SET lock_timeout = '1s'; SET statement_timeout = '5s';\n" . mess() . mess() . "SELECT pg_sleep(0.1);\n$set_up"
		  : statements($functions);
		my $said = psql($sql, $role);

		$calls += $chunk;
		$failed = bad("a session of $role hangs:\n$sql") unless defined $said;
		while (defined $said && $said =~ /^psql:\S+?:(\d+): ((?:ERROR|FATAL|PANIC):  (XX\S+|58\S+): .*)/mg)
		{
			my ($line, $error) = ($1, $2);
			my ($function) = substr($said, pos $said) =~ /\A(?:(?!\npsql:).)*?\nLOCATION:  (\w+),/s;

			next if $error =~ $excused || $error =~ $dropped && $traced{ $function // '' };
			$error .= ' in ' . ($function // 'no function');
			$failed = bad("as $role: $error\nin line $line of\n" . join("\n", (split /\n/, $sql)[ ($line > 4 ? $line - 5 : 0) .. $line - 1 ]));
		}
		$failed = bad("the server does not answer $role: $said")
		  if defined $said && $said =~ /server closed the connection unexpectedly|could not connect|connection to server.*failed: (?!FATAL:  role "fuzz_app" is not permitted)/i
		  && $said !~ /terminating connection due to administrator command|is not permitted to log in/;
	}
	open my $out, '>', "$dir/calls_$number" or die "calls: $!";
	print $out $calls;
	close $out;
	return $failed;
}

$database = 'postgres';
psql("CREATE DATABASE fuzz; CREATE ROLE fuzz_app LOGIN; CREATE ROLE fuzz_admin LOGIN; CREATE ROLE fuzz_nobody LOGIN;", 'postgres');
$database = 'fuzz';
my $said = psql("CREATE EXTENSION cqrs_outbox; CREATE SCHEMA elsewhere; GRANT CREATE, USAGE ON SCHEMA public TO PUBLIC;
	GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO fuzz_admin; GRANT USAGE ON SCHEMA elsewhere, cqrs TO PUBLIC;\n$set_up", 'postgres');
die $said if $said =~ /ERROR/;
my $functions = psql(q(
	SELECT concat_ws(E'\t', n.nspname, p.proname, p.pronargs - p.pronargdefaults,
		(SELECT string_agg(format_type(t, NULL), '|' ORDER BY i) FROM unnest(p.proargtypes) WITH ORDINALITY u (t, i)),
		array_to_string(p.proargnames[1:p.pronargs], '|', ''))
	FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid JOIN pg_namespace n ON n.oid = p.pronamespace
	WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
		  AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'cqrs_outbox')
	ORDER BY p.oid::regprocedure::text COLLATE "C"), 'postgres');
my @functions;
my $failed = 0;
for (split /\n/, $functions)
{
	my ($schema, $name, $required, $types, $names) = split /\t/;

	$failed |= bad("function $schema.$name() is not known to test/fuzz/caller.pl") unless exists $known{$name};
	next if $name eq 'cqrs_validator' || !exists $known{$name};
	push @functions, { schema => $schema eq 'cqrs' ? 'cqrs' : 'public', name => $name, required => $required,
		types => [ split /\|/, $types // '' ], names => [ map { $_ // '' } (split /\|/, $names // '', -1)[ 0 .. 20 ] ] };
}
exit 1 if $failed;
$traced{$_} = 1 for split /[\s,]+/, psql('SHOW backtrace_functions', 'postgres');
my $started = psql('SELECT pg_postmaster_start_time()', 'postgres');

my $until = time + $seconds;
my @pids;
for my $number (0 .. $callers)
{
	my $pid = fork // die "fork: $!";
	if ($pid == 0)
	{
		my $status = eval { run($number, \@functions, $until) } // bad($@);
		POSIX::_exit($status);
	}
	push @pids, $pid;
}
for my $pid (@pids)
{
	waitpid $pid, 0;
	$failed |= $? != 0;
}
my $ended = psql('SELECT pg_postmaster_start_time()', 'postgres') // 'nothing';
$failed |= bad("the server is not the same: $ended") if $ended ne $started;
my $calls = 0;
for my $number (1 .. $callers)
{
	open my $in, '<', "$dir/calls_$number" or next;
	$calls += <$in>;
}
print "# $calls calls of ", scalar(@functions), " functions\n";
exit($failed ? 1 : 0);
