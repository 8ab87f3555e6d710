# A RabbitMQ of the test's own: ports on the loopback interface, folder, cookie
# and port mapper (epmd) of its own. It ends with the test, however that ends.

package RabbitMQ;

use strict;
use warnings;

use File::Path qw(make_path);
use IPC::Open2 qw(open2);
use JSON::PP qw(decode_json);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use POSIX ();
use Test::More;

use CqrsTest;

our $username = 'app';
our $password = 'a secret of the user mapping';

my @started;

# new(NAME, CONFIGURATION): not started. CONFIGURATION is appended to
# rabbitmq.conf.
sub new
{
	my ($class, $name, $conf) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir() . "/$name";
	my ($scripts) = glob '/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin';

	die "RabbitMQ is not installed\n" unless defined $scripts;
	make_path("$dir/log", "$dir/home");
	my $self = bless {
		name => $name,
		dir => $dir,
		scripts => $scripts,
		node => "$name\@localhost",
		port => PostgreSQL::Test::Cluster::get_free_port(),
		dist_port => PostgreSQL::Test::Cluster::get_free_port(),
		epmd_port => PostgreSQL::Test::Cluster::get_free_port()
	}, $class;

	append_to_file("$dir/enabled_plugins", "[].\n");
	append_to_file("$dir/home/.erlang.cookie", 'COOKIE' . int(rand(1e9)));
	chmod 0400, "$dir/home/.erlang.cookie";
	append_to_file("$dir/rabbitmq.conf", qq(
listeners.tcp.1 = 127.0.0.1:$self->{port}
default_user = $username
default_pass = $password
default_user_tags.administrator = true
loopback_users = none
disk_free_limit.absolute = 1MB
log.file.level = info
) . ($conf // ''));
	push @started, $self;
	return $self;
}

# configure(LINE): another line of rabbitmq.conf, for the next start
sub configure
{
	my ($self, $line) = @_;

	append_to_file("$self->{dir}/rabbitmq.conf", "$line\n");
	return;
}

# environment(): with which its programs find it, and nothing of the machine's.
sub environment
{
	my ($self) = @_;
	my $dir = $self->{dir};

	return (
		HOME => "$dir/home",
		LC_ALL => 'C.UTF-8',
		ERL_EPMD_PORT => $self->{epmd_port},
		ERL_EPMD_ADDRESS => '127.0.0.1',
		RABBITMQ_ALLOW_INPUT => 1,
		RABBITMQ_NODENAME => $self->{node},
		RABBITMQ_DIST_PORT => $self->{dist_port},
		RABBITMQ_CONF_ENV_FILE => "$dir/no_such_file",
		RABBITMQ_CONFIG_FILE => "$dir/rabbitmq.conf",
		RABBITMQ_ADVANCED_CONFIG_FILE => "$dir/no_such_file",
		RABBITMQ_ENABLED_PLUGINS_FILE => "$dir/enabled_plugins",
		RABBITMQ_MNESIA_BASE => "$dir/data",
		RABBITMQ_LOG_BASE => "$dir/log",
		RABBITMQ_PID_FILE => "$dir/pid",
		# One processor, no busy waiting for work.
		RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS =>
		  '-noinput +S 1:1 +SDio 1 +sbwt none +sbwtdcpu none +sbwtdio none');
}

# logfile(): of the broker.
sub logfile
{
	my ($self) = @_;

	return "$self->{dir}/log/$self->{node}.log";
}

# start(): and wait until it accepts connections.
sub start
{
	my ($self) = @_;
	my $offset = -s $self->logfile // 0;

	$self->{epmd_pid} //= $self->run_program('epmd', 'epmd', '-port', $self->{epmd_port}, '-address', '127.0.0.1');
	$self->{pid} = $self->run_program('startup', "$self->{scripts}/rabbitmq-server");
	$self->wait_log(qr/Server startup complete/, $offset)
	  or BAIL_OUT("$self->{name} did not start:\n" . slurp_file("$self->{dir}/startup.log"));
	return;
}

# run_program(LOG, COMMAND...): in a process group of its own; its pid.
sub run_program
{
	my ($self, $log, @command) = @_;
	my $pid = fork;

	die "could not fork: $!" unless defined $pid;
	return $pid if $pid;

	POSIX::setpgid(0, 0);
	my %environment = $self->environment;
	@ENV{ keys %environment } = values %environment;
	open STDIN, '<', '/dev/null';
	open STDOUT, '>>', "$self->{dir}/$log.log";
	open STDERR, '>&', \*STDOUT;
	exec @command or POSIX::_exit(127);
}

# stop(): in good order.
sub stop
{
	my ($self) = @_;

	return unless defined $self->{pid};
	kill 'TERM', $self->{pid};
	waitpid $self->{pid}, 0;
	undef $self->{pid};
	return;
}

# crash(): with SIGKILL.
sub crash
{
	my ($self) = @_;

	return unless defined $self->{pid};
	kill 'KILL', -$self->{pid};
	waitpid $self->{pid}, 0;
	undef $self->{pid};
	return;
}

# pause(), resume(): it lives, and does nothing.
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

# wait_log(PATTERN, OFFSET): until the broker's log has it.
sub wait_log
{
	my ($self, $pattern, $offset) = @_;

	my $found;

	wait_until(sub {
		$found = -e $self->logfile && slurp_file($self->logfile, $offset) =~ $pattern;
		return $found || waitpid($self->{pid}, POSIX::WNOHANG()) != 0;
	});
	return $found;
}

# ctl(ARGUMENTS...): rabbitmqctl; its output.
sub ctl
{
	my ($self, @arguments) = @_;
	my %environment = $self->environment;
	local @ENV{ keys %environment } = values %environment;
	my ($out, $err) = ('', '');

	delete local $ENV{RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS};
	IPC::Run::run([ "$self->{scripts}/rabbitmqctl", '-q', '-n', $self->{node}, @arguments ],
		'<', \undef, '>', \$out, '2>', \$err)
	  or die "rabbitmqctl @arguments: $out$err";
	return $out;
}

# depth(QUEUE): how many messages it has, ready or not; "-" if the broker, or the
# queue, is not there. As "rabbitmqctl list_queues" has it, which starts an Erlang of
# its own each time; this one stays.
sub depth
{
	my ($self, $queue) = @_;

	unless ($self->{depth_in})
	{
		my %environment = $self->environment;
		local @ENV{ keys %environment } = values %environment;

		delete local $ENV{RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS};
		open2($self->{depth_out}, $self->{depth_in}, 'erl', '-noshell', '-hidden', '-sname', "depth_$self->{name}\@localhost",
			'-kernel', 'inet_dist_use_interface', '{127,0,0,1}', '+S', '1:1', '-eval', <<~"E");
			Loop = fun(Loop) ->
				case io:get_line("") of
					Line when is_list(Line) ->
						Name = unicode:characters_to_binary(string:trim(Line)),
						case rpc:call('$self->{node}', rabbit_amqqueue, lookup, [{resource, <<"/">>, queue, Name}]) of
							{ok, Queue} ->
								case rpc:call('$self->{node}', rabbit_amqqueue, info, [Queue, [messages]]) of
									[{messages, N}] when is_integer(N) -> io:format("~b~n", [N]);
									_ -> io:format("-~n")
								end;
							_ -> io:format("-~n")
						end,
						Loop(Loop);
					_ -> halt()
				end
			end,
			Loop(Loop).
			E
	}
	my ($in, $out) = @$self{qw(depth_in depth_out)};
	print $in "$queue\n";
	my $answer = <$out> // die 'the Erlang that asks RabbitMQ has ended';
	chomp $answer;
	return $answer;
}

# url(VHOST): for clients.
sub url
{
	my ($self, $vhost) = @_;
	my $secret = $password =~ s/ /%20/gr;

	return "amqp://$username:$secret\@127.0.0.1:$self->{port}/" . ($vhost // '%2F');
}

# command(STEPS...): what rabbitmq_admin.js does with each; its output, a line
# each.
sub command
{
	my ($self, @steps) = @_;
	my ($out, $err) = ('', '');

	IPC::Run::run([ 'node', consumer('rabbitmq_admin.js'), $self->url, @steps ], '<', \undef, '>', \$out, '2>', \$err)
	  or die "rabbitmq_admin.js @steps: $out$err";
	chomp $out;
	return $out;
}

# create_server(NODE, DATABASE, NAME, OPTIONS): a foreign server for it, with a
# user mapping for PUBLIC.
sub create_server
{
	my ($self, $node, $dbname, $name, %options) = @_;
	my %all = (host => '127.0.0.1', port => $self->{port}, %options);
	my $list = join ', ', map { "$_ '$all{$_}'" } sort keys %all;

	# The log has statements, but must not have the password.
	$node->safe_psql($dbname, qq(
		SET log_statement = none;
		CREATE EXTENSION IF NOT EXISTS cqrs_outbox_rabbitmq CASCADE;
		CREATE SERVER $name FOREIGN DATA WRAPPER cqrs_rabbitmq OPTIONS ($list);
		CREATE USER MAPPING FOR PUBLIC SERVER $name OPTIONS (username '$username', password '$password')));
	return;
}

# messages(QUEUE): takes them all, as rabbitmq_admin.js describes them.
sub messages
{
	my ($self, $queue) = @_;

	return map { decode_json($_) } split /\n/, $self->command("get $queue");
}

END
{
	my $status = $?;

	for my $broker (@started)
	{
		$broker->crash;
		next unless defined $broker->{epmd_pid};
		kill 'KILL', -$broker->{epmd_pid};
		waitpid $broker->{epmd_pid}, 0;
	}
	$? = $status;
}

1;
