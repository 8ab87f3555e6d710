# A server that speaks as much AMQP 0-9-1 as it takes to be published to, or
# consumed from, and then says what it is told to, whatever no RabbitMQ would. It ends with the
# test, however that ends.

package AmqpPeer;

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use POSIX ();
use Socket;

my @started;

# new(): on a port of its own. At first, it confirms what it gets.
sub new
{
	my ($class) = @_;
	my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 0, Listen => 16, ReuseAddr => 1)
	  or die "could not listen: $@";
	my $self = bless { port => $listener->sockport }, $class;

	socketpair(my $ours, my $theirs, AF_UNIX, SOCK_STREAM, PF_UNSPEC) or die "socketpair: $!";
	$self->{pid} = fork // die "fork: $!";
	if ($self->{pid} == 0)
	{
		close $ours;
		eval { AmqpPeer::Process->new($listener, $theirs)->run; 1 } or print STDERR $@;
		POSIX::_exit(0);
	}
	$ours->autoflush(1);
	$self->{control} = $ours;
	push @started, $self;
	return $self;
}

# answer(BYTES): what follows each message that is published, instead of a
# confirm, or the beginning of consumption, instead of nothing; undef: as before. TUNE: what to tune connections with.
sub answer
{
	my ($self, $bytes, $tune) = @_;

	print { $self->{control} } defined $bytes ? unpack('H*', $bytes) : '-', ' ', unpack('H*', $tune // tune()), "\n";
	readline $self->{control};
	return;
}

# Frames and what is in them, for answer().
sub frame
{
	my ($type, $channel, $payload) = @_;

	return pack('Cn N/a* C', $type, $channel, $payload, 0xCE);
}

sub method_frame
{
	my ($class, $method, $arguments, $channel) = @_;

	return frame(1, $channel // 1, pack('nn', $class, $method) . $arguments);
}

sub ack { return method_frame(60, 80, pack('Q>C', @_)); }

sub nack { return method_frame(60, 120, pack('Q>C', @_)); }

# deliver(NUMBER): a message that is consumed; its header and body follow.
sub deliver { return method_frame(60, 60, pack('C/a* Q>C C/a* C/a*', 'tag', $_[0], 0, '', 'things')); }

sub returned { return method_frame(60, 50, pack('n C/a* C/a* C/a*', 312, 'NO_ROUTE', '', 'things')); }

# header(CLASS, BODY_SIZE, FLAGS, PROPERTIES)
sub header
{
	my ($class, $size, $flags, $properties) = @_;

	return frame(2, 1, pack('nnQ>n', $class, 0, $size, $flags) . $properties);
}

sub body { return frame(3, 1, $_[0]); }

sub tune { return pack('nNn', $_[0] // 2047, $_[1] // 131072, $_[2] // 0); }

END
{
	my $status = $?;

	for my $peer (@started)
	{
		kill 'KILL', $peer->{pid};
		waitpid $peer->{pid}, 0;
	}
	$? = $status;
}

package AmqpPeer::Process;

use strict;
use warnings;

sub new
{
	my ($class, $listener, $control) = @_;

	return bless { listener => $listener, control => $control, connections => {}, tune => AmqpPeer::tune() }, $class;
}

sub run
{
	my ($self) = @_;

	local $SIG{PIPE} = 'IGNORE';
	for (;;)
	{
		my @sockets = map { $_->{socket} } values %{ $self->{connections} };

		for my $ready (IO::Select->new($self->{listener}, $self->{control}, @sockets)->can_read)
		{
			if ($ready == $self->{listener})
			{
				my $socket = $ready->accept or next;
				$self->{connections}{$socket} = { socket => $socket, in => '', published => 0 };
			}
			elsif ($ready == $self->{control})
			{
				my $line = readline $ready;
				return unless defined $line;
				my ($answer, $tune) = $line =~ /^(\S+) (\S+)/;
				$self->{answer} = $answer eq '-' ? undef : pack('H*', $answer);
				$self->{tune} = pack('H*', $tune);
				syswrite $ready, "done\n";
			}
			elsif (my $connection = $self->{connections}{$ready})
			{
				$self->read_frames($connection);
			}
		}
	}
}

sub read_frames
{
	my ($self, $connection) = @_;

	if (!sysread $connection->{socket}, $connection->{in}, 65536, length $connection->{in})
	{
		delete $self->{connections}{ $connection->{socket} };
		close $connection->{socket};
		return;
	}
	if ($connection->{in} =~ s/^AMQP....//s)
	{
		$self->say($connection,
			AmqpPeer::method_frame(10, 10, pack('CC N/a* N/a* N/a*', 0, 9, '', 'PLAIN', 'en_US'), 0));
	}
	while (length $connection->{in} >= 8)
	{
		my ($type, $channel, $size) = unpack('CnN', $connection->{in});

		last if length $connection->{in} < $size + 8;
		my $payload = substr $connection->{in}, 7, $size;
		substr($connection->{in}, 0, $size + 8) = '';
		$self->handle_frame($connection, $type, $payload);
	}
	return;
}

sub handle_frame
{
	my ($self, $connection, $type, $payload) = @_;
	my ($class, $method) = unpack('nn', $payload);

	if ($type == 1)
	{
		my %answers = (
			'10.11' => AmqpPeer::method_frame(10, 30, $self->{tune}, 0),
			'10.40' => AmqpPeer::method_frame(10, 41, pack('C', 0), 0),
			'10.50' => AmqpPeer::method_frame(10, 51, '', 0),
			'20.10' => AmqpPeer::method_frame(20, 11, pack('N', 0)),
			'50.10' => AmqpPeer::method_frame(50, 11, pack('C/a* NN', 'queue', 0, 0)),
			'60.10' => AmqpPeer::method_frame(60, 11, ''),
			'60.20' => AmqpPeer::method_frame(60, 21, pack('C/a*', 'tag')) . ($self->{answer} // ''),
			'85.10' => AmqpPeer::method_frame(85, 11, ''));

		$self->say($connection, $answers{"$class.$method"}) if exists $answers{"$class.$method"};
	}
	elsif ($type == 2)
	{
		$connection->{left} = unpack('x4 Q>', $payload);
	}
	elsif ($type == 3)
	{
		$connection->{left} -= length $payload;
		return if $connection->{left} > 0;
		$connection->{published}++;
		$self->say($connection, $self->{answer} // AmqpPeer::ack($connection->{published}, 0));
	}
	return;
}

sub say
{
	my ($self, $connection, $bytes) = @_;

	syswrite $connection->{socket}, $bytes;
	return;
}

1;
