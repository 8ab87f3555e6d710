# What a Kafka topic has becomes events, each message once: from several partitions,
# in transactions, compacted, through a broker that is killed. What is missing, or
# is not what it was, stops a partition, and is told.

use strict;
use warnings;

use JSON::PP qw(decode_json);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use RealKafka;

my $kafka = RealKafka->new(1,
	listeners => ['SASL_PLAINTEXT'],
	users => { app => 'secret' },
	settings => { 'log.cleaner.backoff.ms' => 100 });
my $node = new_server('main', "cqrs_outbox.max_workers = 30\nmax_worker_processes = 60");

$node->start;
query($node, 'CREATE EXTENSION cqrs_outbox');
$kafka->create_server($node, 'postgres', 'events',
	'bootstrap.servers' => $kafka->bootstrap('SASL_PLAINTEXT'),
	'security.protocol' => 'sasl_plaintext',
	'sasl.mechanism' => 'PLAIN',
	'topic.metadata.refresh.interval.ms' => 500);
query($node, q(ALTER USER MAPPING FOR PUBLIC SERVER events OPTIONS ("sasl.username" 'app', "sasl.password" 'secret')));

# consume(NAME, SOURCE, OPTIONS): a consumer of this name, into a topic of this name.
sub consume
{
	my ($name, $source, %options) = @_;
	my $more = join '', map { ", $_ => '$options{$_}'" } sort keys %options;

	query($node, "SELECT cqrs_register_event('$name', '$name');
		SELECT cqrs_create_consumer('$name', 'events', '$source', '$name', '$name'$more)");
	return;
}

# wait_partition(CONSUMER, PARTITION, CONDITION): until it is so with the partition.
sub wait_partition
{
	my ($consumer, $partition, $condition) = @_;

	return 1 if $node->poll_query_until('postgres',
		"SELECT $condition FROM cqrs_consumer_partitions WHERE consumer = '$consumer' AND partition = $partition");
	diag(query($node, "SELECT * FROM cqrs_consumer_partitions WHERE consumer = '$consumer'"));
	diag(query($node, "SELECT * FROM cqrs_consumer_status WHERE consumer = '$consumer'"));
	return 0;
}

# wait_consumed(CONSUMER, PARTITION, OFFSET): until all before the offset is.
sub wait_consumed
{
	my ($consumer, $partition, $offset) = @_;

	return wait_partition($consumer, $partition, "\"offset\" >= $offset");
}

# events(CONSUMER, EXPRESSION): of each of its events, in order.
sub events
{
	my ($consumer, $expression) = @_;

	return query($node,
		"SELECT string_agg($expression, ' ' ORDER BY position) FROM cqrs_events('$consumer', max_events => 100000, status => 'all')");
}

# spoil(TOPIC, BYTES, OTHERS): these bytes, where its first partition has them first,
# become as many others.
sub spoil
{
	my ($topic, $bytes, $others) = @_;
	my $file = "$kafka->{dir}/kafka_1/data/$topic-0/00000000000000000000.log";
	my $at = index slurp_file($file), $bytes;

	die "$file does not have $bytes\n" if $at < 0;
	open my $out, '+<', $file or die "$file: $!";
	seek $out, $at, 0;
	print $out $others;
	close $out or die "$file: $!";
	return;
}

# numbers(FIRST, LAST, MORE): so many records, with a number each.
sub numbers
{
	my ($first, $last, %more) = @_;

	return map { { value => qq({"n": $_}), partition => 0, %more } } $first .. $last;
}

my $n = q(payload->>'n');

# A message, whole.
$kafka->create_topic('whole', 1, 'max.message.bytes' => 10_000_000);
$kafka->produce('whole',
	{ key => 'a', value => '{"n": 1}', timestamp => 1767225600123,
		headers => { message_id => 'id 1', 'content-type' => 'application/json', tenant => 'blue', odd => { hex => 'ff00' } } },
	{ value => { hex => '00ff' } },
	{ key => { hex => 'ff00' }, value => '{"n": 3}' },
	{ key => 'a' },
	{ key => 'a', value => '{"n": 5, "more": "' . ('x' x 5_000_000) . '"}' });
consume('whole', 'whole');
consume('whole_bytes', 'whole', format => 'bytes');
ok(wait_consumed('whole', 0, 5), 'all are consumed');
my ($headers) = map { decode_json($_) } query($node,
	q(SELECT headers FROM cqrs_events('whole', status => 'all') WHERE payload->>'n' = '1'));
is_deeply(
	{ map { $_ => $headers->{$_} } qw(source source_partition source_offset source_message_id tenant) },
	{ source => 'whole', source_partition => 0, source_offset => 0, source_message_id => 'id 1', tenant => 'blue' },
	'headers, and where it is from');
like($headers->{occurred_at}, qr/^2026-01-01T00:00:00\.123/, 'when it was sent');
is(events('whole', qq(concat_ws('/', coalesce($n, '-'), key, length(payload->>'more')))),
	'1/a 3/\xff00 -/a 5/a/5000000', 'keys, a tombstone, and a huge message');
is(query($node, q(SELECT concat_ws('/', "offset", body, error_sqlstate) FROM cqrs_consumer_dead_letters WHERE consumer = 'whole')),
	'1/\x00ff/22021', 'what is no JSON is a dead letter');
ok(wait_consumed('whole_bytes', 0, 5), 'bytes, too');
is(query($node, q(SELECT payload->>'base64' FROM cqrs_events('whole_bytes', status => 'all') WHERE headers->>'source_offset' = '1')),
	'AP8=', 'and they are events');
ok(wait_until(sub { $kafka->committed('postgres.whole', 'whole', 0) == 5 }), 'a group is told, for those who watch its lag');

# Partitions, two workers, and keys in order.
$kafka->create_topic('parts', 5);
my @keyed = map { { key => 'key ' . $_ % 20, value => qq({"n": $_}) } } 1 .. 2000;
$kafka->produce('parts', @keyed[0 .. 999]);
consume('parts', 'parts', workers => 2);
$kafka->produce('parts', @keyed[1000 .. 1999]);
ok($node->poll_query_until('postgres', q(SELECT consumed = 2000 AND partitions = 5 FROM cqrs_consumer_status WHERE consumer = 'parts')),
	'five partitions are consumed');
is_deeply(
	[ arrivals(map { [ split /\// ] } split / /, events('parts', qq(concat_ws('/', event_id, replace(key, ' ', '_'), $n)))) ],
	[ 2000, 0, 0 ], 'each message once, each key in order');
$kafka->add_partitions('parts', 6);
$kafka->produce('parts', map { { value => qq({"n": $_}), partition => 5 } } 3001 .. 3010);
ok(wait_consumed('parts', 5, 10), 'a partition that is new is consumed');
is(query($node, q(SELECT count(*) FROM cqrs_events('parts', max_events => 10000, status => 'all') WHERE headers->>'source_partition' = '5')),
	10, 'from its beginning');

# Where to begin.
$kafka->create_topic('begun');
$kafka->produce('begun', map { { value => qq({"n": $_}), timestamp => 1767225600000 + 1000 * $_ } } 1 .. 9);
consume('from_time', 'begun', start => '2026-01-01 00:00:05+00');
consume('from_latest', 'begun', start => 'latest');
ok(wait_consumed($_, 0, 9), "$_ is there") for qw(from_time from_latest);
$kafka->produce('begun', numbers(10, 10));
ok(wait_consumed($_, 0, 10), "$_ has what comes") for qw(from_time from_latest);
is(events('from_time', $n), '5 6 7 8 9 10', 'from a time on');
is(events('from_latest', $n), '10', 'from the end on');

# Transactions.
$kafka->create_topic('pieces');
consume('pieces', 'pieces');
$kafka->produce('pieces', 'commit', numbers(1, 2));
$kafka->produce('pieces', 'abort', numbers(3, 4));
$kafka->produce('pieces', 'commit', numbers(5, 6));
ok(wait_partition('pieces', 0, '"offset" = 9 AND lag = 0'), 'what is behind the last message is no lag');
$kafka->produce('pieces', 'open', numbers(7, 7));
$kafka->produce('pieces', numbers(8, 8));
ok(wait_partition('pieces', 0, 'end_offset = 11 AND "offset" = 9'), 'a transaction that is open holds all up');
$kafka->end_transaction('commit');
ok(wait_partition('pieces', 0, '"offset" = 12 AND lag = 0'), 'until it ends');
is(events('pieces', $n), '1 2 5 6 7 8', 'what was committed, and nothing else');

# Compacted: the offsets have holes, and these are no gaps.
$kafka->create_topic('compacted', 1, 'cleanup.policy' => 'compact', 'min.cleanable.dirty.ratio' => 0.01, 'segment.ms' => 100);
$kafka->produce('compacted', numbers(1, 20, key => 'same'));
consume('compacted', 'compacted');
ok(wait_consumed('compacted', 0, 20), 'it is consumed as it was');
query($node, q(SELECT cqrs_pause_consumer('compacted')));
ok(wait_until(sub {
	$kafka->produce('compacted', numbers(21, 21, key => 'same'));
	return !grep { $_->{offset} == 19 } $kafka->records('compacted');
}), 'it is compacted, and the last message that was consumed gone');
$kafka->produce('compacted', numbers(22, 22, key => 'last'));
my $end = 1 + (sort { $b <=> $a } map { $_->{offset} } $kafka->records('compacted'))[0];
query($node, q(SELECT cqrs_resume_consumer('compacted')));
ok(wait_consumed('compacted', 0, $end), 'it is consumed to its end');
is((split / /, events('compacted', $n))[-1], 22, 'with its last message');

# The next message is not there any more.
$kafka->create_topic('gap');
$kafka->produce('gap', numbers(1, 10));
consume('gap', 'gap');
consume('gap_skipped', 'gap', on_gap => 'earliest');
ok(wait_consumed($_, 0, 10), "$_ is consumed") for qw(gap gap_skipped);
query($node, q(SELECT cqrs_pause_consumer(c) FROM unnest(ARRAY['gap', 'gap_skipped']) c));
$kafka->produce('gap', numbers(11, 20));
$kafka->delete_records('gap', 0, 10);
query($node, q(SELECT cqrs_resume_consumer('gap')));
ok(wait_consumed('gap', 0, 20), 'that the last message is gone does not matter');
query($node, q(SELECT cqrs_pause_consumer('gap')));
$kafka->produce('gap', numbers(21, 30));
$kafka->delete_records('gap', 0, 25);
query($node, q(SELECT cqrs_resume_consumer(c) FROM unnest(ARRAY['gap', 'gap_skipped']) c));
ok(wait_partition('gap', 0, q(stopped = 'gap' AND "offset" = 20 AND end_offset = 25 AND lag = 5)), 'a gap stops the partition, which says how large it is');
ok(wait_consumed('gap_skipped', 0, 30), 'unless it is to be skipped');
is(events('gap_skipped', $n), join(' ', 1 .. 10, 26 .. 30), 'to the first message that is there');
query($node, q(SELECT cqrs_seek_consumer('gap', 'earliest')));
ok(wait_consumed('gap', 0, 30), 'somebody has decided');
is(events('gap', $n), join(' ', 1 .. 20, 26 .. 30), 'and it goes on');

# Another topic of this name: shorter, and as long.
for my $count (3, 40)
{
	my $name = "anew_$count";

	$kafka->create_topic($name);
	$kafka->produce($name, numbers(1, 10));
	consume($name, $name);
	ok(wait_consumed($name, 0, 10), 'the first topic is consumed');
	query($node, "SELECT cqrs_pause_consumer('$name')");
	$kafka->delete_topic($name);
	$kafka->create_topic($name);
	$kafka->produce($name, numbers(101, 100 + $count));
	query($node, "SELECT cqrs_resume_consumer('$name')");
	ok(wait_partition($name, 0, q(stopped = 'other')), "another topic, of $count messages, stops the partition");
	is(events($name, $n), join(' ', 1 .. 10), 'nothing of it is an event');
	query($node, "SELECT cqrs_seek_consumer('$name', 'earliest')");
	ok(wait_consumed($name, 0, $count), 'somebody has decided');
	is(events($name, $n), join(' ', 1 .. 10, 101 .. 100 + $count), 'and it is consumed');
}

# The topic goes while it is consumed, and comes back as another one.
$kafka->create_topic('gone');
$kafka->produce('gone', numbers(1, 10));
consume('gone', 'gone');
ok(wait_consumed('gone', 0, 10), 'it is consumed');
$kafka->delete_topic('gone');
ok($node->poll_query_until('postgres', q(SELECT error = 'Kafka topic "gone" does not exist' FROM cqrs_consumer_status WHERE consumer = 'gone')),
	'that it is gone is told');
$kafka->create_topic('gone');
$kafka->produce('gone', numbers(101, 140));
query($node, q(SELECT cqrs_resume_consumer('gone')));
ok(wait_partition('gone', 0, q(stopped = 'other')), 'what came back is another one');

# Not authorized, at first and later.
$kafka->create_topic('closed');
$kafka->produce('closed', numbers(1, 1));
$kafka->add_acl(qw(deny app read closed));
consume('closed', 'closed');
ok($node->poll_query_until('postgres', q(SELECT error = 'not authorized to read Kafka topic "closed"' FROM cqrs_consumer_status WHERE consumer = 'closed')),
	'who may not read is told');
$kafka->remove_acl(qw(deny app read closed));
query($node, q(SELECT cqrs_resume_consumer('closed')));
ok(wait_consumed('closed', 0, 1), 'once he may, it is consumed');

# A batch that the broker has no more as it was: its checksum is wrong.
$kafka->create_topic('broken', 2);
$kafka->produce('broken', numbers($_, $_)) for 1 .. 5;
$kafka->produce('broken', numbers(6, 6, partition => 1));
spoil('broken', '{"n": 3}', '{"n": 4}');
consume('broken', 'broken');
ok(wait_consumed('broken', 1, 1), 'other partitions go on');
ok(wait_partition('broken', 0, '"offset" = 2'), 'this one waits');
ok($node->poll_query_until('postgres', q(SELECT error LIKE 'could not read partition 0 of Kafka topic "broken" at offset 2: %' FROM cqrs_consumer_status WHERE consumer = 'broken')), '... and says so');
spoil('broken', '{"n": 4}', '{"n": 3}');
ok(wait_consumed('broken', 0, 5), 'it is tried again');
is(join(' ', sort split / /, events('broken', $n)), '1 2 3 4 5 6', 'each message is there once');

# The broker is killed, and the server with it, while much is on its way.
$kafka->create_topic('much', 3);
consume('much', 'much', workers => 2);
my $sent = 0;
for my $round (1 .. 4)
{
	$kafka->produce('much', map { { key => 'key ' . $_ % 20, value => qq({"n": $_}) } } $sent + 1 .. $sent + 5000);
	$sent += 5000;
	ok($node->poll_query_until('postgres', "SELECT consumed > $sent - 5000 FROM cqrs_consumer_status WHERE consumer = 'much'"), 'some of it is consumed');
	$round % 2 ? $kafka->kill(1) : $node->stop('immediate');
	$round % 2 ? $kafka->start(1) : $node->start;
}
ok($node->poll_query_until('postgres', "SELECT consumed >= $sent FROM cqrs_consumer_status WHERE consumer = 'much'"), 'all of it is');
is_deeply(
	[ arrivals(map { [ split /\// ] } split / /, events('much', qq(concat_ws('/', headers->>'source_partition' || '-' || (headers->>'source_offset'), replace(key, ' ', '_'), $n)))) ],
	[ $sent, 0, 0 ], 'each message once, each key in order');

done_testing();
