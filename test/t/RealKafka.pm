# Apache Kafka itself: one broker or several, each with a controller, on ports of
# the loopback interface, with data in the test's temporary folder. It ends with
# the test, however that ends.
#
#	my $kafka = RealKafka->new(1);
#	$kafka->create_topic('things');
#	$kafka->create_server($node, 'postgres', 'events');		# as Kafka.pm does
#	...
#	is_deeply([ map { $_->{value} } $kafka->records('things') ], [...]);
#
# Brokers are numbered from 1. Who uses the listener PLAINTEXT may do everything.

package RealKafka;

use strict;
use warnings;

use parent 'Kafka';

use File::Path qw(make_path);
use JSON::PP qw(decode_json encode_json);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use POSIX ();

use CqrsTest;

my $clusters = 0;

# Not more than a test needs, and signs of life that are missed soon.
my %settings = (
	'process.roles' => 'broker,controller',
	'controller.listener.names' => 'CONTROLLER',
	'broker.session.timeout.ms' => 2000,
	'broker.heartbeat.interval.ms' => 500,
	'offsets.topic.num.partitions' => 1,
	'transaction.state.log.num.partitions' => 1,
	'group.initial.rebalance.delay.ms' => 0,
	'log.cleaner.dedupe.buffer.size' => 4194304,
	'auto.create.topics.enable' => 'false',
	'authorizer.class.name' => 'org.apache.kafka.metadata.authorizer.StandardAuthorizer',
	'super.users' => 'User:ANONYMOUS',
	'allow.everyone.if.no.acl.found' => 'true',
	'sasl.enabled.mechanisms' => 'PLAIN,SCRAM-SHA-256,SCRAM-SHA-512');

