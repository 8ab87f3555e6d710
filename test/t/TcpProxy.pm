# A network that can break: a process that passes on what comes to its port to
# another one, until it is told otherwise.

package TcpProxy;

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use PostgreSQL::Test::Cluster;
use POSIX ();
use Socket qw(SOL_SOCKET SO_LINGER);

my @started;

# new(PORT): passes on to this port of the loopback interface; its own is
# {port}.
sub new
{
	my ($class, $target) = @_;
	my $self = bless { port => PostgreSQL::Test::Cluster::get_free_port(), target => $target }, $class;
	my $listener = IO::Socket::INET->new(
		LocalAddr => '127.0.0.1',
		LocalPort => $self->{port},
		Listen => 20,
		ReuseAddr => 1) or die "could not listen: $!";

	pipe(my $orders, $self->{orders}) or die "could not create a pipe: $!";
	pipe($self->{answers}, my $answers) or die "could not create a pipe: $!";
	$self->{pid} = fork;
	die "could not fork: $!" unless defined $self->{pid};
	if ($self->{pid} == 0)
	{
		close $self->{orders};
		eval { serve($target, $listener, $orders, $answers) };
		POSIX::_exit(0);
	}
	$self->{orders}->autoflush(1);
	push @started, $self;
	return $self;
}

# tell(ORDER): and wait until it has obeyed.
#	pass		pass on
#	cut			reset all connections
#	cut BYTES	reset all once so much more has gone to the other port
#	hole		accept connections, read nothing, write nothing
sub tell
{
	my ($self, $order) = @_;

	print { $self->{orders} } "$order\n";
	readline $self->{answers};
	return;
}

sub stop
{
	my ($self) = @_;

	return unless defined $self->{pid};
	kill 'KILL', $self->{pid};
	waitpid $self->{pid}, 0;
	undef $self->{pid};
	return;
}

# In its process; ends with the test's.
sub serve
{
	my ($target, $listener, $orders, $answers) = @_;
	my $hole = 0;
	my $left;
	my %other;

	my $cut = sub {
		for my $socket (map { $_->[0] } values %other)
		{
			setsockopt($socket, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0));
			close $socket;
		}
		%other = ();
		undef $left;
	};
	while (1)
	{
		my $select = IO::Select->new($listener, $orders, $hole ? () : map { $_->[0] } values %other);

		for my $ready ($select->can_read)
		{
			if ($ready == $orders)
			{
				return unless sysread $orders, my $order, 1000;
				$cut->() if $order eq "cut\n";
				$left = $1 if $order =~ /^cut (\d+)$/;
				$hole = $order eq "hole\n";
				syswrite $answers, "done\n";
			}
			elsif ($ready == $listener)
			{
				my $client = $listener->accept or next;
				my $server = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $target);

				if (!defined $server && !$hole)
				{
					close $client;
					next;
				}
				$other{$client} = [ $client, $server, 1 ];
				$other{$server} = [ $server, $client, 0 ] if defined $server;
			}
			elsif (exists $other{$ready})
			{
				my (undef, $to, $upward) = @{ $other{$ready} };
				my $n = sysread $ready, my $bytes, 65536;

				if (!$n || !write_all($to, $bytes))
				{
					delete @other{ $ready, $to };
					close $ready;
					close $to;
				}
				elsif ($upward && defined $left && ($left -= $n) <= 0)
				{
					$cut->();
				}
			}
		}
	}
}

sub write_all
{
	my ($socket, $bytes) = @_;
	my $done = 0;
	local $SIG{PIPE} = 'IGNORE';

	while ($done < length $bytes)
	{
		$done += syswrite($socket, $bytes, length($bytes) - $done, $done) // return 0;
	}
	return 1;
}

END
{
	my $status = $?;

	$_->stop for @started;
	$? = $status;
}

1;
