# A client of the history checker: a process with a psql, which does the same
# thing again and again until it is killed, and connects anew when the server
# has gone. What it chooses depends on its seed and its name alone.

package HistorySession;

use strict;
use warnings;

use Digest::MD5 qw(md5_hex);
use Exporter 'import';
use IPC::Open3;
use POSIX ();
use Time::HiRes qw(usleep time);

our @EXPORT = qw(start_client kill_client);

# new(CONNECTION STRING): dies if there is no server
sub new
{
	my ($class, $connstr) = @_;
	my $self = bless { count => 0 }, $class;

	$self->{pid} = open3($self->{in}, $self->{out}, undef, 'psql', '-XAtq', '-f', '-', '-d', $connstr);
	$self->{in}->autoflush(1);
	return $self if eval { $self->query("SET statement_timeout = '20 s'"); 1 };
	$self->end;
	die "lost\n";
}

# query(SQL): its output, errors included. Dies when the session has ended.
sub query
{
	my ($self, $sql) = @_;
	my $marker = '<done ' . ++$self->{count} . '>';
	my $output = '';

	print { $self->{in} } "$sql\n;\\echo $marker\n" or die "lost\n";
	while (defined(my $line = readline $self->{out}))
	{
		return $output if $line eq "$marker\n";
		$output .= $line;
	}
	die "lost\n";
}

# end(): at once
sub end
{
	my ($self) = @_;

	kill 'KILL', $self->{pid};
	waitpid $self->{pid}, 0;
	close $self->{$_} for qw(in out);
}

# start_client(CONNECTION STRING, SEED, NAME, FUNCTION): its process, in a
# process group of its own. The function gets the session, and is called for
# ever, as long as we are there.
sub start_client
{
	my ($connstr, $seed, $name, $function) = @_;
	my $parent = $$;
	my $pid = fork // die "fork: $!";

	return $pid if $pid;
	POSIX::setpgid(0, 0);
	$SIG{PIPE} = 'IGNORE';
	$SIG{$_} = 'DEFAULT' for qw(TERM INT);
	srand(hex substr md5_hex("$seed $name"), 0, 8);
	$ENV{PGAPPNAME} = $name;
	while (getppid == $parent)
	{
		my $session = eval { HistorySession->new($connstr) };

		if ($session)
		{
			eval { $function->($session) while getppid == $parent; };
			print STDERR "$name: $@" if $@ !~ /^(?:lost|leave)$/;
			$session->end;
		}
		usleep(20_000);
	}
	POSIX::_exit(0);
}

# kill_client(PID): with its psql
sub kill_client
{
	my ($pid) = @_;

	kill 'KILL', -$pid, $pid;
	waitpid $pid, 0;
}

1;
