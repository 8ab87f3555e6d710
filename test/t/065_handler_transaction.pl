# A handler cannot tell that it shares a transaction with the events before it,
# nor a process with other handlers.

use strict;
use warnings;

use CqrsTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# What is to be one batch is not cut short by a slow machine.
my $node = new_server('main', "cqrs_outbox.batch_duration = '60s'\n");
my $subscriptions = 0;

$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	CREATE EXTENSION postgres_fdw;
	CREATE TABLE seen (seq serial, n int, what text, xid xid8 DEFAULT pg_current_xact_id());
	CREATE SEQUENCE calls;
	CREATE ROLE tenant;
));

# deliver(EVENTS, BODY, OPTIONS): so many events, "n" from 1 on, in one go, to
# a PL/pgSQL handler with this body, which has n and e. Returns the name of the
# subscription.
sub deliver
{
	my ($events, $body, $options) = @_;
	my $name = 's' . ++$subscriptions;

	$options = defined $options ? ", $options" : '';
	$node->safe_psql('postgres', qq(
		TRUNCATE seen;
		ALTER SEQUENCE calls RESTART;
		CREATE FUNCTION $name(e cqrs_event) RETURNS void LANGUAGE plpgsql SET search_path = public, pg_temp AS \$handler\$
		DECLARE
			n int := e.payload->>'n';
		$body
		\$handler\$;
		SELECT cqrs_register_event('$name', '$name');
		SELECT count(cqrs_emit('$name', jsonb_build_object('n', i), key => i::text)) FROM generate_series(1, $events) i;
		SELECT cqrs_subscribe('$name', ARRAY['$name'], '$name(cqrs_event)', max_attempts => 1$options);
	));
	ok($node->poll_query_until('postgres', "SELECT lag_events + retrying + waiting = 0 FROM cqrs_subscription_status WHERE subscription = '$name'"), "$name is delivered");
	return $name;
}

# seen(): what was recorded, in order; how many transactions did it.
sub seen
{
	return $node->safe_psql('postgres', "SELECT string_agg(n || ':' || coalesce(what, '-'), ' ' ORDER BY seq) FROM seen");
}

sub transactions
{
	return $node->safe_psql('postgres', 'SELECT count(DISTINCT xid) FROM seen');
}

# Settings, of the transaction and of the session; the role.
my $name = deliver(4, q(
	BEGIN
		INSERT INTO seen (n, what) VALUES (n, concat_ws(',', nullif(current_setting('app.tenant', true), ''),
			current_setting('work_mem'), current_setting('application_name'), current_user, current_setting('transaction_read_only')));
		IF n = 1 THEN
			PERFORM set_config('app.tenant', 'first', true);
			SET LOCAL work_mem = '123MB';
		ELSIF n = 2 THEN
			SET application_name = 'mine';
			SET LOCAL ROLE tenant;
		ELSIF n = 3 THEN
			SET TRANSACTION READ ONLY;
		END IF;
	END));
is(seen(), join(' ', map { "$_:4MB,cqrs_outbox worker,postgres,off" } 1 .. 4), 'no setting reaches another event');
is(transactions(), 1, '... of the same transaction');
deliver(1, q(
	BEGIN
		INSERT INTO seen (n, what) VALUES (n, concat_ws(',', current_setting('application_name'), current_user));
	END));
is(seen(), '1:cqrs_outbox worker,postgres', 'nor another subscription');

# Temporary tables.
deliver(30, q(
	BEGIN
		CREATE TEMP TABLE IF NOT EXISTS work_rows (n int) ON COMMIT DELETE ROWS;
		INSERT INTO work_rows VALUES (n);
		INSERT INTO seen SELECT nextval('seen_seq_seq'), w.n FROM work_rows w;
	END));
is($node->safe_psql('postgres', 'SELECT count(*), count(DISTINCT n) FROM seen'), '30|30', 'ON COMMIT belongs to the event');
deliver(3, q(
	BEGIN
		IF n > 1 THEN
			INSERT INTO seen (n, what) VALUES (n, to_regclass('pg_temp.kept')::text);
			CREATE TEMP TABLE kept AS SELECT n;
		END IF;
	END));
is(seen(), '2:- 3:-', 'no temporary table reaches another event');
deliver(1, q(
	BEGIN
		INSERT INTO seen (n, what) VALUES (n, (SELECT string_agg(relname, ' ') FROM pg_class WHERE relnamespace = pg_my_temp_schema()));
	END));
is(seen(), '1:-', 'nor another subscription');

