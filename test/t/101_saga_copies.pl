# Sagas that go on somewhere else: a physical copy does the same steps again, and emits
# the same ids; the copy of a database rests until it is adopted, as does a restored dump;
# and whose sagas are whose.

use strict;
use warnings;

use CqrsTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $conf = q(
cqrs_outbox.poll_interval = 500
log_statement = none
jit = off
);
my $node = new_server('main', $conf, allows_streaming => 1);

$node->start;
$node->safe_psql('postgres', 'CREATE DATABASE original');
$node->safe_psql('original', q(
	CREATE EXTENSION cqrs_outbox;
	CREATE TABLE did (id bigint GENERATED ALWAYS AS IDENTITY, saga uuid, what text, key text, event uuid, database name DEFAULT current_database());
	CREATE TABLE broken (what text);
	SELECT cqrs_register_event('said', 'said'), cqrs_register_event('payment_settled', 'payments');
	CREATE FUNCTION act(state jsonb, what text) RETURNS jsonb LANGUAGE plpgsql SET search_path = public AS $$
	DECLARE
		event uuid := cqrs_emit('said', jsonb_build_object('what', what));
	BEGIN
		IF EXISTS (SELECT FROM broken b WHERE b.what = act.what) THEN
			RAISE 'cannot %: %', what, event;
		END IF;
		INSERT INTO did (saga, what, key, event) VALUES ((cqrs_context()).id, what, (cqrs_context()).effect_key, event);
		-- One more, as an id is of what was emitted before, too.
		PERFORM cqrs_emit('said', '{}');
		RETURN state || jsonb_build_object('last', what);
	END $$;
	SELECT format('CREATE FUNCTION %1$I(jsonb) RETURNS jsonb LANGUAGE sql SET search_path = public AS $f$ SELECT act($1, %1$L) $f$', name)
	FROM unnest(ARRAY['reserve', 'cancel', 'charge', 'invoice', 'a', 'b', 'issue', 'send']) name \gexec
	SELECT cqrs_create_saga_queue();
	SELECT cqrs_register_saga('trip', ARRAY[
		cqrs_step('hotel', 'reserve', compensation => 'cancel'),
		cqrs_parallel('both', ARRAY[cqrs_step('one', 'a'), cqrs_step('two', 'b')]),
		cqrs_step('money', 'charge', fallback => 'invoice'),
		cqrs_step('tickets', 'issue', max_attempts => 2, retry_delay => '10 ms')]);
	SELECT cqrs_register_saga('wait', ARRAY[
		cqrs_step('hotel', 'reserve', compensation => 'cancel'),
		cqrs_await('paid', event_name => 'payment_settled', timeout => '1 hour'),
		cqrs_step('tickets', 'issue')]);
	SELECT cqrs_register_saga('brief', ARRAY[
		cqrs_step('hotel', 'reserve', compensation => 'cancel'),
		cqrs_await('paid', timeout => '200 ms')]);
	SELECT cqrs_register_saga('outer', ARRAY[
		cqrs_step('hotel', 'reserve', compensation => 'cancel'),
		cqrs_sub_saga('inner', 'wait')]);
));

sub start
{
	my ($server, $dbname, $name, $key) = @_;

	return $server->safe_psql($dbname, sprintf(q(SELECT saga_id FROM cqrs_start_saga('%s', unique_key => %s)), $name, defined $key ? "'$key'" : 'NULL'));
}

# wait_status(SERVER, DATABASE, ID, STATUS)
sub wait_saga
{
	my ($server, $dbname, $id, $status) = @_;

	return $server->poll_query_until($dbname, "SELECT status = '$status' FROM cqrs_saga_status WHERE saga_id = '$id'")
	  || diag($server->safe_psql($dbname, "SELECT * FROM cqrs_saga_history('$id')"));
}

