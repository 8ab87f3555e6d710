# The peer of broker module cqrs_outbox_example (see brokers/example/client.c):
# a process of its own, that fails in every way it is told to. It ends with the
# test, however that ends.

package ExamplePeer;

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use JSON::PP;
use POSIX ();
use Socket;
use Test::More;

use CqrsTest;

my $json = JSON::PP->new->utf8->canonical;

# new(): on a port of its own, at first without faults. Every message is
# confirmed when it is received.
sub new
{
	my ($class) = @_;
	my $self = bless { port => 0 }, $class;

	$self->start;
	return $self;
}

sub port { return $_[0]->{port}; }

# start(): on the same port as before
sub start
{
	my ($self) = @_;
	my $listener = IO::Socket::INET->new(
		LocalAddr => '127.0.0.1', LocalPort => $self->{port}, Listen => 16, ReuseAddr => 1)
	  or die "could not listen: $@";
	my $parent = $$;

	$self->{port} = $listener->sockport;
	socketpair(my $ours, my $theirs, AF_UNIX, SOCK_STREAM, PF_UNSPEC) or die "socketpair: $!";
	$self->{pid} = fork // die "fork: $!";
	if ($self->{pid} == 0)
	{
		close $ours;
		eval { ExamplePeer::Process->new($listener, $theirs)->run; 1 } or print STDERR $@;
		POSIX::_exit(0);
	}
	close $theirs;
	close $listener;
	$ours->autoflush(1);
	$self->{control} = $ours;
}

# stop(): as if it had crashed. What it had received is forgotten.
sub stop
{
	my ($self) = @_;

	kill 'KILL', $self->{pid};
	waitpid $self->{pid}, 0;
	close delete $self->{control};
}

# tell(COMMAND, ARGUMENTS ...): see ExamplePeer::Process. Returns once it is
# done.
sub tell
{
	my ($self, @command) = @_;
	my $control = $self->{control};

	print $control $json->encode(\@command), "\n";
	my $answer = <$control> // die 'the peer has ended';
	return $json->decode($answer)->[0];
}

# create_server(NODE, DATABASE, NAME, OPTIONS): a foreign server for it, without
# a user mapping.
sub create_server
{
	my ($self, $node, $dbname, $name, %options) = @_;
	my %all = (host => '127.0.0.1', port => $self->{port}, %options);
	my $list = join ', ', map { "$_ '$all{$_}'" } sort keys %all;

	$node->safe_psql($dbname, qq(
		CREATE EXTENSION IF NOT EXISTS cqrs_outbox_example CASCADE;
		CREATE SERVER $name FOREIGN DATA WRAPPER cqrs_example OPTIONS ($list)));
}

# begin(NODE, NAME, ARGUMENTS OF cqrs_subscribe...): without faults again; and a
# subscription to server "peer", for what is emitted into topic "orders" from now
# on, in place of the last one that was begun.
sub begin
{
	my ($self, $node, $name, @arguments) = @_;
	my $list = join ', ', "'$name'", "ARRAY['orders']", "server => 'peer'", "start => 'latest'",
	  "retry_delay => '10 ms'", "max_retry_delay => '20 ms'", @arguments;

	query($node, "SELECT cqrs_unsubscribe('$self->{begun}')") if defined $self->{begun};
	$self->tell('reset');
	$self->{begun} = $name;
	query($node, "SELECT cqrs_subscribe($list)");
}

# messages(CLIENT): what it received from this client, in order; of all
# connections, if no client is named
sub messages
{
	my ($self, $client) = @_;

	return @{ $self->tell('received', $client) };
}

# wait_messages(CLIENT, COUNT): until so many were received
sub wait_messages
{
	my ($self, $client, $count) = @_;

	return 1 if wait_until(sub { $self->tell('count', $client) >= $count }, "there are $count messages");
	diag('there are ' . $self->tell('count', $client));
	return 0;
}

# feed(SOURCE, MESSAGES ...): what is to be consumed from there; each a hash with,
# as it likes, id, key, body, content_type, timestamp, headers (of pairs, a list)
sub feed
{
	my ($self, $source, @messages) = @_;

	return $self->tell('feed', $source, @messages);
}

# wait_consumed(SOURCE): until everything is acknowledged
sub wait_consumed
{
	my ($self, $source) = @_;

	return 1 if wait_until(sub { $self->tell('kept', $source) == 0 }, "all of $source is consumed");
	diag($self->tell('kept', $source) . ' messages are left');
	return 0;
}

# wait_held(COUNT): until so many answers are held back
sub wait_held
{
	my ($self, $count) = @_;

	return wait_until(sub { $self->tell('held') == $count }, "$count answers are held back");
}

