# Events arrive in Kafka as documented, in each format: the consumers kafkajs and
# librdkafka, and the SDK of CloudEvents, read them.

use strict;
use warnings;

use JSON::PP qw(decode_json);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use Meetings;
use RealKafka;

my $cluster = RealKafka->new(1);
$cluster->create_topic($_, 4) for qw(user_notification_events user_ecst_events clouds raw.user_joined_ecst);

my $node = new_server('main');
$node->start;
set_up_meetings($node);
$cluster->create_server($node, 'postgres', 'events');
$cluster->create_server($node, 'postgres', 'clouds', topic => 'clouds', cloudevents_source => '/meetings',
	'compression.type' => 'gzip');
$cluster->create_server($node, 'postgres', 'raws', topic => 'raw.{event_name}');
$node->safe_psql('postgres', q(
	SELECT cqrs_subscribe('to-kafka', ARRAY['user_notification_events', 'user_ecst_events'], server => 'events');
	SELECT cqrs_subscribe('clouds', ARRAY['user_ecst_events'], server => 'clouds', format => 'cloudevents');
	SELECT cqrs_subscribe('raws', ARRAY['user_ecst_events'], server => 'raws', format => 'raw')));

join_meeting($node);
ok(wait_status($node, 'postgres', $_, '0/0/0/0'), "subscription $_ has delivered") for qw(to-kafka clouds raws);

for my $topic (qw(user_notification_events user_ecst_events))
{
	my @records = $cluster->records($topic);
	my @events = meeting_events($node, $topic);

	is(scalar(@records), 4, "$topic: the event of the transaction that rolled back is not there");
	for my $i (0 .. $#records)
	{
		my ($record, $event) = ($records[$i], $events[$i]);

		is($record->{value}, $event->{envelope}, "$topic $i: the envelope of python-cqrs");
		is_deeply([ @$record{qw(key timestamp)} ], [ '1', $event->{ms} ], "$topic $i: key and time");
		ok(take_causes($record->{headers}), "$topic $i: which command emitted it");
		is_deeply($record->{headers},
			{ message_id => $event->{id}, 'content-type' => 'application/json',
				$topic eq 'user_ecst_events' ? (traceparent => $traceparent, tenant => "Zo\x{eb}", n => '1') : () },
			"$topic $i: headers");
	}
}

my @events = meeting_events($node, 'user_ecst_events');
my @clouds = map { decode_json($_) } split /\n/, $cluster->consume('clouds', 'cloudevents');
is(scalar(@clouds), 4, 'the SDK of CloudEvents accepts what it gets');
check_cloud($clouds[$_], $events[$_], "cloudevents $_") for 0 .. $#clouds;
is_deeply([ map { $_->{headers}{message_id} } $cluster->records('clouds') ], [ map { $_->{id} } @events ],
	'cloudevents: the id is in the header of every format, too');

# Keys that need care, and events without a payload, or without a key.
$node->safe_psql('postgres', q(
	SELECT cqrs_emit('user_joined_ecst', NULL, 'gone');
	SELECT cqrs_emit('user_joined_ecst', '{"n": 1}', '');
	SELECT cqrs_emit('user_joined_ecst', '{"n": 2}');
	SELECT cqrs_emit('user_joined_ecst', jsonb_build_object('n', i), 'ключ ' || i) FROM generate_series(3, 12) i));
ok(wait_status($node, 'postgres', 'raws', '0/0/0/0'), 'raw: delivered');
@events = meeting_events($node, 'user_ecst_events');
my @records = map { decode_json($_) } split /\n/, $cluster->consume('raw.user_joined_ecst');
my %record = map { $_->{headers}{message_id} => $_ } @records;
is(scalar(@records), scalar(@events), 'raw: all of it, in the topic that is made of its name');
for my $i (0 .. 3)
{
	my ($record, $event) = ($record{ $events[$i]{id} }, $events[$i]);

	is($record->{value}, $event->{payload}, "raw $i: the payload alone");
	ok(take_causes($record->{headers}), "raw $i: which command emitted it");
	is_deeply($record->{headers},
		{ message_id => $event->{id}, 'content-type' => 'application/json',
			event_id => $event->{id}, event_name => 'user_joined_ecst', event_timestamp => $event->{time}, topic => 'user_ecst_events',
			traceparent => $traceparent, tenant => "Zo\x{eb}", n => '1' },
		"raw $i: headers");
}
is_deeply([ map { [ @{ $record{ $events[$_]{id} } }{qw(key value)} ] } 4 .. 7 ],
	[ [ 'gone', undef ], [ '', '{"n":1}' ], [ undef, '{"n":2}' ], [ "\x{43a}\x{43b}\x{44e}\x{447} 3", '{"n":3}' ] ],
	'raw: a tombstone, an empty key, no key, and a key beyond ASCII');
is_deeply([ map { $_->{partition} } grep { defined $_->{key} } @records ],
	[ map { $_->{java_partition} } grep { defined $_->{key} } @records ],
	'keys are in the partitions where the Java client would put them');

$node->stop('fast');
done_testing();
