# Events arrive in Kafka as documented, in each format: kafkajs and the SDK of
# CloudEvents read them.

use strict;
use warnings;

use JSON::PP qw(decode_json);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use Kafka;

my $traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01';
my $cluster = Kafka->new(3);
$cluster->command('topic', $_, 4) for qw(user_notification_events user_ecst_events clouds raw.user_joined_ecst);

my $node = new_server('main');
$node->start;
$node->safe_psql('postgres', qq(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('user_joined_notification', 'user_notification_events');
	SELECT cqrs_register_event('user_joined_ecst', 'user_ecst_events');
	CREATE TYPE join_meeting AS (user_id text, meeting_id text);
	CREATE FUNCTION join_meeting(command join_meeting) RETURNS jsonb LANGUAGE plpgsql AS \$\$
	BEGIN
		PERFORM cqrs_emit('user_joined_notification', to_jsonb(command), key => command.meeting_id);
		PERFORM cqrs_emit('user_joined_ecst', to_jsonb(command), key => command.meeting_id,
						  headers => '{"traceparent": "$traceparent", "tenant": "Zo\xc3\xab", "n": 1}');
		RETURN jsonb_build_object('joined', command.user_id);
	END \$\$;
	SELECT cqrs_register_command('JoinMeeting', 'join_meeting(join_meeting)')));
$cluster->create_server($node, 'postgres', 'events');
$cluster->create_server($node, 'postgres', 'clouds', topic => 'clouds', cloudevents_source => '/meetings',
	'compression.type' => 'gzip');
$cluster->create_server($node, 'postgres', 'raws', topic => 'raw.{event_name}');
$node->safe_psql('postgres', q(
	SELECT cqrs_subscribe('to-kafka', ARRAY['user_notification_events', 'user_ecst_events'], server => 'events');
	SELECT cqrs_subscribe('clouds', ARRAY['user_ecst_events'], server => 'clouds', format => 'cloudevents');
	SELECT cqrs_subscribe('raws', ARRAY['user_ecst_events'], server => 'raws', format => 'raw')));

$node->safe_psql('postgres', "SELECT cqrs_send('JoinMeeting', jsonb_build_object('user_id', i::text, 'meeting_id', '1')) FROM generate_series(1, 4) i");
$node->psql('postgres', q(BEGIN; SELECT cqrs_send('JoinMeeting', '{"user_id": "5", "meeting_id": "1"}'); ROLLBACK));
ok(Kafka::wait_status($node, 'postgres', $_, '0/0/0/0'), "subscription $_ has delivered") for qw(to-kafka clouds raws);

# events(TOPIC): what must have arrived.
sub events
{
	my ($topic) = @_;

	return map { decode_json($_) } split /\n/, $node->safe_psql('postgres', qq(
		SELECT json_build_object('id', event_id, 'name', event_name, 'user', payload->>'user_id',
			'ms', floor(extract(epoch FROM emitted_at) * 1000)::text,
			'time', to_char(emitted_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US+00:00'))
		FROM cqrs_events('$topic', status => 'all')));
}

for my $topic (qw(user_notification_events user_ecst_events))
{
	my @records = $cluster->records($topic);
	my @events = events($topic);

	is(scalar(@records), 4, "$topic: the event of the transaction that rolled back is not there");
	for my $i (0 .. $#records)
	{
		my ($record, $event) = ($records[$i], $events[$i]);

		is($record->{value},
			qq({"payload":{"user_id":"$event->{user}","meeting_id":"1"},"event_id":"$event->{id}","event_timestamp":"$event->{time}","event_name":"$event->{name}","topic":"$topic"}),
			"$topic $i: the envelope of python-cqrs");
		is_deeply([ @$record{qw(key timestamp)} ], [ '1', $event->{ms} ], "$topic $i: key and time");
		ok(take_causes($record->{headers}), "$topic $i: which command emitted it");
		is_deeply($record->{headers},
			{ message_id => $event->{id}, 'content-type' => 'application/json',
				$topic eq 'user_ecst_events' ? (traceparent => $traceparent, tenant => "Zo\x{eb}", n => '1') : () },
			"$topic $i: headers");
	}
}

my @events = events('user_ecst_events');
my @clouds = map { decode_json($_) } split /\n/, $cluster->consume('clouds', 'cloudevents');
is(scalar(@clouds), 4, 'the SDK of CloudEvents accepts what it gets');
for my $i (0 .. $#clouds)
{
	my ($cloud, $event) = ($clouds[$i], $events[$i]);

	is_deeply([ @$cloud{qw(specversion id source type subject datacontenttype traceparent data)} ],
		[ '1.0', $event->{id}, '/meetings', 'user_joined_ecst', '1', 'application/json', $traceparent,
			{ user_id => $event->{user}, meeting_id => '1' } ],
		"cloudevents $i: attributes and data");
	(my $time = $event->{time}) =~ s/(\.\d{3})\d{3}\+00:00$/$1Z/;
	is($cloud->{time}, $time, "cloudevents $i: the time, as precise as the SDK has it");
}
is_deeply([ map { $_->{headers}{message_id} } $cluster->records('clouds') ], [ map { $_->{id} } @events ],
	'cloudevents: the id is in the header of every format, too');

# Keys that need care, and events without a payload, or without a key.
$node->safe_psql('postgres', q(
	SELECT cqrs_emit('user_joined_ecst', NULL, 'gone');
	SELECT cqrs_emit('user_joined_ecst', '{"n": 1}', '');
	SELECT cqrs_emit('user_joined_ecst', '{"n": 2}');
	SELECT cqrs_emit('user_joined_ecst', jsonb_build_object('n', i), 'ключ ' || i) FROM generate_series(3, 12) i));
ok(Kafka::wait_status($node, 'postgres', 'raws', '0/0/0/0'), 'raw: delivered');
@events = events('user_ecst_events');
my @records = $cluster->records('raw.user_joined_ecst');
my %record = map { $_->{headers}{message_id} => $_ } @records;
is(scalar(@records), scalar(@events), 'raw: all of it, in the topic that is made of its name');
for my $i (0 .. 3)
{
	my ($record, $event) = ($record{ $events[$i]{id} }, $events[$i]);

	is($record->{value}, qq({"user_id":"$event->{user}","meeting_id":"1"}), "raw $i: the payload alone");
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
