# What the tests in this folder share: a server that preloads the extension,
# and psql sessions that stay open.

package CqrsTest;

use strict;
use warnings;

use Exporter 'import';
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(new_server new_session processes take_causes wait_managers set_up_recording wait_recorded recorded);

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

# processes(SERVER, KIND, DATABASE): the pids of our processes of a kind, in a
# database or in all.
sub processes
{
	my ($node, $kind, $dbname) = @_;
	my $sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox $kind'";

	$sql .= " AND datname = '$dbname'" if defined $dbname;
	return split /\n/, $node->safe_psql('postgres', "$sql ORDER BY pid");
}

# take_causes(HEADERS): take out what tells of the command, sent by itself, in
# which an event was emitted. Returns whether it was there.
sub take_causes
{
	my ($headers) = @_;
	my ($correlation, $causation) = delete @$headers{qw(correlation_id causation_id)};

	return defined $correlation && $correlation =~ /^[0-9a-f]{8}-[0-9a-f]{4}-7/ && $correlation eq $causation;
}

# wait_managers(SERVER, DATABASES...): until exactly these have a manager.
sub wait_managers
{
	my ($node, @databases) = @_;

	return $node->poll_query_until('postgres',
		"SELECT coalesce(string_agg(datname, ' ' ORDER BY datname), '') FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox manager'",
		join(' ', sort @databases));
}

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
