# What was measured again and again, and whether it is flat.

package SoakSeries;

use strict;
use warnings;

use Exporter 'import';
use List::Util qw(max);

our @EXPORT = qw(median %ALLOWED);

# What is flat: after the first third, in which caches fill, tables get to their
# sizes and everything is begun, the last third's median may be this much above
# the middle third's: by a factor, and by a constant. Medians, as a machine may
# have other things to do now and then; what leaks does not come back.
our %ALLOWED = (
	'memory' => [ 1.02, 192 ],			# kB of a process, private
	'descriptors' => [ 1.2, 8 ],		# of a process
	'bytes' => [ 1.5, 1024 * 1024 ],	# of a table, with its indexes
	'dead rows' => [ 2, 2000 ],			# of a table
	'behind' => [ 1.5, 200 ],			# events, of a subscription
	'latency' => [ 2, 1000 ],			# ms
	'connections' => [ 1, 2 ],
	'processes' => [ 1, 1 ]);			# worker slots in use, of all kinds

sub median
{
	my @sorted = sort { $a <=> $b } @_;

	return @sorted % 2 ? $sorted[ $#sorted / 2 ] : ($sorted[ @sorted / 2 - 1 ] + $sorted[ @sorted / 2 ]) / 2;
}

# new(FILE): where each value is written, too: seconds, what, name, value
sub new
{
	my ($class, $file) = @_;

	open my $out, '>', $file or die "$file: $!";
	$out->autoflush(1);
	return bless { out => $out, series => {}, times => [] }, $class;
}

# begin(SECONDS): of the values that come
sub begin
{
	my ($self, $at) = @_;

	push @{ $self->{times} }, $at;
}

# add(WHAT, NAME, VALUE)
sub add
{
	my ($self, $what, $name, $value) = @_;

	push @{ $self->{series}{"$what\t$name"} }, [ $self->{times}[-1], $value ];
	printf { $self->{out} } "%.1f\t%s\t%s\t%s\n", $self->{times}[-1], $what, $name, $value;
}

# names(WHAT): of what was there all the time, or as good as
sub names
{
	my ($self, $what) = @_;

	return map { /\t(.*)/ } grep { /^\Q$what\E\t/ && $self->lasts($self->{series}{$_}) } sort keys %{ $self->{series} };
}

# lasts(SERIES): from the first third to the end
sub lasts
{
	my ($self, $series) = @_;
	my $end = $self->{times}[-1];

	return $series->[0][0] <= $end / 3 && $series->[-1][0] >= 0.9 * $end && (grep { $_->[0] > $end / 3 } @$series) >= 10;
}

# thirds(WHAT, NAME): the medians of the middle one and the last one
sub thirds
{
	my ($self, $what, $name) = @_;
	my $end = $self->{times}[-1];
	my $series = $self->{series}{"$what\t$name"};

	return (
		median(map { $_->[1] } grep { $_->[0] > $end / 3 && $_->[0] <= 2 * $end / 3 } @$series),
		median(map { $_->[1] } grep { $_->[0] > 2 * $end / 3 } @$series));
}

# risen(WHAT): those that are not flat, in words
sub risen
{
	my ($self, $what) = @_;
	my ($factor, $constant) = @{ $ALLOWED{$what} };
	my @risen;

	for my $name ($self->names($what))
	{
		my ($before, $after) = $self->thirds($what, $name);

		push @risen, sprintf('%s: %s, then %s', $name, $before, $after) if $after > $before * $factor + $constant;
	}
	return @risen;
}

# summary(WHAT): of the largest ones
sub summary
{
	my ($self, $what) = @_;
	my @lines;

	for my $name ($self->names($what))
	{
		my ($before, $after) = $self->thirds($what, $name);

		push @lines, [ max($before, $after), sprintf('%s %s: %.0f, then %.0f', $what, $name, $before, $after) ];
	}
	return map { $_->[1] } sort { $b->[0] <=> $a->[0] } @lines;
}

1;
