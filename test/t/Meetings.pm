# The example of events that brokers get: users join a meeting, which a command
# tells in two topics; and what of it must have arrived.

package Meetings;

use strict;
use warnings;

use Exporter 'import';
use JSON::PP qw(decode_json);
use Test::More;

use CqrsTest;

our @EXPORT = qw(set_up_meetings join_meeting meeting_events check_cloud $traceparent);

our $traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01';

# set_up_meetings(SERVER): what is registered
sub set_up_meetings
{
	my ($node) = @_;

	query($node, qq(
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
}

# join_meeting(SERVER): by four users, and one who thinks better of it
sub join_meeting
{
	my ($node) = @_;

	query($node, q(SELECT cqrs_send('JoinMeeting', jsonb_build_object('user_id', i::text, 'meeting_id', '1')) FROM generate_series(1, 4) i));
	query($node, q(BEGIN; SELECT cqrs_send('JoinMeeting', '{"user_id": "5", "meeting_id": "1"}'); ROLLBACK));
}

# meeting_events(SERVER, TOPIC): what must have arrived; "envelope" is that of
# python-cqrs.
sub meeting_events
{
	my ($node, $topic) = @_;
	my @events = map { decode_json($_) } split /\n/, query($node, qq(
		SELECT json_build_object('id', event_id, 'name', event_name, 'user', payload->>'user_id',
			'seconds', floor(extract(epoch FROM emitted_at)), 'ms', floor(extract(epoch FROM emitted_at) * 1000)::text,
			'time', to_char(emitted_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US+00:00'))
		FROM cqrs_events('$topic', status => 'all')));

	for (grep { defined $_->{user} } @events)
	{
		$_->{payload} = qq({"user_id":"$_->{user}","meeting_id":"1"});
		$_->{envelope} = qq({"payload":$_->{payload},"event_id":"$_->{id}","event_timestamp":"$_->{time}","event_name":"$_->{name}","topic":"$topic"});
	}
	return @events;
}

# check_cloud(CLOUD, EVENT, WHAT): what the SDK of CloudEvents made of an event of
# user_ecst_events, of source "/meetings"
sub check_cloud
{
	my ($cloud, $event, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	is_deeply([ @$cloud{qw(specversion id source type subject datacontenttype traceparent data)} ],
		[ '1.0', $event->{id}, '/meetings', 'user_joined_ecst', '1', 'application/json', $traceparent,
			{ user_id => $event->{user}, meeting_id => '1' } ],
		"$what: attributes and data");
	is($cloud->{time}, $event->{time} =~ s/(\.\d{3})\d{3}\+00:00$/$1Z/r, "$what: the time, as precise as the SDK has it");
}

1;