sub did
{
	my ($server, $dbname, $id, $columns) = @_;

	return $server->safe_psql($dbname, "SELECT string_agg(" . ($columns // 'what') . ", ' ' ORDER BY what) FROM did WHERE saga = '$id'");
}

# ----------------------------------------------------------------------
# A physical copy, from before the steps were done
# ----------------------------------------------------------------------

$node->safe_psql('original', "SELECT cqrs_pause('sagas_of_postgres')");
my $id = start($node, 'original', 'trip');
my $failing = start($node, 'original', 'trip');
$node->backup('before');
my $again = PostgreSQL::Test::Cluster->new('again');
$again->init_from_backup($node, 'before');
$again->start;

# Here, the fallback does it.
$node->safe_psql('original', "INSERT INTO broken VALUES ('issue'); SELECT cqrs_resume('sagas_of_postgres')");
ok(wait_saga($node, 'original', $failing, 'compensated'), 'the original does the steps, and undoes them');
ok(wait_saga($node, 'original', $id, 'compensated'), '... of both');
$again->safe_psql('original', "INSERT INTO broken VALUES ('charge'), ('issue'); SELECT cqrs_resume('sagas_of_postgres')");
ok(wait_saga($again, 'original', $id, 'compensated'), 'so does its copy');
ok(wait_saga($again, 'original', $failing, 'compensated'), '... of both');
my %done = map { ($_ => { map { my ($what, $key, $event) = split /\|/; ($what => [ $key, $event ]) }
	split /\n/, $_->safe_psql('original', "SELECT what, key, event FROM did WHERE saga = '$id'") }) } $node, $again;
is(join(' ', sort keys %{ $done{$node} }), 'a b cancel charge reserve', 'what was done');
is(join(' ', sort keys %{ $done{$again} }), 'a b cancel invoice reserve', '... and in the copy, by the fallback');
is_deeply($done{$again}{$_}, $done{$node}{$_}, "$_ has the same key of effects, and its event the same id") for qw(reserve a b cancel);
my @of = map { @{ $done{$node}{$_} } } sort keys %{ $done{$node} };
my %once = map { $_ => 1 } @of, @{ $done{$again}{invoice} };
is(scalar keys %once, @of + 2, 'keys and ids of other steps are others; also of what the fallback does instead');
my $errors = "SELECT string_agg(DISTINCT error, ' ') FROM cqrs_saga_history('$id') WHERE event = 'failed'";
like($node->safe_psql('original', $errors), qr/^cannot issue: [-0-9a-f]{36}$/, 'a step that is tried again emits the same id');
is($again->safe_psql('original', $errors), $node->safe_psql('original', $errors), '... in the copy, too');
$again->stop;

# ----------------------------------------------------------------------
# The copy of a database
# ----------------------------------------------------------------------

$node->safe_psql('original', 'TRUNCATE did, broken');
my %under_way = map { $_ => start($node, 'original', $_, "key of $_") } qw(wait outer);
wait_saga($node, 'original', $_, 'waiting') for values %under_way;
my $inner = $node->safe_psql('original', "SELECT saga_id FROM cqrs_saga_status WHERE parent_id = '$under_way{outer}'");
wait_saga($node, 'original', $inner, 'waiting');
$node->safe_psql('original', "SELECT cqrs_pause('sagas_of_postgres')");
$under_way{trip} = start($node, 'original', 'trip');
$under_way{brief} = start($node, 'original', 'brief');
$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE original');
my $dump = $node->basedir . '/dump';
$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, $node->connstr('original') ], 'pg_dump');

# settle(SERVER, DATABASE): what they wait for
sub settle
{
	my ($server, $dbname) = @_;

	return $server->safe_psql($dbname, qq(
		SELECT cqrs_emit('payment_settled', '{}', key => 'key of wait');
		SELECT cqrs_emit('payment_settled', '{}', headers => '{"correlation_id": "$inner"}')));
}

my %expected = (wait => 'completed: issue reserve', outer => 'completed: reserve', trip => 'completed: a b charge issue reserve', brief => 'compensated: cancel reserve');

sub ended
{
	my ($server, $dbname, $what) = @_;

	for (sort keys %under_way)
	{
		is($server->safe_psql($dbname, "SELECT status FROM cqrs_wait_saga('$under_way{$_}', '60 s')") . ': ' . did($server, $dbname, $under_way{$_}), $expected{$_}, "$what: $_");
	}
	is($server->safe_psql($dbname, 'SELECT count(*) FROM cqrs.saga'), '0', "$what: nothing is under way");
	is($server->safe_psql($dbname, 'SELECT count(*) FROM cqrs.scheduled_command'), '0', "$what: no time is left behind");
	is($server->safe_psql($dbname, 'SELECT count(*) FROM cqrs_dead_letters'), '0', "$what: no dead letters");
}

$node->safe_psql('copy', "SELECT cqrs_resume('sagas_of_postgres')");
settle($node, 'copy');
$node->poll_query_until('postgres', "SELECT count(*) = 2 FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox manager'") or die 'no manager';
$node->safe_psql('original', "SELECT cqrs_resume('sagas_of_postgres')");
settle($node, 'original');
ended($node, 'original', 'the original');
is($node->safe_psql('copy', "SELECT string_agg(DISTINCT status, ' ' ORDER BY status) FROM cqrs_saga_status WHERE saga_id = ANY('{" . join(',', values %under_way) . "}')"),
	'running waiting', 'the copy rests');
is($node->safe_psql('copy', 'SELECT count(*) FROM did'), '3', '... and does nothing');
$node->safe_psql('copy', 'SELECT * FROM cqrs_adopt()');
ended($node, 'copy', 'the copy, once it is adopted');
is($node->safe_psql('copy', q(SELECT string_agg(DISTINCT database, ' ') FROM did WHERE what = 'issue')), 'copy', '... each for itself');