# new(BROKERS, OPTIONS): started, and answering. Options:
#
#	settings		of the brokers, { NAME => VALUE }
#	listeners		further ones: [ 'SSL', 'SASL_PLAINTEXT', 'SASL_SSL' ]
#	users			who may log in, { NAME => PASSWORD }
#	certificates	a folder that has broker.key, broker.crt and ca.crt, of
#					certificate(), for listeners with TLS
#	version			of Kafka, 4 or 3; before 4, SCRAM works with any librdkafka
#	heap			of each broker, in MB
sub new
{
	my ($class, $brokers, %options) = @_;
	my $folder = $ENV{CQRS_KAFKA};

	die "CQRS_KAFKA must name the folder of test/kafka, with what it needs installed\n" unless defined $folder && -d "$folder/python";
	my $self = bless { folder => $folder, brokers => $brokers, heap => $options{heap} // 256, version => $options{version} // 4, number => ++$clusters,
		users => $options{users} // {}, dir => PostgreSQL::Test::Utils::tempdir() }, $class;

	my @listeners = ('PLAINTEXT', 'CONTROLLER', @{ $options{listeners} // [] });
	for my $broker (1 .. $brokers)
	{
		$self->{port}{$_}[$broker] = PostgreSQL::Test::Cluster::get_free_port() for @listeners;
	}
	$self->configure($_, \@listeners, %options) for 1 .. $brokers;
	$self->{bootstrap} = $self->bootstrap('PLAINTEXT');

	$self->launch($_) for 1 .. $brokers;
	$self->start_client;
	$self->await($_) for 1 .. $brokers;
	return $self;
}

# start_client(): who asks the brokers.
sub start_client
{
	my ($self) = @_;

	local $ENV{PYTHONPATH} = "$self->{folder}/python";
	@{ $self->{client} }{qw(pid to from)} = Kafka::run_program('/usr/bin/python3', "$self->{folder}/client.py", $self->{bootstrap});
	Kafka::at_end($self->{client});
	return;
}

# another_client(): the same brokers, for another process of the test.
sub another_client
{
	my ($self) = @_;
	my $other = bless { %$self, client => {} }, ref $self;

	$other->start_client;
	return $other;
}

# bootstrap(LISTENER): the addresses of this one, or of PLAINTEXT.
sub bootstrap
{
	my ($self, $listener) = @_;

	return join ',', map { $self->address($_, $listener) } 1 .. $self->{brokers};
}

sub address
{
	my ($self, $broker, $listener) = @_;

	return "127.0.0.1:$self->{port}{$listener // 'PLAINTEXT'}[$broker]";
}

# configure(BROKER, LISTENERS, OPTIONS): write its file.
sub configure
{
	my ($self, $broker, $listeners, %options) = @_;
	my $replicas = $self->{brokers};
	my $in_sync = $replicas > 1 ? $replicas - 1 : 1;
	my $dir = "$self->{dir}/kafka_$broker";
	my $certificates = $options{certificates};
	my $plain = join ' ', map { "user_$_=\"$self->{users}{$_}\"" } sort keys %{ $self->{users} };
	my %all = (%settings,
		'node.id' => $broker,
		'controller.quorum.voters' => join(',', map { "$_\@" . $self->address($_, 'CONTROLLER') } 1 .. $replicas),
		listeners => join(',', map { "$_://" . $self->address($broker, $_) } @$listeners),
		'log.dirs' => "$dir/data",
		'default.replication.factor' => $replicas,
		'min.insync.replicas' => $in_sync,
		'offsets.topic.replication.factor' => $replicas,
		'transaction.state.log.replication.factor' => $replicas,
		'transaction.state.log.min.isr' => $in_sync);

	$all{'listener.security.protocol.map'} = join ',', 'CONTROLLER:PLAINTEXT', map { "$_:$_" } grep { $_ ne 'CONTROLLER' } @$listeners;
	for my $listener (map { lc } grep { /SASL/ } @$listeners)
	{
		my $module = 'org.apache.kafka.common.security';

		$all{"listener.name.$listener.plain.sasl.jaas.config"} = "$module.plain.PlainLoginModule required $plain;";
		$all{"listener.name.$listener.$_.sasl.jaas.config"} = "$module.scram.ScramLoginModule required;" for qw(scram-sha-256 scram-sha-512);
	}
	make_path($dir);
	if ($certificates)
	{
		append_to_file("$dir/keystore.pem", slurp_file("$certificates/broker.key") . slurp_file("$certificates/broker.crt"));
		%all = (%all,
			'ssl.keystore.type' => 'PEM',
			'ssl.keystore.location' => "$dir/keystore.pem",
			'ssl.truststore.type' => 'PEM',
			'ssl.truststore.location' => "$certificates/ca.crt");
	}
	%all = (%all, %{ $options{settings} // {} });
	append_to_file("$dir/server.properties", join '', map { "$_=$all{$_}\n" } sort keys %all);
	return;
}

# launch(BROKER): begin to start it. The first time, its data folder is made.
sub launch
{
	my ($self, $broker) = @_;
	my $dir = "$self->{dir}/kafka_$broker";
	my $formatted = -d "$dir/data";
	my @java = ('java', '-cp', "$self->{folder}/$self->{version}/*", "-Xmx$self->{heap}m", '-XX:+UseSerialGC', '-XX:TieredStopAtLevel=1',
		'-XX:-UsePerfData', "-Djava.io.tmpdir=$dir", '-Dorg.slf4j.simpleLogger.defaultLogLevel=warn');
	my @format = (@java, 'kafka.tools.StorageTool', 'format', '-t', 'cqrs-outbox-kafka-test', '-c', "$dir/server.properties");

	for my $user (sort keys %{ $self->{users} })
	{
		push @format, '--add-scram', "SCRAM-SHA-$_=[name=$user,password=$self->{users}{$user}]" for 256, 512;
	}
	my $pid = fork // die "could not fork: $!";
	if ($pid == 0)
	{
		open STDIN, '<', '/dev/null';
		open STDOUT, '>>', $self->log($broker);
		open STDERR, '>&', \*STDOUT;
		POSIX::_exit(1) if !$formatted && system(@format) != 0;
		# The kernel ends it if the test cannot.
		exec 'setpriv', '--pdeathsig', 'KILL', @java, 'kafka.Kafka', "$dir/server.properties" or POSIX::_exit(127);
	}
	Kafka::at_end($self->{process}[$broker] = { pid => $pid });
	return;
}

# log(BROKER): the name of its log.
sub log
{
	my ($self, $broker) = @_;

	return "$PostgreSQL::Test::Utils::log_path/kafka_$self->{number}_$broker.log";
}

# await(BROKER): until it answers, and knows all that run.
sub await
{
	my ($self, $broker) = @_;

	my $pid = $self->{process}[$broker]{pid};
	my $count = grep { defined } @{ $self->{process} };

	until ($self->ask('answers', broker => $self->address($broker), count => $count))
	{
		next if waitpid($pid, POSIX::WNOHANG) == 0;
		delete $self->{process}[$broker]{pid};
		die "Kafka broker $broker does not run:\n" . slurp_file($self->log($broker));
	}
	return;
}

# start(BROKERS...): and wait until they answer.
sub start
{
	my ($self, @brokers) = @_;

	$self->launch($_) for @brokers;
	$self->await($_) for @brokers;
	return;
}

# stop(BROKERS...): in order: what they lead is handed over.
sub stop
{
	my ($self, @brokers) = @_;

	$self->end($_, 'TERM') for @brokers;
	return;
}

# kill(BROKERS...): at once.
sub kill
{
	my ($self, @brokers) = @_;

	$self->end($_, 'KILL') for @brokers;
	return;
}

sub end
{
	my ($self, $broker, $signal) = @_;
	my $pid = $self->{process}[$broker]{pid};

	# Also if it is paused.
	CORE::kill $signal, $pid;
	CORE::kill 'CONT', $pid;
	waitpid $pid, 0;
	delete $self->{process}[$broker]{pid};	# for Kafka's list, too
	$self->{process}[$broker] = undef;
	return;
}

# pause(BROKERS...), resume(BROKERS...): they do nothing meanwhile.
sub pause
{
	my ($self, @brokers) = @_;

	CORE::kill 'STOP', map { $self->{process}[$_]{pid} } @brokers;
	return;
}

sub resume
{
	my ($self, @brokers) = @_;

	CORE::kill 'CONT', map { $self->{process}[$_]{pid} } @brokers;
	return;
}

# pause_amid(SERVER, WINDOW, EMIT, BROKERS...): emit, and pause the brokers while the
# server's only subscription, which has this window, delivers that. What was
# confirmed before may still arrive; more than that is left.
sub pause_amid
{
	my ($self, $node, $window, $emit, @brokers) = @_;
	my $lag = 'SELECT lag_events FROM cqrs_subscription_status';

	for (1 .. 100)
	{
		$emit->();
		my $before = $node->safe_psql('postgres', $lag);
		$node->poll_query_until('postgres', "SELECT lag_events < $before OR lag_events = 0 FROM cqrs_subscription_status") or die 'nothing is delivered';
		$self->pause(@brokers);
		return if $node->safe_psql('postgres', $lag) > $window;
		$self->resume(@brokers);
	}
	die 'the brokers are never paused in time';
}

# ask(FUNCTION, ARGUMENTS): what this one of client.py returns.
sub ask
{
	my ($self, $function, %arguments) = @_;

	print { $self->{client}{to} } encode_json([ $function, \%arguments ]), "\n";
	my $answer = decode_json($self->{client}{from}->getline // die "$function: client.py is gone\n");
	die "client.py: $answer->{error}\n" if exists $answer->{error};
	return $answer->{result};
}

# create_topic(TOPIC, PARTITIONS, CONFIG): with a replica on each broker.
sub create_topic
{
	my ($self, $topic, $partitions, %config) = @_;

	$self->ask('create_topic', topic => $topic, count => 0 + ($partitions // 1), replicas => $self->{brokers},
		config => { map { $_ => "$config{$_}" } keys %config });
	return;
}

# delete_topic(TOPIC): until it is gone.
sub delete_topic
{
	my ($self, $topic) = @_;

	$self->ask('delete_topic', topic => $topic);
	return;
}

# add_partitions(TOPIC, COUNT): until it has so many.
sub add_partitions
{
	my ($self, $topic, $count) = @_;

	$self->ask('add_partitions', topic => $topic, count => $count);
	return;
}

# delete_records(TOPIC, PARTITION, OFFSET): those before it.
sub delete_records
{
	my ($self, $topic, $partition, $offset) = @_;

	$self->ask('delete_records', topic => $topic, partition => $partition, offset => $offset);
	return;
}

# committed(GROUP, TOPIC, PARTITION): its offset; negative: none.
sub committed
{
	my ($self, $group, $topic, $partition) = @_;

	return $self->ask('committed', group => $group, topic => $topic, partition => $partition);
}

# set_config(TOPIC, NAME => VALUE, ...); undef: the default.
sub set_config
{
	my ($self, $topic, %config) = @_;

	$self->ask('set_config', topic => $topic, config => \%config);
	return;
}

# leader(TOPIC, PARTITION): the broker that leads it; -1: none does.
sub leader
{
	my ($self, $topic, $partition) = @_;

	return $self->ask('leader', topic => $topic, partition => 0 + ($partition // 0));
}

# wait_in_sync(TOPIC): until all replicas of all its partitions are.
sub wait_in_sync
{
	my ($self, $topic) = @_;

	$self->ask('wait_in_sync', topic => $topic, replicas => $self->{brokers});
	return;
}

# add_acl(PERMISSION, USER, OPERATION, TOPIC), remove_acl(...): such as qw(deny app
# write things), until brokers go by it.
sub add_acl
{
	my ($self, $permission, $user, $operation, $topic) = @_;

	$self->ask('acl', permission => $permission, user => $user, operation => $operation, topic => $topic, add => JSON::PP::true);
	return;
}

sub remove_acl
{
	my ($self, $permission, $user, $operation, $topic) = @_;

	$self->ask('acl', permission => $permission, user => $user, operation => $operation, topic => $topic, add => JSON::PP::false);
	return;
}

# produce(TOPIC, RECORDS...): each { key, value, headers, partition, timestamp }, all
# of which may be missing. Returns [PARTITION, OFFSET] of each. With "commit",
# "abort" or "open" before the records, in a transaction that ends so.
sub produce
{
	my ($self, $topic, @records) = @_;
	my $transaction = @records && !ref $records[0] ? shift @records : undef;

	return @{ $self->ask('produce', topic => $topic, records => \@records, transaction => $transaction) };
}

# end_transaction(HOW): "commit" or "abort" the one that is open.
sub end_transaction
{
	my ($self, $how) = @_;

	$self->ask('end_transaction', how => $how);
	return;
}

# records(TOPICS...): all of them, each with topic, partition, offset, timestamp,
# key, value and headers. Bytes that are no text are { hex => ... }.
sub records
{
	my ($self, @topics) = @_;

	return @{ $self->ask('records', topics => \@topics) };
}

# committed_records(TOPICS...): those that a consumer of "read_committed" is given.
sub committed_records
{
	my ($self, @topics) = @_;

	return @{ $self->ask('records', topics => \@topics, isolation => 'read_committed') };
}

1;
