# Brokers of Kafka, so many, for benchmarks: prints their addresses, then does what
# each line of its input says, and answers "ok":
#
#	NAME PARTITIONS [SETTING=VALUE...]		make a topic anew
#	stop, start								all brokers, in order
#
# They end when the input does.

use strict;
use warnings;

use IO::Handle;

use RealKafka;

# Before what tests print is taken elsewhere.
my $out;
BEGIN { open $out, '>&', \*STDOUT; $out->autoflush(1); }

# All processors are busy, and brokers late to tell that they are there.
my $kafka = RealKafka->new($ARGV[0], heap => 512, settings => { 'broker.session.timeout.ms' => 60000 });
my %there;

print {$out} $kafka->bootstrap, "\n";
while (<STDIN>)
{
	my ($what, $partitions, @settings) = split;

	if (defined $partitions)
	{
		$kafka->delete_topic($what) if $there{$what}++;
		$kafka->create_topic($what, $partitions, 'file.delete.delay.ms' => 0, map { split /=/ } @settings);
	}
	else
	{
		$kafka->$what(1 .. $ARGV[0]);
	}
	print {$out} "ok\n";
}
