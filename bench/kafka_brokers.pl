# Brokers of Kafka, so many, for bench/kafka: prints their addresses, then makes a
# topic anew for each line of its input, NAME PARTITIONS, and answers "ok". They end
# when the input does.

use strict;
use warnings;

use IO::Handle;

use RealKafka;

# Before what tests print is taken elsewhere.
my $out;
BEGIN { open $out, '>&', \*STDOUT; $out->autoflush(1); }

my $kafka = RealKafka->new($ARGV[0], heap => 512);
my %there;

print {$out} $kafka->bootstrap, "\n";
while (<STDIN>)
{
	my ($topic, $partitions) = split;

	$kafka->delete_topic($topic) if $there{$topic}++;
	$kafka->create_topic($topic, $partitions, 'file.delete.delay.ms' => 0);
	print {$out} "ok\n";
}
