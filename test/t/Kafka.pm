# A Kafka cluster of the test's own: librdkafka's mock cluster, in a process
# (test/mock/kafka_cluster.c) that ends with the test, however that ends.

package Kafka;

use strict;
use warnings;

use IO::Handle;
use JSON::PP qw(decode_json encode_json);
use PostgreSQL::Test::Utils;
use POSIX ();

use CqrsTest;

# Requests and errors of the protocol, by their numbers.
our %request = (produce => 0, metadata => 3, init_producer_id => 22);
our %error = (
	unknown => -1,
	unknown_topic => 3,
	not_leader => 6,
	request_timed_out => 7,
	message_too_large => 10,
	not_enough_replicas => 19,
	topic_authorization_failed => 29,
	cluster_authorization_failed => 31,
	out_of_order_sequence => 45,
	invalid_producer_epoch => 47,
	invalid_record => 87,
	producer_fenced => 90);

my @started;

# new(BROKERS): started.
sub new
{
	my ($class, $brokers) = @_;
	my $program = $ENV{CQRS_KAFKA_CLUSTER};
	my $self = bless { brokers => $brokers }, $class;

	die "CQRS_KAFKA_CLUSTER must name the program made of test/mock/kafka_cluster.c\n"
	  unless defined $program && -x $program;
	@$self{qw(pid to from)} = run_program($program, $brokers);
	at_end($self);
	chomp($self->{bootstrap} = $self->{from}->getline // die "the Kafka cluster did not start\n");
	return $self;
}

# run_program(COMMAND...): its pid, its input and its output.
sub run_program
{
	my (@command) = @_;

	pipe(my $in, my $to) && pipe(my $from, my $out) or die "could not make a pipe: $!";
	my $pid = fork // die "could not fork: $!";
	if ($pid == 0)
	{
		open STDIN, '<&', $in;
		open STDOUT, '>&', $out;
		exec @command or POSIX::_exit(127);
	}
	$to->autoflush(1);
	return ($pid, $to, $from);
}

# at_end(PROGRAM): end its pid with the test, if it has one then.
sub at_end
{
	my ($program) = @_;

	push @started, $program;
	return;
}

# gate(OPTIONS): the port of a kafka_gate.js with these, before the first broker.
sub gate
{
	my ($self, %options) = @_;
	my %gate;

	@gate{qw(pid to from)} =
	  run_program('node', consumer('kafka_gate.js'), $self->{bootstrap} =~ s/,.*//r, encode_json(\%options));
	at_end(\%gate);
	chomp(my $port = $gate{from}->getline // die "kafka_gate.js did not start\n");
	return $port;
}

# bootstrap(): the addresses of its brokers.
sub bootstrap
{
	my ($self) = @_;

	return $self->{bootstrap};
}

# command(WORDS...): as kafka_cluster.c describes them.
sub command
{
	my ($self, @words) = @_;

	print { $self->{to} } "@words\n";
	chomp(my $answer = $self->{from}->getline // 'error: it is gone');
	die "kafka_cluster: @words: $answer\n" unless $answer eq 'ok';
	return;
}

# down(), up(): all brokers.
sub down
{
	my ($self) = @_;

	$self->command('down', $_) for 1 .. $self->{brokers};
	return;
}

sub up
{
	my ($self) = @_;

	$self->command('up', $_) for 1 .. $self->{brokers};
	return;
}

# inject(REQUEST, ERRORS...): how the next requests of this kind are answered.
sub inject
{
	my ($self, $request, @errors) = @_;

	$self->command('fail', $request{$request}, map { $error{$_} } @errors);
	return;
}

# succeed(REQUEST): forget what inject() has left.
sub succeed
{
	my ($self, $request) = @_;

	$self->command('succeed', $request{$request});
	return;
}

# pause(), resume(): it accepts connections, and does nothing.
sub pause
{
	my ($self) = @_;

	kill 'STOP', $self->{pid};
	return;
}

sub resume
{
	my ($self) = @_;

	kill 'CONT', $self->{pid};
	return;
}

# create_server(NODE, DATABASE, NAME, OPTIONS): a foreign server for it, with a
# user mapping for PUBLIC. The defaults are such that trouble is seen soon.
sub create_server
{
	my ($self, $node, $dbname, $name, %options) = @_;
	my %all = ('bootstrap.servers' => $self->{bootstrap}, %options);
	my $list = join ', ', map { "\"$_\" '$all{$_}'" } sort keys %all;

	$node->safe_psql($dbname, qq(
		CREATE EXTENSION IF NOT EXISTS cqrs_outbox_kafka;
		CREATE SERVER $name FOREIGN DATA WRAPPER cqrs_kafka OPTIONS ($list);
		CREATE USER MAPPING FOR PUBLIC SERVER $name));
	return;
}

# records(TOPICS...): all of them, as kafka_consumer.js describes them.
sub records
{
	my ($self, @topics) = @_;

	return map { decode_json($_) } split /\n/, $self->consume(join(',', @topics));
}

# consume(TOPICS, BINDING): what kafka_consumer.js prints.
sub consume
{
	my ($self, @arguments) = @_;
	my ($out, $err) = ('', '');

	IPC::Run::run([ 'node', consumer('kafka_consumer.js'), $self->{bootstrap}, @arguments ],
		'<', \undef, '>', \$out, '2>', \$err)
	  or die "kafka_consumer.js @arguments: $err";
	return $out;
}

END
{
	my $status = $?;

	for my $program (grep { defined $_->{pid} } @started)
	{
		kill 'KILL', $program->{pid};
		waitpid $program->{pid}, 0;
	}
	$? = $status;
}

1;
