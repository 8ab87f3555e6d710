# What the tests in this folder share: servers that preload the extension and
# what is done to them, psql sessions that stay open, events that are recorded,
# and waiting.

package CqrsTest;

use strict;
use warnings;

use Exporter 'import';
use IPC::Run;
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();

our @EXPORT = qw(
  new_server new_standby make_synchronous reconfigure crash_server poll_through_crashes processes wait_managers stop_manager
  new_session query error_of error_parts wait_until in_background
  set_up_recording emit_numbers wait_recorded recorded hold_handlers in_handler
  replicate_prepared wait_prepared emit_keys wait_status wait_error take_dead
  $due_now arrivals take_causes certificate build_module consumer);

# As if it were time to try again what failed.
our $due_now = q(
	UPDATE cqrs.cursor SET next_retry_at = now() WHERE next_retry_at > now();
	UPDATE cqrs.retry SET retry_at = now(), due_at = CASE WHEN due_at IS NOT NULL THEN now() END WHERE retry_at > now());

# ----------------------------------------------------------------------
# Servers
# ----------------------------------------------------------------------

# new_server(NAME, CONFIGURATION): initialised, not started. Nothing is found by
# polling, and managers stay, unless a test asks for it.
sub new_server
{
	my ($name, $conf, %init) = @_;
	my $install_path = delete $init{install_path};
	my $node = PostgreSQL::Test::Cluster->new($name, install_path => $install_path);

	$node->init(extra => [ '--encoding=UTF8', '--locale=C' ], %init);
	$node->append_conf('postgresql.conf', qq(
shared_preload_libraries = 'cqrs_outbox'
cqrs_outbox.poll_interval = '1h'
cqrs_outbox.manager_idle_timeout = -1
cqrs_outbox.max_managers = 10
max_worker_processes = 24
max_prepared_transactions = 10
autovacuum = off
log_error_verbosity = default
) . ($conf // ''));
	return $node;
}

# new_standby(PRIMARY, NAME): a standby that streams from it, started.
sub new_standby
{
	my ($primary, $name) = @_;
	my $standby = PostgreSQL::Test::Cluster->new($name);

	$primary->backup("for_$name");
	$standby->init_from_backup($primary, "for_$name", has_streaming => 1);
	$standby->start;
	return $standby;
}

# make_synchronous(PRIMARY, NAME): from now on, commits wait for this standby.
sub make_synchronous
{
	my ($primary, $name) = @_;

	reconfigure($primary, "synchronous_standby_names = '$name'");
	$primary->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'")
	  or die 'no synchronous standby';
}

# reconfigure(SERVER, SETTINGS): lines of postgresql.conf. New sessions have them
# when this returns, and all processes have been told to read them before they
# do anything else.
sub reconfigure
{
	my ($node, $settings) = @_;
	my $before = query($node, 'SELECT pg_conf_load_time()');

	$node->append_conf('postgresql.conf', $settings);
	$node->reload;
	$node->poll_query_until('postgres', "SELECT pg_conf_load_time() > '$before'") or die 'not reloaded';
}

# crash_server(SERVER, PID): kill this process of it, and so all; until the
# server, which has restart_after_crash, is up again.
sub crash_server
{
	my ($node, $pid) = @_;
	my $offset = -s $node->logfile;

	kill 'KILL', $pid or die "no such process: $pid";
	$node->wait_for_log(qr/all server processes terminated; reinitializing/, $offset);
	poll_through_crashes($node, 'SELECT true') or die 'the server did not come back';
}

# poll_through_crashes(SERVER, QUERY): until it is true, whatever the server does
# meanwhile. (poll_query_until() ends the test when a server that is not up refuses
# psql before that has read its query.)
sub poll_through_crashes
{
	my ($node, $sql) = @_;
	my $out;

	for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		IPC::Run::run([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', $sql ], '<', \undef, '>', \$out, '2>', \my $err);
		return 1 if $out eq "t\n";
		Time::HiRes::usleep(100_000);
	}
	return 0;
}

# processes(SERVER, KIND, DATABASE): the pids of our processes of a kind, in a
# database or in all.
sub processes
{
	my ($node, $kind, $dbname) = @_;
	my $sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox $kind'";

	$sql .= " AND datname = '$dbname'" if defined $dbname;
	return split /\n/, $node->safe_psql('postgres', "$sql ORDER BY pid");
}

# wait_managers(SERVER, DATABASES...): until exactly these have a manager.
sub wait_managers
{
	my ($node, @databases) = @_;

	return $node->poll_query_until('postgres',
		"SELECT coalesce(string_agg(datname, ' ' ORDER BY datname), '') FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox manager'",
		join(' ', sort @databases));
}

# stop_manager(SERVER): stop the only one by a signal, while it waits: at any other
# time it may have a lock that everybody needs. Returns its pid and its database.
sub stop_manager
{
	my ($node) = @_;
	my $waiting = "backend_type = 'cqrs_outbox manager' AND wait_event_type = 'Extension'";

	for (1 .. 1000)
	{
		$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE $waiting");
		my ($pid, $database) = split /\|/, $node->safe_psql('postgres', "SELECT pid, datname FROM pg_stat_activity WHERE $waiting");

		next unless $pid && kill 'STOP', $pid;
		return ($pid, $database) if $node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE pid = $pid AND $waiting");
		kill 'CONT', $pid;
	}
	die 'the manager is never found waiting';
}

# ----------------------------------------------------------------------
# Statements
# ----------------------------------------------------------------------

# new_session(SERVER, DATABASE, USER): a psql that stays open.
sub new_session
{
	my ($node, $dbname, $user) = @_;
	my $self = { in => '', out => '', count => 0 };

	$self->{timer} = IPC::Run::timer($PostgreSQL::Test::Utils::timeout_default);
	$self->{harness} = IPC::Run::start(
		[ 'psql', '-XAtq', '-f', '-', '-d', $node->connstr($dbname) . (defined $user ? " user=$user" : '') ],
		'<', \$self->{in}, '>', \$self->{out}, '2>&1', $self->{timer});
	bless $self, 'CqrsTest::Session';
	$self->query('SELECT 1');
	return $self;
}

# query(SERVER, SQL): its output, in database "postgres".
sub query
{
	my ($node, $sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

# error_of(SERVER, DATABASE, SQL): what psql says about it: an error, with its
# SQLSTATE.
sub error_of
{
	my ($node, $dbname, $sql) = @_;
	my (undef, undef, $error) = $node->psql($dbname, "\\set VERBOSITY verbose\n$sql");

	return $error =~ s/^psql:<stdin>:\d+: //mgr;
}

# error_parts(SERVER, SQL, ROLE): of its error, "SQLSTATE: message|detail|hint".
sub error_parts
{
	my ($node, $sql, $role) = @_;
	my $error = error_of($node, 'postgres', (defined $role ? "SET ROLE $role;" : '') . $sql);

	return join '|', map { $error =~ /^$_: +(.*)/m ? $1 : () } qw(ERROR DETAIL HINT);
}

# wait_until(FUNCTION, WHAT): until it returns true.
sub wait_until
{
	my ($function, $what) = @_;

	for (my $start = time; time < $start + $PostgreSQL::Test::Utils::timeout_default;)
	{
		return 1 if $function->();
		Time::HiRes::sleep(0.02);
	}
	diag('timed out waiting until ' . ($what // 'it is so'));
	return 0;
}

# in_background(FUNCTION, ARGUMENTS...): in a process of its own, whose pid is
# returned, and whose exit status is 0 if nothing failed.
sub in_background
{
	my ($function, @arguments) = @_;
	my $pid = fork // die "could not fork: $!";

	return $pid if $pid;
	eval { $function->(@arguments) };
	print STDERR $@ if $@;
	POSIX::_exit($@ ? 1 : 0);
}

# ----------------------------------------------------------------------
# Events that are recorded
# ----------------------------------------------------------------------

# set_up_recording(SERVER, DATABASE): the extension; an event type "happened"
# of topic "things"; and a subscription "recorder" whose handler writes each
# event into table "recorded". What it waits for first, a test may hold: the
# advisory lock 1.
sub set_up_recording
{
	my ($node, $dbname) = @_;

	$node->safe_psql($dbname, q(
		CREATE EXTENSION IF NOT EXISTS cqrs_outbox;
		SELECT cqrs_register_event('happened', 'things');
		CREATE TABLE IF NOT EXISTS recorded (seq serial, event_id uuid, key text, payload jsonb);
		CREATE OR REPLACE FUNCTION record_event(event cqrs_event) RETURNS void LANGUAGE plpgsql
			SET search_path = public AS $$
		BEGIN
			PERFORM pg_advisory_xact_lock_shared(1);
			INSERT INTO recorded (event_id, key, payload) VALUES (event.event_id, event.key, event.payload);
		END $$;
		SELECT cqrs_subscribe('recorder', ARRAY['things'], 'record_event(cqrs_event)');
	));
}

# emit_numbers(SERVER, DATABASE, N...): events "happened" with these "n" and one key,
# in one statement.
sub emit_numbers
{
	my ($node, $dbname, @n) = @_;
	my $numbers = join ',', @n;

	$node->safe_psql($dbname, @n == 1 ? "SELECT cqrs_emit('happened', '{\"n\": $numbers}', key => 'number')" :
		"SELECT cqrs_emit_many('happened', array_agg(jsonb_build_object('n', n)), array_agg('number'::text)) FROM unnest('{$numbers}'::int[]) n");
}

# wait_recorded(SERVER, DATABASE, COUNT): until so many events are recorded.
sub wait_recorded
{
	my ($node, $dbname, $count) = @_;

	return $node->poll_query_until($dbname, "SELECT count(*) >= $count FROM recorded");
}

# recorded(SERVER, DATABASE): the payloads' "n", in the order of delivery.
sub recorded
{
	my ($node, $dbname) = @_;

	return $node->safe_psql($dbname, "SELECT string_agg(payload->>'n', ' ' ORDER BY seq) FROM recorded");
}

# hold_handlers(SERVER, DATABASE): those that take the advisory lock 1 wait, until
# the session that is returned quits.
sub hold_handlers
{
	my ($node, $dbname) = @_;
	my $holder = new_session($node, $dbname);

	$holder->query('SELECT pg_advisory_lock(1)');
	return $holder;
}

# in_handler(SERVER, DATABASE): the pid of the one worker that waits in a handler.
sub in_handler
{
	my ($node, $dbname) = @_;
	my $waits = "FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox worker' AND wait_event_type = 'Lock' AND datname = '$dbname'";

	$node->poll_query_until('postgres', "SELECT count(*) = 1 $waits") or die 'no worker waits in a handler';
	return query($node, "SELECT pid $waits");
}

# replicate_prepared(SERVER): table "replicated" of a database "source" into
# "postgres", with transactions prepared there when they are prepared here. Each
# row that arrives emits its "n".
sub replicate_prepared
{
	my ($node) = @_;
	my $connstr = $node->connstr('source');

	query($node, 'CREATE DATABASE source');
	$node->safe_psql('source', q(
		CREATE TABLE replicated (n int PRIMARY KEY);
		CREATE PUBLICATION replicated FOR TABLE replicated;
		SELECT pg_create_logical_replication_slot('replicated', 'pgoutput', false, true)));
	query($node, qq(
		CREATE TABLE replicated (n int PRIMARY KEY);
		CREATE FUNCTION emit_replicated() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS \$\$
		BEGIN
			PERFORM cqrs_emit('happened', jsonb_build_object('n', new.n));
			RETURN NULL;
		END \$\$;
		CREATE TRIGGER emit_replicated AFTER INSERT ON replicated FOR EACH ROW EXECUTE FUNCTION emit_replicated();
		ALTER TABLE replicated ENABLE ALWAYS TRIGGER emit_replicated;
		CREATE SUBSCRIPTION replicated CONNECTION \$\$$connstr\$\$ PUBLICATION replicated
			WITH (create_slot = false, two_phase = true, copy_data = false)));
	$node->poll_query_until('postgres', "SELECT subtwophasestate = 'e' FROM pg_subscription") or die 'no two-phase replication';
}

# wait_prepared(SERVER, COUNT): until so many transactions are prepared in
# database "postgres".
sub wait_prepared
{
	my ($node, $count) = @_;

	return $node->poll_query_until('postgres', "SELECT count(*) = $count FROM pg_prepared_xacts WHERE database = 'postgres'");
}

# ----------------------------------------------------------------------
# Events of other subscriptions
# ----------------------------------------------------------------------

# emit_keys(SERVER, EVENT NAME, KEYS...): an event of each, in one statement; "n"
# counts from 1.
sub emit_keys
{
	my ($node, $event_name, @keys) = @_;
	my $keys = join ', ', map { "'$_'" } @keys;

	query($node, "SELECT cqrs_emit_many('$event_name', array_agg(jsonb_build_object('n', n) ORDER BY n), array_agg(key ORDER BY n))
		FROM unnest(ARRAY[$keys]) WITH ORDINALITY k (key, n)");
}

# wait_status(SERVER, DATABASE, SUBSCRIPTION, STATUS): until so many events are
# behind, tried again, waiting and dead: "0/0/0/0".
sub wait_status
{
	my ($node, $dbname, $subscription, $status) = @_;

	return 1 if $node->poll_query_until($dbname,
		"SELECT concat_ws('/', lag_events, retrying, waiting, dead) FROM cqrs_subscription_status WHERE subscription = '$subscription'",
		$status);
	diag($node->safe_psql($dbname, "SELECT * FROM cqrs_subscription_status WHERE subscription = '$subscription'"));
	return 0;
}

# wait_error(SERVER, DATABASE, SUBSCRIPTION, PATTERN): until what is wrong matches
# the regular expression.
sub wait_error
{
	my ($node, $dbname, $subscription, $pattern) = @_;

	return 1 if $node->poll_query_until($dbname,
		"SELECT error ~ \$pattern\$$pattern\$pattern\$ FROM cqrs_subscription_status WHERE subscription = '$subscription'");
	diag($node->safe_psql($dbname, "SELECT error FROM cqrs_subscription_status WHERE subscription = '$subscription'"));
	return 0;
}

# take_dead(SERVER, SUBSCRIPTION, COLUMNS): of each dead letter, with "/" between;
# then none is left.
sub take_dead
{
	my ($node, $subscription, $columns) = @_;
	my $dead = query($node, "SELECT string_agg(concat_ws('/', $columns), ' ' ORDER BY position) FROM cqrs_dead_letters WHERE subscription = '$subscription'");

	query($node, "SELECT cqrs_discard_all('$subscription')");
	return $dead;
}

# ----------------------------------------------------------------------
# Brokers, and programs
# ----------------------------------------------------------------------

# arrivals(ARRIVALS...): of what came in the order of [ID, KEY, N]: how many ids
# there are, how often one came again, and how many came out of their key's order.
sub arrivals
{
	my (%seen, %last);
	my ($again, $disorder) = (0, 0);

	for (@_)
	{
		my ($id, $key, $n) = @$_;

		if ($seen{$id}++)
		{
			$again++;
			next;
		}
		$disorder++ if $n <= ($last{$key} // 0);
		$last{$key} = $n;
	}
	return (scalar keys %seen, $again, $disorder);
}

# take_causes(HEADERS): take out what tells of the command, sent by itself, in
# which an event was emitted. Returns whether it was there.
sub take_causes
{
	my ($headers) = @_;
	my ($correlation, $causation) = delete @$headers{qw(correlation_id causation_id)};

	return defined $correlation && $correlation =~ /^[0-9a-f]{8}-[0-9a-f]{4}-7/ && $correlation eq $causation;
}

# certificate(FOLDER, NAME, SUBJECT, AUTHORITY, EXTENSIONS): NAME.crt and NAME.key,
# signed by the authority of that name; without one, it is one itself.
sub certificate
{
	my ($dir, $name, $subject, $authority, $extensions) = @_;

	system_or_bail('openssl', 'req', '-newkey', 'rsa:2048', '-nodes', '-subj', "/CN=$subject", '-keyout', "$dir/$name.key",
		$authority ? ('-out', "$dir/$name.csr") : ('-x509', '-days', '2', '-out', "$dir/$name.crt"));
	return unless $authority;
	append_to_file("$dir/$name.ext", $extensions // "subjectAltName = DNS:$subject\n");
	system_or_bail('openssl', 'x509', '-req', '-in', "$dir/$name.csr", '-days', '2', '-extfile', "$dir/$name.ext",
		'-CA', "$dir/$authority.crt", '-CAkey', "$dir/$authority.key", '-CAcreateserial', '-out', "$dir/$name.crt");
}

# build_module(FOLDER, NAME, SOURCE, FLAGS): a library of another author, built
# outside of our sources, with the headers that are installed.
sub build_module
{
	my ($folder, $name, $source, $flags) = @_;

	append_to_file("$folder/$name.c", $source);
	append_to_file("$folder/Makefile.$name", <<~"EOS");
		MODULES = $name
		PG_CPPFLAGS = -I\$(includedir_server)/extension/cqrs_outbox $flags
		override with_llvm = no
		PGXS := \$(shell pg_config --pgxs)
		include \$(PGXS)
		EOS
	system_or_bail('make', '-s', '-C', $folder, '-f', "Makefile.$name");
}

# consumer(PROGRAM): where this program of test/consumers is.
sub consumer
{
	my ($program) = @_;
	my $folder = $ENV{CQRS_CONSUMERS};

	die "CQRS_CONSUMERS must name the folder of test/consumers, with its packages installed\n"
	  unless defined $folder && -d "$folder/node_modules";
	return "$folder/$program";
}

package CqrsTest::Session;

# query(SQL): its output, errors included.
sub query
{
	my ($self, $sql) = @_;

	$self->begin($sql);
	return $self->finish;
}

# begin(SQL): send it, and do not wait for it.
sub begin
{
	my ($self, $sql) = @_;

	$self->{count}++;
	$self->{out} = '';
	$self->{in} .= "$sql;\n\\echo <done $self->{count}>\n";
	$self->{harness}->pump_nb;
}

# finish(): wait for what begin() sent.
sub finish
{
	my ($self) = @_;
	my $marker = "<done $self->{count}>";

	$self->{timer}->start($PostgreSQL::Test::Utils::timeout_default);
	$self->{harness}->pump until $self->{out} =~ /\Q$marker\E\n/;
	$self->{timer}->reset;
	(my $out = $self->{out}) =~ s/\n?\Q$marker\E\n.*//s;
	return $out;
}

# quit(): also of a session that the server ended.
sub quit
{
	my ($self) = @_;

	$self->{in} = "\\q\n";
	eval { $self->{harness}->finish };
}

# kill(): end the psql, at once.
sub kill
{
	my ($self) = @_;

	eval { $self->{harness}->kill_kill };
}

1;