# Deferred constraints and triggers: they are the event's, with its settings.
$node->safe_psql('postgres', q(
	CREATE TABLE parent (n int PRIMARY KEY);
	INSERT INTO parent SELECT generate_series(1, 100);
	CREATE TABLE child (n int REFERENCES parent DEFERRABLE INITIALLY DEFERRED, tenant text);
	CREATE FUNCTION note_child() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.seen (n, what) VALUES (new.n, current_setting('app.tenant', true) || ',' || current_user);
		RETURN NULL;
	END $$;
	CREATE CONSTRAINT TRIGGER note AFTER INSERT ON child DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW EXECUTE FUNCTION note_child();
	GRANT INSERT ON seen, child TO tenant;
	GRANT USAGE ON SEQUENCE seen_seq_seq TO tenant;
));
$name = deliver(5, q(
	BEGIN
		PERFORM nextval('calls');
		PERFORM set_config('app.tenant', 'tenant ' || n, true);
		IF n = 5 THEN
			SET LOCAL ROLE tenant;
		END IF;
		INSERT INTO child VALUES (CASE WHEN n = 3 THEN -3 ELSE n END);
	END));
is(seen(), '1:tenant 1,postgres 2:tenant 2,postgres 4:tenant 4,postgres 5:tenant 5,tenant',
	'deferred triggers are fired with what the event has set');
is(take_dead($node, $name, "payload->>'n'"), '3', 'a deferred constraint is the fault of the event that broke it');
is($node->safe_psql('postgres', 'SELECT last_value FROM calls'), 9, '... which costs the two before it a second call: 3, all 5, and the one alone');
deliver(3, q(
	BEGIN
		IF n = 1 THEN
			SET CONSTRAINTS ALL IMMEDIATE;
		ELSE
			INSERT INTO child VALUES (1000 + n);
			INSERT INTO parent VALUES (1000 + n);
		END IF;
		INSERT INTO seen (n) VALUES (n);
	END));
is($node->safe_psql('postgres', "SELECT string_agg(n::text, ' ' ORDER BY n) FROM seen WHERE what IS NULL"), '1 2 3',
	'SET CONSTRAINTS ends with the event');

# What is open, or named, in the session.
$name = deliver(3, q(
	DECLARE
		c refcursor := 'left_open';
	BEGIN
		OPEN c FOR SELECT 1;
		EXECUTE 'DECLARE held CURSOR WITH HOLD FOR SELECT 1';
		EXECUTE 'PREPARE prepared AS SELECT 1';
		INSERT INTO seen (n, what) VALUES (n, lo_open(lo_create(0), 131072));
	END));
is(seen(), '1:0 2:0 3:0', 'cursors, prepared statements and large objects of another event are not there');
is(transactions(), 1, '... in the same transaction');
is(take_dead($node, $name, "payload->>'n'"), '', '... and nothing failed');
deliver(1, q(
	BEGIN
		INSERT INTO seen (n, what) VALUES (n, (SELECT count(*) FROM pg_cursors) + (SELECT count(*) FROM pg_prepared_statements));
	END));
is(seen(), '1:0', 'nor those of another subscription');
deliver(3, q(
	DECLARE
		last text := '-';
	BEGIN
		BEGIN
			last := lastval();
		EXCEPTION WHEN object_not_in_prerequisite_state THEN
			NULL;
		END;
		PERFORM nextval('calls');
		INSERT INTO seen (seq, n, what) VALUES (n, n, last);
	END));
is(seen(), '1:- 2:- 3:-', 'lastval() is of the event itself');

# Advisory locks of the session.
deliver(4, q(
	BEGIN
		INSERT INTO seen (n, what) SELECT n, count(*) FROM pg_locks
			WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND classid = 0 AND objid IN (77, 78) AND objsubid = 1;
		IF n < 3 THEN
			PERFORM pg_advisory_lock(77);
			PERFORM pg_try_advisory_lock(78);
		END IF;
	END));
is(seen(), '1:0 2:0 3:0 4:0', 'a session-level advisory lock does not outlive its event');
$name = deliver(1, q(
	BEGIN
		PERFORM pg_advisory_lock(79);
		RAISE EXCEPTION 'with a lock';
	END));
is(take_dead($node, $name, "payload->>'n'"), '1', 'after an error');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid IN (77, 78, 79) AND objsubid = 1"), 0,
	'... neither');

# NOTIFY.
my $listener = new_session($node, 'postgres');

$listener->query('LISTEN told');
deliver(3, q(
	BEGIN
		IF n = 1 THEN
			NOTIFY told, 'same';
		ELSE
			PERFORM pg_notify('told', 'same');
		END IF;
	END));
is(() = $listener->query('SELECT 1') =~ /Asynchronous notification "told" with payload "same"/g, 3,
	'equal notifications of several events are not taken for one');
$listener->quit;

# Subtransactions: more than 64 cost every snapshot of the cluster.
deliver(200, q(
	BEGIN
		FOR i IN 1 .. 3 LOOP
			BEGIN
				INSERT INTO seen (n) VALUES (n);
			EXCEPTION WHEN division_by_zero THEN
				NULL;
			END;
		END LOOP;
	END));