# The process. Commands:
#   rule ANSWER, PATTERN, TIMES
#             answer "-reason" or "!reason" to messages whose line matches;
#             ANSWER "close" closes the connection instead, "silence" says
#             nothing. TIMES: so often, by default for ever. Of several rules,
#             the first that matches counts
#   rule_off  no rules
#   hold CLIENT
#             answer no message of this client; of any, without
#   held      how many answers are held back
#   answer N  give the first N of them; all, without N
#   release   no longer hold answers, and give those that are held back
#   refuse REASON
#             of new connections; welcome them without
#   deaf BOOLEAN
#             accept connections, but read nothing
#   close     all connections
#   say LINE  on all connections
#   reset     no rules, hold nothing, welcome everybody, forget what was received
#   received CLIENT
#             from this client, or from all: [{client, line, message}, ...]
#   count CLIENT
#             how many that are
#   hellos    what clients introduced themselves with
#   feed SOURCE, MESSAGE ...
#             have these consumed; the source exists from then on
#   kept SOURCE
#             how many of its messages are not acknowledged
#   forget SOURCE
#             it does not exist any more
package ExamplePeer::Process;

use strict;
use warnings;

sub new
{
	my ($class, $listener, $control) = @_;

	$control->blocking(0);
	return bless {
		listener => $listener, control => $control, commands => '',
		connections => {}, received => [], hellos => [], rules => [], held => [],
		hold => undef, deaf => 0, refuse => undef, sources => {}
	}, $class;
}

sub run
{
	my ($self) = @_;

	local $SIG{PIPE} = 'IGNORE';
	for (;;)
	{
		my @readers = ($self->{listener}, $self->{control});

		push @readers, map { $_->{socket} } values %{ $self->{connections} } unless $self->{deaf};
		for my $ready (IO::Select->new(@readers)->can_read)
		{
			if ($ready == $self->{listener})
			{
				my $socket = $ready->accept or next;
				$self->{connections}{$socket} = { socket => $socket, in => '' };
			}
			elsif ($ready == $self->{control})
			{
				return unless $self->read_commands;
			}
			elsif (my $connection = $self->{connections}{$ready})
			{
				$self->read_lines($connection);
			}
		}
	}
}