# ----------------------------------------------------------------------
# A restored dump
# ----------------------------------------------------------------------

my $restored = new_server('restored', $conf);
$restored->start;
$restored->safe_psql('postgres', 'CREATE DATABASE original');
$restored->command_ok([ 'pg_restore', '-j', '2', '-d', $restored->connstr('original'), $dump ], 'pg_restore');

# As if its topic had been truncated after the dump's snapshot was taken.
my $segments = $restored->safe_psql('original', q(SELECT string_agg(format('cqrs.topic_%s_%s', topic_id, n), ', ') FROM cqrs.topic, generate_series(0, 2) n WHERE topic = 'sagas_of_postgres'));
$restored->safe_psql('original', "SELECT cqrs_resume('sagas_of_postgres'); TRUNCATE $segments");
settle($restored, 'original');
$restored->safe_psql('original', 'SELECT cqrs_tick()');
is($restored->safe_psql('original', "SELECT string_agg(DISTINCT status, ' ' ORDER BY status) FROM cqrs_saga_status WHERE saga_id = ANY('{" . join(',', values %under_way) . "}')"),
	'running waiting', 'what was restored rests');
is($restored->safe_psql('original', "SELECT started FROM cqrs_start_saga('wait', unique_key => 'key of wait')"), 'f', '... and is known by its keys');
$restored->safe_psql('original', 'SELECT * FROM cqrs_adopt()');
ended($restored, 'original', 'what was restored, once it is adopted');
$restored->stop;

# ----------------------------------------------------------------------
# Whose sagas they are
# ----------------------------------------------------------------------

$node->safe_psql('original', q(
	CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN; CREATE ROLE deputy LOGIN IN ROLE alice; CREATE ROLE watcher LOGIN IN ROLE pg_monitor;
	CREATE TABLE log (saga uuid, what text, by name DEFAULT current_user, logged_in name DEFAULT session_user);
	GRANT ALL ON log TO PUBLIC;
	CREATE FUNCTION note(state jsonb) RETURNS jsonb LANGUAGE sql SET search_path = public AS $$
		INSERT INTO log VALUES ((cqrs_context()).id, state->>'secret'); SELECT state $$;
	CREATE FUNCTION escape(state jsonb) RETURNS jsonb LANGUAGE plpgsql SET search_path = public AS $$
	BEGIN
		SET ROLE postgres;
		INSERT INTO log VALUES ((cqrs_context()).id, 'escaped');
		RETURN NULL;
	END $$;
	SELECT cqrs_register_saga('noted', ARRAY[cqrs_step('before', 'note'), cqrs_await('go'), cqrs_step('after', 'note')]);
	SELECT cqrs_register_saga('escaped', ARRAY[cqrs_step('escape', 'escape', max_attempts => 1)])));
$node->safe_psql('original', "SET ROLE $_; SELECT cqrs_create_saga_queue(search_path => 'public')") for qw(alice bob);
$id = $node->safe_psql('original', q(SET ROLE alice; SELECT saga_id FROM cqrs_start_saga('noted', '{"secret": 42}', unique_key => 'a key of hers')));
wait_saga($node, 'original', $id, 'waiting');
my %calls = (
	cqrs_signal => "SELECT cqrs_signal('$id', 'go')",
	cqrs_cancel_saga => "SELECT cqrs_cancel_saga('$id')",
	cqrs_retry_saga => "SELECT cqrs_retry_saga('$id', 'before')",
	cqrs_skip_step => "SELECT cqrs_skip_step('$id', 'go')",
	cqrs_wait_saga => "SELECT cqrs_wait_saga('$id', '0')",
	cqrs_resume_sagas => "SELECT cqrs_resume_sagas('alice')");
for my $role (qw(bob watcher))
{
	like(error_of($node, 'original', "SET ROLE $role; $calls{$_}"), qr/ERROR:  42501/, "$_ of another role's: $role") for sort keys %calls;
	is($node->safe_psql('original', "SET ROLE $role; SELECT count(*) FROM cqrs_saga_history('$id')"), '0', "... nor has $role its history");
}
is($node->safe_psql('original', "SET ROLE bob; SELECT count(*) FROM cqrs_saga_status"), '0', 'another role does not see it');
is($node->safe_psql('original', "SET ROLE bob; SELECT started FROM cqrs_start_saga('noted', unique_key => 'a key of hers')"), 't', '... not even by its key');
is($node->safe_psql('original', "SET ROLE watcher; SELECT owner, status, step_name, state IS NULL FROM cqrs_saga_status WHERE saga_id = '$id'"), 'alice|waiting|go|t',
	'who watches sees where it is, and not what it has');