cmp_ok($node->safe_psql('postgres', 'SELECT max(count) FROM (SELECT count(DISTINCT xmin::text) FROM seen GROUP BY xid) x'), '<=', 48,
	'a batch has at most 48 subtransactions');
is($node->safe_psql('postgres', 'SELECT count(*) FROM seen'), 600, '... and all is delivered');
$node->safe_psql('postgres', q(
	TRUNCATE seen;
	CREATE FUNCTION try(jsonb) RETURNS void LANGUAGE sql AS 'INSERT INTO public.seen (n) VALUES (($1->>''n'')::int)';
	CREATE FUNCTION fall_back(jsonb) RETURNS void LANGUAGE sql AS 'SELECT';
	SELECT cqrs_register_command('Try', 'try(jsonb)');
	SELECT cqrs_register_fallback('try(jsonb)', 'fall_back(jsonb)');
	SELECT cqrs_create_command_queue();
));
$node->safe_psql('postgres', q(
	SELECT count(cqrs_enqueue('Try', jsonb_build_object('n', i))) FROM generate_series(1, 200) i;
));
is($node->safe_psql('postgres', q(SELECT cqrs_wait('commands_of_postgres', '3 min'))), 't', 'commands with a fallback are executed');
is($node->safe_psql('postgres', q(SELECT max(count) <= 48, sum(count) FROM (SELECT count(DISTINCT xmin::text) FROM seen GROUP BY xid) x)), 't|200',
	'... at most 48 in a transaction');

# An error that only the commit finds out: a foreign server's, say.
$node->safe_psql('postgres', sprintf(q(
	CREATE TABLE remote_child (n int REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
	CREATE SERVER loopback FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '%s', port '%s', dbname 'postgres');
	CREATE USER MAPPING FOR CURRENT_USER SERVER loopback;
	CREATE FOREIGN TABLE far (n int) SERVER loopback OPTIONS (table_name 'remote_child');
), $node->host, $node->port));
$name = deliver(5, q(
	BEGIN
		INSERT INTO far VALUES (CASE WHEN n = 3 THEN -3 ELSE n END);
		INSERT INTO seen (n) VALUES (n);
	END));
is(seen(), '1:- 2:- 4:- 5:-', 'what fails at the commit costs nobody else');
is(take_dead($node, $name, "payload->>'n'"), '3', '... and is blamed');

# What is possible in a transaction of its own only succeeds after all.
$node->safe_psql('postgres', "CREATE TYPE colour AS ENUM ('red')");
$name = deliver(3, q(
	BEGIN
		IF n = 1 THEN
			ALTER TYPE colour ADD VALUE 'blue';
		ELSE
			EXECUTE $$INSERT INTO seen (n, what) VALUES ($1, 'blue'::colour)$$ USING n;
		END IF;
	END));
is(seen(), '2:blue 3:blue', 'an event is not blamed for what came before it in its batch');
is(take_dead($node, $name, "payload->>'n'"), '', '... not at all');

# How long a batch lasts: rather shorter, on a slow machine.
reconfigure($node, "cqrs_outbox.batch_duration = '20ms'");
deliver(60, q(
	BEGIN
		PERFORM pg_sleep(0.005);
		INSERT INTO seen (n) VALUES (n);
	END));
cmp_ok($node->safe_psql('postgres', 'SELECT max(count) FROM (SELECT count(*) FROM seen GROUP BY xid) x'), '<=', 5,
	'a batch takes no further event after cqrs_outbox.batch_duration');
reconfigure($node, "cqrs_outbox.batch_duration = '60s'");

# How often handlers are called if some fail.
for my $every (100, 10, 2)
{
	$name = deliver(2000, qq(
		BEGIN
			PERFORM nextval('calls');
			IF n % $every = 0 THEN
				RAISE EXCEPTION 'never';
			END IF;
			INSERT INTO seen (n) VALUES (n);
		END));
	is($node->safe_psql('postgres', "SELECT count(*), count(DISTINCT n) FROM seen"), join('|', (2000 - 2000 / $every) x 2),
		"one of $every fails: the others are delivered");
	cmp_ok($node->safe_psql('postgres', 'SELECT last_value FROM calls'), '<=', 3000, '... with few calls done in vain');
}

# One transaction an event.
deliver(20, 'BEGIN INSERT INTO seen (n, what) VALUES (n, now()::text); END', "transaction => 'event'");
is(transactions(), 20, q(transaction => 'event': each has its own));
is($node->safe_psql('postgres', 'SELECT count(DISTINCT what) FROM seen'), 20, '... and its own now()');
$node->safe_psql('postgres', qq(
	SELECT cqrs_alter_subscription('s$subscriptions', transaction => 'batch');
	TRUNCATE seen;
	SELECT cqrs_seek('s$subscriptions', 'earliest');
	SELECT cqrs_wait('s$subscriptions', '3 min');
));
is(transactions(), 1, 'changed to a batch');

$node->stop;
done_testing();