sub read_commands
{
	my ($self) = @_;

	sysread $self->{control}, $self->{commands}, 65536, length $self->{commands} or return 0;
	while ($self->{commands} =~ s/^(.*)\n//)
	{
		my ($command, @arguments) = @{ $json->decode($1) };
		my $method = "command_$command";
		my $answer = $self->$method(@arguments);

		$self->{control}->blocking(1);
		my $bytes = $json->encode([ref $answer || defined $answer ? $answer : 1]) . "\n";
		for (my $sent = 0; $sent < length $bytes;)
		{
			$sent += syswrite($self->{control}, $bytes, length($bytes) - $sent, $sent) // return 0;
		}
		$self->{control}->blocking(0);
	}
	return 1;
}

sub read_lines
{
	my ($self, $connection) = @_;

	sysread $connection->{socket}, $connection->{in}, 65536, length $connection->{in}
	  or return $self->close_connection($connection);
	while ($self->{connections}{ $connection->{socket} } && $connection->{in} =~ s/^(.*)\n//)
	{
		$self->handle_line($connection, $1);
	}
}

sub handle_line
{
	my ($self, $connection, $line) = @_;
	my $message = $json->decode($line);

	if (!defined $connection->{client})
	{
		push @{ $self->{hellos} }, $message;
		$connection->{client} = $message->{client};
		return $self->send($connection, '+') unless defined $self->{refuse};
		$self->send($connection, "-$self->{refuse}");
		return $self->close_connection($connection);
	}

	return $self->consume($connection, $message) if exists $message->{consume};
	return $self->acknowledge($connection, $message->{ack}) if exists $message->{ack};

	push @{ $self->{received} }, { client => $connection->{client}, line => $line, message => $message };
	my $answer = $self->answer_to($line);
	return if $answer eq 'silence';
	return $self->close_connection($connection) if $answer eq 'close';

	my ($outcome, $reason) = $answer =~ /^(.)(.*)$/s;
	$answer = "$outcome$message->{tag} $reason";
	return $self->send($connection, $answer) unless ($self->{hold} // '') =~ /^(?:\*|\Q$connection->{client}\E)$/;
	push @{ $self->{held} }, [ $connection, $answer ];
}

sub answer_to
{
	my ($self, $line) = @_;

	for my $rule (@{ $self->{rules} })
	{
		next if $rule->{times} == 0 || $line !~ $rule->{pattern};
		$rule->{times}--;
		return $rule->{answer};
	}
	return '+';
}

# Messages wait in sources, then in connections until they are acknowledged.
sub consume
{
	my ($self, $connection, $wanted) = @_;

	$connection->{source} = $wanted->{consume};
	$connection->{window} = $wanted->{window};
	$connection->{unacknowledged} = [];
	$connection->{tag} = 0;
	return $self->deliver($connection) if exists $self->{sources}{ $wanted->{consume} };
	$self->send($connection, '-nobody has heard of it');
	return $self->close_connection($connection);
}

sub deliver
{
	my ($self, $connection) = @_;
	my $waiting = $self->{sources}{ $connection->{source} };
	my $out = '';

	while (@$waiting && @{ $connection->{unacknowledged} } < $connection->{window})
	{
		my $message = shift @$waiting;

		$message->{tag} = ++$connection->{tag};
		push @{ $connection->{unacknowledged} }, $message;
		$out .= '=' . join(' ', map { word($_) } @$message{qw(tag redelivered timestamp id key content_type body)},
			@{ $message->{headers} // [] }) . "\n";
	}
	return $self->send_all($connection, $out);
}

# To all who consume it.
sub deliver_from
{
	my ($self, $source) = @_;

	return unless $self->{sources}{$source};
	for my $connection (values %{ $self->{connections} })
	{
		$self->deliver($connection) if ($connection->{source} // '') eq $source && $connection->{unacknowledged};
	}
	return;
}

sub word
{
	my ($value) = @_;

	return '-' unless defined $value;
	utf8::encode($value) if utf8::is_utf8($value);
	return $value eq '-' ? '%2D' : $value =~ s/([^\w.:\/-])/sprintf '%%%02X', ord $1/gear;
}

sub acknowledge
{
	my ($self, $connection, $tag) = @_;

	@{ $connection->{unacknowledged} } = grep { $_->{tag} != $tag } @{ $connection->{unacknowledged} };
	return $self->deliver($connection);
}

sub send
{
	my ($self, $connection, $line) = @_;

	# What tests have it say are bytes, whether or not they are UTF-8.
	utf8::downgrade($line);
	syswrite $connection->{socket}, "$line\n";
}

# All of it, however long that takes; in the meantime it reads nothing.
sub send_all
{
	my ($self, $connection, $bytes) = @_;

	for (my $sent = 0; $sent < length $bytes;)
	{
		$sent += syswrite($connection->{socket}, $bytes, length($bytes) - $sent, $sent)
		  // return $self->close_connection($connection);
	}
	return;
}

sub close_connection
{
	my ($self, $connection) = @_;

	delete $self->{connections}{ $connection->{socket} };
	close $connection->{socket};
	if (my $messages = delete $connection->{unacknowledged})
	{
		$_->{redelivered} = 1 for @$messages;
		unshift @{ $self->{sources}{ $connection->{source} } }, @$messages;
	}
	@{ $self->{held} } = grep { $_->[0] != $connection } @{ $self->{held} };
	$self->deliver_from($connection->{source}) if defined $connection->{source};
}

sub command_rule
{
	my ($self, $answer, $pattern, $times) = @_;

	push @{ $self->{rules} }, { answer => $answer, pattern => qr/$pattern/, times => $times // -1 };
	return 1;
}

sub command_rule_off { $_[0]->{rules} = []; }

sub command_hold
{
	my ($self, $client) = @_;

	$self->{hold} = $client // '*';
	return 1;
}

sub command_held { return scalar @{ $_[0]->{held} }; }

sub command_answer
{
	my ($self, $count) = @_;

	for my $held (splice @{ $self->{held} }, 0, $count // scalar @{ $self->{held} })
	{
		$self->send(@$held);
	}
	return 1;
}

sub command_release
{
	my ($self) = @_;

	$self->{hold} = undef;
	return $self->command_answer;
}

sub command_refuse
{
	my ($self, $reason) = @_;

	$self->{refuse} = $reason;
	return 1;
}

sub command_deaf
{
	my ($self, $deaf) = @_;

	$self->{deaf} = $deaf;
	return 1;
}

sub command_close
{
	my ($self) = @_;

	$self->close_connection($_) for values %{ $self->{connections} };
	return 1;
}

sub command_say
{
	my ($self, $line) = @_;

	$self->send($_, $line) for values %{ $self->{connections} };
	return 1;
}

sub command_reset
{
	my ($self) = @_;

	$self->{rules} = [];
	$self->{received} = [];
	$self->{hellos} = [];
	$self->{refuse} = undef;
	$self->{deaf} = 0;
	return $self->command_release;
}

sub command_received
{
	my ($self, $client) = @_;

	return [ grep { !defined $client || $_->{client} eq $client } @{ $self->{received} } ];
}

sub command_count
{
	my ($self, $client) = @_;

	return scalar @{ $self->command_received($client) };
}

sub command_feed
{
	my ($self, $source, @messages) = @_;

	push @{ $self->{sources}{$source} }, @messages;
	$self->deliver_from($source);
	return 1;
}

sub command_kept
{
	my ($self, $source) = @_;
	my @consuming = grep { ($_->{source} // '') eq $source } values %{ $self->{connections} };
	my $kept = @{ $self->{sources}{$source} // [] };

	$kept += @{ $_->{unacknowledged} } for @consuming;
	return $kept;
}

sub command_forget
{
	my ($self, $source) = @_;

	delete $self->{sources}{$source};
	for my $connection (values %{ $self->{connections} })
	{
		next if ($connection->{source} // '') ne $source;
		delete $connection->{unacknowledged};
		$self->send($connection, '-it was deleted');
		$self->close_connection($connection);
	}
	return 1;
}

sub command_hellos { return $_[0]->{hellos}; }

1;
