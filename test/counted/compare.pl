# compare.pl MODE FOLDER FIGURES SERVER COMPILER: what test/counted/run counted,
# from the files that callgrind and the server have left in a folder, compared
# with the file of the figures, or, if MODE is "write", written to it.
#
# That file has a part for each major version of the server: a line "server
# VERSION", a line "compiler COMPILER", and a table. A part is written anew as a
# whole.

use strict;
use warnings;

my ($mode, $folder, $figures, $server, $compiler) = @ARGV;
my @kinds = qw(own server allocations locks lwlocks buffers wal);
my %unit = (
	own => 'instructions of its own',
	server => 'instructions of the server',
	allocations => 'allocations',
	locks => 'locks',
	lwlocks => 'lightweight locks',
	buffers => 'buffers',
	wal => 'bytes of WAL');
my ($major) = $server =~ /^(\d+)/;

# What counts as one of a kind: functions that call none of the others.
my %kind_of = (
	(map { $_ => 'allocations' }
		qw(palloc palloc0 palloc_extended repalloc repalloc_extended repalloc_huge MemoryContextAlloc MemoryContextAllocZero
		MemoryContextAllocZeroAligned MemoryContextAllocExtended MemoryContextAllocHuge)),
	LockAcquireExtended => 'locks',
	(map { $_ => 'lwlocks' } qw(LWLockAcquire LWLockConditionalAcquire LWLockAcquireOrWait)));

# counted(FILE): what callgrind counted, by kind
sub counted
{
	my ($file) = @_;
	my %count = map { $_ => 0 } @kinds;
	my ($object, $called, $inclusive) = ('', '', 0);
	local $_;

	open my $in, '<', $file or die "$file: $!\n";
	while (<$in>)
	{
		if (/^ob=.*?([^\/\n]*)$/)
		{
			$object = $1 eq 'cqrs_outbox.so' ? 'own' : $1 eq 'postgres' ? 'server' : '';
		}
		elsif (/^cfn=(.*)/)
		{
			$called = $kind_of{$1};
		}
		elsif (/^calls=(\d+)/)
		{
			$count{$called} += $1 if $called;
			$inclusive = 1;
		}
		elsif (/^\d+ (\d+)$/)
		{
			# The line behind "calls=" has what was called in it.
			$count{$object} += $1 if $object && !$inclusive;
			$inclusive = 0;
		}
	}
	close $in;
	return \%count;
}

# counts(): what one of each cost: {WHAT}{KIND}
sub counts
{
	my (%looks, %each);
	my $n = 0;
	my @fields;

	# The server's answers, one a line: 2 is "look", 3 what, 4 how often, 5 WAL, 6
	# buffers.
	open my $in, '<', "$folder/everything.sql.out" or die "everything.sql.out: $!\n";
	while (<$in>)
	{
		my ($i, $value) = /^\t\s*(\d+): .* = "(.*)"\t/ or next;

		$fields[$i] = $value;
		next unless $i == 6 && $fields[2] eq 'look';
		push @{ $looks{ $fields[3] } }, { times => $fields[4], wal => $fields[5], buffers => $fields[6], file => ++$n };
	}
	close $in;

	for my $what (keys %looks)
	{
		my @before = @{ $looks{$what} }[0, 2];
		my @after = @{ $looks{$what} }[1, 3];
		my @cost = map { counted("$folder/callgrind.$_->{file}") } @after;

		for my $i (0, 1)
		{
			$cost[$i]{$_} = $after[$i]{$_} - $before[$i]{$_} for qw(wal buffers);
		}
		$each{$what}{$_} = ($cost[1]{$_} - $cost[0]{$_}) / ($after[1]{times} - $after[0]{times}) for @kinds;
	}
	return \%each;
}

# table(COUNTS)
sub table
{
	my ($counts) = @_;

	return sprintf("%-12s" . ' %11s' x @kinds . "\n", 'what', @kinds)
		. join '', map { my $what = $_; sprintf("%-12s" . ' %11.2f' x @kinds . "\n", $what, map { $counts->{$what}{$_} } @kinds) }
		sort keys %$counts;
}

# parts(): of the file, {MAJOR}{text, server, compiler, counts}
sub parts
{
	my (%parts, $part, @header);

	open my $in, '<', $figures or return {};
	while (<$in>)
	{
		next if /^#/ || /^\s*$/;
		if (/^server ((\d+).*)/)
		{
			$part = $parts{$2} = { server => $1, text => '' };
			@header = ();
		}
		$part->{text} .= $_;
		if (/^compiler (.*)/)
		{
			$part->{compiler} = $1;
		}
		elsif (/^what +(.*)/)
		{
			@header = split ' ', $1;
		}
		elsif (@header)
		{
			my ($what, @values) = split ' ';
			@{ $part->{counts}{$what} }{@header} = @values;
		}
	}
	close $in;
	return \%parts;
}

my $counts = counts();
my $table = table($counts);
my $parts = parts();
print "$_\n" for "server $server", "compiler $compiler";
print $table;

if ($mode eq 'write')
{
	$parts->{$major}{text} = "server $server\ncompiler $compiler\n$table";
	open my $out, '>', $figures or die "$figures: $!\n";
	print $out "# What one of each costs: see test/counted/run, which writes this.\n",
		map { "\n$parts->{$_}{text}" } sort { $a <=> $b } keys %$parts;
	close $out;
	print "1 passed, 0 failed\n";
	exit 0;
}

my $known = $parts->{$major};
my ($passed, $failed, %not) = (0, 0);
if (!$known)
{
	print "# There are no figures of PostgreSQL $major: nothing was compared.\n";
	print "1 passed, 0 failed\n";
	exit 0;
}
$not{own} = $known->{compiler} if $known->{compiler} ne $compiler;
$not{server} = "PostgreSQL $known->{server}" if $known->{server} ne $server;
print "# Not compared: $unit{$_}; the figures were taken with $not{$_}.\n" for sort keys %not;
for my $what (sort { $a cmp $b } keys %{ { %$counts, %{ $known->{counts} } } })
{
	for my $kind (grep { !$not{$_} } @kinds)
	{
		my ($old, $new) = map { $_->{$what}{$kind} } $known->{counts}, $counts;

		# One more in N calls is no change.
		if (defined $old && defined $new && abs($new - $old) <= 0.02 * $old + 0.01)
		{
			$passed++;
			next;
		}
		$failed++;
		printf "not ok %s: %s: %s before, %s now%s\n", $what, $unit{$kind}, (map { defined $_ ? sprintf('%.2f', $_) : 'none' } $old, $new),
			$old && defined $new ? sprintf(' (%+.1f %%)', 100 * ($new / $old - 1)) : '';
	}
}
print "# If that is meant, write the figures anew: test/counted/run write\n" if $failed;
print "$passed passed, $failed failed\n";
exit($failed ? 1 : 0);
