# Draw what test/soak/run.pl has measured: medians by minute, or by a sixtieth of
# the whole if that is less.
#
#   chart.pl soak.tsv >soak.svg

use strict;
use warnings;

use List::Util qw(max sum0);

my @panels = (
	[ 'memory', 'private memory by process, MB', 1 / 1024 ],
	[ 'latency', 'from commit to delivery, median, ms', 1, qr/puller|sharers/ ],
	[ 'dead rows', 'dead rows by table', 1, qr/catalogs/ ],
	[ 'bytes', 'size by table with indexes, kB', 1 / 1024, qr/catalogs/ ],
	[ 'behind', 'events not yet delivered, by subscription', 1 ],
	[ 'descriptors', 'file descriptors by process', 1 ]);
my @colours = map { "#$_" } qw(1f77b4 d62728 2ca02c 9467bd ff7f0e 8c564b 17becf 7f7f7f);
my ($width, $height, $left, $legend) = (440, 150, 45, 90);
my (%values, $end);

while (<>)
{
	chomp;
	my ($at, $what, $name, $value) = split /\t/;

	$end = $at;
	push @{ $values{$what}{$name} }, [ $at, $value ];
}
die "nothing was measured\n" unless $end;

my $bin = $end / 60 < 60 ? $end / 60 : 60;

sub median
{
	my @sorted = sort { $a <=> $b } @_;

	return $sorted[ $#sorted / 2 ];
}

# points(SERIES, FACTOR): [SECONDS, MEDIAN], one a bin
sub points
{
	my ($series, $factor) = @_;
	my %bins;

	push @{ $bins{ int($_->[0] / $bin) } }, $_->[1] for @$series;
	return map { [ $_ * $bin, $factor * median(@{ $bins{$_} }) ] } sort { $a <=> $b } keys %bins;
}

# text(X, Y, TEXT, ATTRIBUTES)
sub text
{
	my ($x, $y, $text, $attributes) = @_;

	$text =~ s/&/&amp;/g;
	$text =~ s/</&lt;/g;
	printf qq(<text x="%.1f" y="%.1f" %s>%s</text>\n), $x, $y, $attributes // '', $text;
}

# round_up(NUMBER): to one that is easy to read
sub round_up
{
	my ($number) = @_;
	my $power = 10**int(log($number || 1) / log(10) - ($number < 1));

	for my $step (1, 2, 5, 10)
	{
		return $step * $power if $step * $power >= $number;
	}
	return $number;
}

# panel(X, Y, WHAT, TITLE, FACTOR, NOT): the eight largest that lasted, but those
# that have a scale of their own
sub panel
{
	my ($x, $y, $what, $title, $factor, $not) = @_;
	my %lines = map { $_ => [ points($values{$what}{$_}, $factor) ] }
	  grep { (!defined $not || $_ !~ $not) && $values{$what}{$_}[-1][0] > 0.9 * $end && $values{$what}{$_}[0][0] < $end / 3 } keys %{ $values{$what} };
	my %size = map { my $name = $_; $name => sum0(map { $_->[1] } @{ $lines{$name} }) } keys %lines;
	my @names = sort { $size{$b} <=> $size{$a} || $a cmp $b } keys %lines;

	splice @names, 8 if @names > 8;
	my $top = round_up(max(0.01, map { $_->[1] } map { @{ $lines{$_} } } @names));
	my $scale_x = $width / $end;

	text($x, $y - 6, $title, 'font-weight="bold"');
	for my $part (0, 0.5, 1)
	{
		my $at = $y + $height * (1 - $part);

		printf qq(<path d="M%.1f %.1fh%d" stroke="#ddd"/>\n), $x, $at, $width;
		text($x - 4, $at + 4, $top * $part, 'text-anchor="end"');
		text($x + $width * $part, $y + $height + 13, sprintf('%.3g min', $end / 60 * $part), 'text-anchor="middle"');
	}
	for my $i (0 .. $#names)
	{
		my $path = join ' L', map { sprintf '%.1f %.1f', $x + $_->[0] * $scale_x, $y + $height * (1 - $_->[1] / $top) } @{ $lines{ $names[$i] } };
		my ($column, $row) = ($i % 2, int($i / 2));

		print qq(<path d="M$path" fill="none" stroke="$colours[$i]" stroke-width="1.3"/>\n);
		text($x + $column * $width / 2 + 14, $y + $height + 30 + 13 * $row, $names[$i], qq(fill="$colours[$i]"));
	}
}

my $rows = (@panels + 1) / 2;
my ($full_width, $full_height) = (2 * ($width + $left + 15), int($rows) * ($height + $legend + 25) + 10);

print qq(<svg xmlns="http://www.w3.org/2000/svg" width="$full_width" height="$full_height" viewBox="0 0 $full_width $full_height" )
  . qq(font-family="sans-serif" font-size="11">\n<rect width="100%" height="100%" fill="white"/>\n);
for my $i (0 .. $#panels)
{
	panel($left + ($i % 2) * ($width + $left + 15), 25 + int($i / 2) * ($height + $legend + 25), @{ $panels[$i] });
}
print "</svg>\n";