is($node->safe_psql('original', "SET ROLE deputy; SELECT status, state FROM cqrs_saga_status WHERE saga_id = '$id'"), 'waiting|{"secret": 42}', 'a member of the role sees it');
for my $table (qw(cqrs.saga cqrs.saga_entry cqrs.saga_entry_0 cqrs.saga_definition cqrs_topics.sagas_of_alice))
{
	like(error_of($node, 'original', "SET ROLE bob; SELECT * FROM $table"), qr/ERROR:  42501/, "nobody reads $table");
	like(error_of($node, 'original', "SET ROLE alice; INSERT INTO $table DEFAULT VALUES"), qr/ERROR:  42501/, '... nor writes it');
}
like(error_of($node, 'original', "SET ROLE alice; SELECT cqrs.run_saga(NULL)"), qr/ERROR:  42501/, 'no step is done by calling the handler');
like(error_of($node, 'original', "SET ROLE alice; SELECT cqrs.route_to_sagas(NULL)"), qr/ERROR:  42501/, '... nor is anything brought');
like(error_of($node, 'original', "SET ROLE alice; SELECT cqrs_emit('noted', '{\"wake\": 3}', key => '$id', topic => 'sagas_of_alice')"), qr/ERROR: /, '... nor is it woken by hand');

# An event of bob's with its id settles nothing: he would need a topic that she reads.
$node->safe_psql('original', "SET ROLE deputy; SELECT cqrs_signal('$id', 'go')");
is($node->safe_psql('original', "SET ROLE alice; SELECT status FROM cqrs_wait_saga('$id', '60 s')"), 'completed', 'a member of the role may signal to it, and she wait for it');
is($node->safe_psql('original', "SELECT string_agg(DISTINCT by || ' ' || logged_in, ', ') FROM log WHERE saga = '$id'"), 'alice alice', 'its steps are done as who started it');
$id = $node->safe_psql('original', q(SET ROLE alice; SELECT saga_id FROM cqrs_start_saga('escaped')));
# What others do meanwhile shows whose fault that is.
for (1 .. 300)
{
	last if $node->safe_psql('original', "SELECT status FROM cqrs_wait_saga('$id', '200 ms')") eq 'compensated';
	$node->safe_psql('original', q(SET ROLE alice; SELECT cqrs_start_saga('noted')));
}
is($node->safe_psql('original', "SELECT status, (SELECT error_sqlstate FROM cqrs_saga_history('$id') WHERE event = 'failed') FROM cqrs_wait_saga('$id', '0')"), 'compensated|42501',
	'a step cannot become somebody else');
is($node->safe_psql('original', "SELECT count(*) FROM log WHERE what = 'escaped'"), '0', '... and has done nothing');

# What sagas are run by is not to be changed so that they would be run in another way.
$node->safe_psql('original', 'GRANT EXECUTE ON FUNCTION cqrs_alter_subscription TO alice');
my $refused = qr/ERROR:  55000: subscription "saga.*" is for sagas/;
like(error_of($node, 'original', "SET ROLE alice; SELECT cqrs_alter_subscription('saga_events_of_alice', partitions => 2)"), $refused, 'what they wait for is brought in order');
like(error_of($node, 'original', "SET ROLE alice; SELECT cqrs_alter_subscription('$_', handler => 'note')"), qr/ERROR:  55000: the handler of subscription "$_" cannot be changed/, "the handler of $_ stays") for qw(sagas_of_alice saga_events_of_alice);
like(error_of($node, 'original', "SET ROLE alice; SELECT cqrs_seek('$_', 'latest')"), $refused, '... and nothing is passed by') for qw(sagas_of_alice saga_events_of_alice);

# Who may not execute all of its functions, cannot start it; a function of hers that is
# SECURITY DEFINER starts it as hers.
$node->safe_psql('original', 'REVOKE EXECUTE ON FUNCTION note(jsonb) FROM PUBLIC; GRANT EXECUTE ON FUNCTION note(jsonb) TO alice');
like(error_of($node, 'original', "SET ROLE bob; SELECT cqrs_start_saga('noted')"), qr/ERROR:  42501/, 'who may not execute its functions cannot start it');
$node->safe_psql('original', q(
	CREATE FUNCTION start_noted() RETURNS uuid LANGUAGE sql SECURITY DEFINER SET search_path = public AS $$ SELECT saga_id FROM cqrs_start_saga('noted') $$;
	ALTER FUNCTION start_noted() OWNER TO alice));
$id = $node->safe_psql('original', 'SET ROLE bob; SELECT start_noted()');
is($node->safe_psql('original', "SELECT owner FROM cqrs_saga_status WHERE saga_id = '$id'"), 'alice', 'who starts it is the current user');
like(error_of($node, 'original', "SET ROLE bob; SELECT cqrs_cancel_saga('$id')"), qr/ERROR:  42501/, '... and nobody else steers it');
$node->stop;
done_testing();
