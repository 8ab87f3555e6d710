# Events arrive in RabbitMQ as documented, in each format: amqplib and the SDK
# of CloudEvents read them. Also: who may use a server, which options it may
# have, and that nobody sees the password.

use strict;
use warnings;

use JSON::PP qw(decode_json);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use RabbitMQ;

my $broker = RabbitMQ->new('formats');
$broker->start;
$broker->command('queue user_notification_events', 'queue user_ecst_events',
	'exchange meetings topic', 'queue by_key', 'bind by_key meetings raw.#',
	'queue clouds', 'bind clouds meetings user_ecst_events.user_joined_ecst.#');

my $node = new_server('main', 'log_statement = none');
$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('user_joined_notification', 'user_notification_events');
	SELECT cqrs_register_event('user_joined_ecst', 'user_ecst_events');
	CREATE ROLE app LOGIN;
	GRANT SELECT, INSERT ON cqrs_topics.user_notification_events, cqrs_topics.user_ecst_events TO app;
	GRANT EXECUTE ON FUNCTION cqrs_subscribe TO app;
	CREATE TABLE member (meeting_id text, user_id text, PRIMARY KEY (meeting_id, user_id));
	CREATE TYPE join_meeting AS (user_id text, meeting_id text);
	CREATE FUNCTION join_meeting(command join_meeting) RETURNS jsonb LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO member VALUES (command.meeting_id, command.user_id);
		PERFORM cqrs_emit('user_joined_notification', to_jsonb(command), key => command.meeting_id);
		PERFORM cqrs_emit('user_joined_ecst', to_jsonb(command), key => command.meeting_id,
						  headers => '{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tenant": "Zoë", "n": 1}');
		RETURN jsonb_build_object('joined', command.user_id);
	END $$;
	SELECT cqrs_register_command('JoinMeeting', 'join_meeting(join_meeting)')));
$broker->create_server($node, 'postgres', 'events');
$broker->create_server($node, 'postgres', 'clouds',
	exchange => 'meetings', routing_key => '{topic}.{event_name}.{key}', cloudevents_source => '/meetings');
$broker->create_server($node, 'postgres', 'raws',
	exchange => 'meetings', routing_key => 'raw.{key}', persistent => 'false');

# error_of(SQL, ROLE): what it raises: code, message, detail and hint.
sub error_of
{
	my ($sql, $role) = @_;
	my ($status, $out, $err) = $node->psql('postgres', "\\set VERBOSITY verbose\n" . ($role ? "SET ROLE $role;" : '') . $sql);

	return join '|', map { $err =~ /^(?:psql:<stdin>:\d+: )?$_: +(.*)/m ? $1 : () } qw(ERROR DETAIL HINT);
}

# What is wrong with options.
my $options = 'host, port, vhost, exchange, routing_key, mandatory, persistent, heartbeat, connect_timeout, frame_max, '
  . 'tls, tls_verify, tls_ca_file, tls_cert_file, tls_key_file, window, cloudevents_source, max_message_size';
is(error_of("ALTER SERVER events OPTIONS (ADD hosts 'x')"),
	"HV00D: a server of foreign-data wrapper \"cqrs_rabbitmq\" has no option \"hosts\"|Valid options in this context are: $options.",
	'the valid options of a server are listed');
is(error_of("ALTER SERVER events OPTIONS (ADD password 'x')"),
	"HV00D: a server of foreign-data wrapper \"cqrs_rabbitmq\" has no option \"password\"|It is an option of a user mapping.|Valid options in this context are: $options.",
	'a password belongs to the user mapping');
is(error_of("CREATE USER MAPPING FOR app SERVER events OPTIONS (user 'x')"),
	'HV00D: a user mapping of foreign-data wrapper "cqrs_rabbitmq" has no option "user"|Valid options in this context are: username, password.',
	'and those of a user mapping');
like(error_of("ALTER FOREIGN DATA WRAPPER cqrs_rabbitmq OPTIONS (host 'x')"),
	qr/^HV00D.*There are no valid options in this context/, 'the wrapper has none');
for my $wrong ([ port => '99999', 'It must be an integer from 1 to 65535.' ],
	[ heartbeat => '0', 'It must be an integer from 1 to 3600.' ],
	[ mandatory => 'perhaps', 'It must be "true" or "false".' ],
	[ window => '0', 'It must be an integer from 1 to 1000000.' ],
	[ host => 'a,,b', 'It must be a list of "host" or "host:port", separated by commas.' ],
	[ host => '[::1:5672', 'It must be a list of "host" or "host:port", separated by commas.' ],
	[ routing_key => '{tpoic}', 'In a template, braces must be around topic, event_name or key; a brace itself is written twice.' ])
{
	my ($name, $value, $detail) = @$wrong;

	is(error_of("CREATE SERVER wrong FOREIGN DATA WRAPPER cqrs_rabbitmq OPTIONS ($name '$value')"),
		"22023: option \"$name\" of a server of foreign-data wrapper \"cqrs_rabbitmq\" cannot have this value|$detail",
		"$name '$value' is not allowed");
}
$node->safe_psql('postgres', 'GRANT USAGE ON FOREIGN DATA WRAPPER cqrs_rabbitmq TO app');
like(error_of("CREATE SERVER mine FOREIGN DATA WRAPPER cqrs_rabbitmq OPTIONS (tls_ca_file '/etc/passwd')", 'app'),
	qr/^42501: permission denied to set option "tls_ca_file"/, 'files are for superusers to name');

# Who may use a server.
my $subscribe = "SELECT cqrs_subscribe('to-rabbit', ARRAY['user_notification_events', 'user_ecst_events'], server => 'events')";
like(error_of($subscribe, 'app'), qr/^42501: permission denied for foreign server events/, 'USAGE on the server is needed');
$node->safe_psql('postgres', 'GRANT USAGE ON FOREIGN SERVER events, clouds, raws TO app');
$node->safe_psql('postgres', 'CREATE SERVER bare FOREIGN DATA WRAPPER cqrs_rabbitmq; GRANT USAGE ON FOREIGN SERVER bare TO app');
is(error_of($subscribe =~ s/'events'/'bare'/r, 'app'),
	'22023: server "bare" cannot be connected to as it is|the user mapping has no option "username"|Use ALTER SERVER, or CREATE USER MAPPING FOR app.',
	'and credentials');
$node->safe_psql('postgres', "ALTER SERVER bare OPTIONS (tls_verify 'false'); CREATE USER MAPPING FOR app SERVER bare OPTIONS (username 'x', password 'y')");
like(error_of($subscribe =~ s/'events'/'bare'/r, 'app'), qr/the server has option "tls_verify", but not "tls"/,
	'options that do nothing are not accepted silently');

# The example, in three formats.
$node->safe_psql('postgres', "SET ROLE app; $subscribe;
	SELECT cqrs_subscribe('clouds', ARRAY['user_ecst_events'], server => 'clouds', format => 'cloudevents');
	SELECT cqrs_subscribe('raws', ARRAY['user_ecst_events'], server => 'raws', format => 'raw')");
$node->safe_psql('postgres', "SELECT cqrs_send('JoinMeeting', jsonb_build_object('user_id', i::text, 'meeting_id', '1')) FROM generate_series(1, 4) i");
$node->psql('postgres', q(BEGIN; SELECT cqrs_send('JoinMeeting', '{"user_id": "5", "meeting_id": "1"}'); ROLLBACK));
ok(RabbitMQ::wait_status($node, 'postgres', $_, '0/0/0/0'), "subscription $_ has delivered") for qw(to-rabbit clouds raws);

# events(TOPIC): what must have arrived.
sub events
{
	my ($topic) = @_;

	return map { decode_json($_) } split /\n/, $node->safe_psql('postgres', qq(
		SELECT json_build_object('id', event_id, 'name', event_name, 'topic', topic, 'user', payload->>'user_id',
			'seconds', floor(extract(epoch FROM emitted_at)),
			'time', to_char(emitted_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US+00:00'))
		FROM cqrs_events('$topic', status => 'all')));
}

for my $topic (qw(user_notification_events user_ecst_events))
{
	my @messages = $broker->messages($topic);
	my @events = events($topic);

	is(scalar(@messages), 4, "$topic: the event of the transaction that rolled back is not there");
	for my $i (0 .. $#messages)
	{
		my ($message, $event) = ($messages[$i], $events[$i]);

		is($message->{body},
			qq({"payload":{"user_id":"$event->{user}","meeting_id":"1"},"event_id":"$event->{id}","event_timestamp":"$event->{time}","event_name":"$event->{name}","topic":"$topic"}),
			"$topic $i: the envelope of python-cqrs");
		is_deeply([ @$message{qw(messageId type contentType deliveryMode timestamp exchange routingKey)} ],
			[ $event->{id}, $event->{name}, 'application/json', 2, $event->{seconds}, '', $topic ],
			"$topic $i: its properties");
	}
	ok(take_causes($messages[0]{headers}), "$topic: which command emitted it");
	is_deeply($messages[0]{headers},
		$topic eq 'user_ecst_events' ?
		{ traceparent => '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01', tenant => "Zo\x{eb}", n => '1' } : {},
		"$topic: the event's own headers");
}

my @events = events('user_ecst_events');
my ($out, $err) = ('', '');
ok(IPC::Run::run([ 'node', RabbitMQ::consumer('rabbitmq_cloudevents.js'), $broker->url, 'clouds' ], '<', \undef, '>', \$out, '2>', \$err),
	'the SDK of CloudEvents accepts what it gets') or diag($err);
my @clouds = map { decode_json($_) } split /\n/, $out;
is(scalar(@clouds), 4, 'all of it');
for my $i (0 .. $#clouds)
{
	my ($cloud, $event) = ($clouds[$i], $events[$i]);

	is_deeply([ @$cloud{qw(specversion id source type subject datacontenttype traceparent data)} ],
		[ '1.0', $event->{id}, '/meetings', 'user_joined_ecst', '1', 'application/json',
			'00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01',
			{ user_id => $event->{user}, meeting_id => '1' } ],
		"cloudevents $i: attributes and data");
	(my $time = $event->{time}) =~ s/(\.\d{3})\d{3}\+00:00$/$1Z/;
	is($cloud->{time}, $time, "cloudevents $i: the time, as precise as the SDK has it");
}

my @raws = $broker->messages('by_key');
is(scalar(@raws), 4, 'raw: routed by key');
for my $i (0 .. $#raws)
{
	my ($raw, $event) = ($raws[$i], $events[$i]);

	is($raw->{body}, qq({"user_id":"$event->{user}","meeting_id":"1"}), "raw $i: the payload alone");
	ok(take_causes($raw->{headers}), "raw $i: which command emitted it");
	is_deeply($raw->{headers},
		{ event_id => $event->{id}, event_name => 'user_joined_ecst', event_timestamp => $event->{time}, topic => 'user_ecst_events',
			traceparent => '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01', tenant => "Zo\x{eb}", n => '1' },
		"raw $i: headers");
	is_deeply([ @$raw{qw(messageId deliveryMode exchange routingKey)} ], [ $event->{id}, 1, 'meetings', 'raw.1' ],
		"raw $i: not persistent, if the server says so");
}

# What RabbitMQ could not take is a dead letter at once; the rest goes on.
$node->safe_psql('postgres', q(
	SELECT cqrs_emit('user_joined_ecst', '{"n": 1}', repeat('k', 300));
	SELECT cqrs_emit('user_joined_ecst', '{"n": 2}', '1', '{"CC": "elsewhere"}');
	SELECT cqrs_emit('user_joined_ecst', '{"n": 3}', '1')));
ok(RabbitMQ::wait_status($node, 'postgres', 'raws', '0/0/0/2'), 'messages that RabbitMQ cannot take are refused');
is($node->safe_psql('postgres', "SELECT attempts, error FROM cqrs_dead_letters('raws') ORDER BY position"),
	"1|the message's routing key has 304 bytes; RabbitMQ allows 255\n1|the event has a header \"CC\", by which RabbitMQ would route it",
	'after one attempt, and for a reason');
is(join(' ', map { $_->{body} } $broker->messages('by_key')), '{"n":3}', 'later ones, of the same key too, are delivered');
$node->safe_psql('postgres', "ALTER SERVER raws OPTIONS (ADD max_message_size '100');
	SELECT cqrs_emit('user_joined_ecst', jsonb_build_object('text', repeat('x', 200)))");
ok(RabbitMQ::wait_status($node, 'postgres', 'raws', '0/0/0/3'), 'so are larger ones than the server allows');

# The broker allows less than the server.
$broker->stop;
$broker->configure('max_message_size = 1000');
$broker->start;
$node->safe_psql('postgres', q(
	SELECT cqrs_emit('user_joined_notification', jsonb_build_object('text', repeat('x', 2000)), '1');
	SELECT cqrs_emit('user_joined_notification', '{"n": 4}', '1')));
ok(RabbitMQ::wait_status($node, 'postgres', 'to-rabbit', '0/0/0/2'), 'a message too large for the broker is not tried for ever');
like($node->safe_psql('postgres', "SELECT error FROM cqrs_dead_letters('to-rabbit') WHERE event_name = 'user_joined_notification'"),
	qr/^RabbitMQ at 127\.0\.0\.1:\d+ did not take the message: PRECONDITION_FAILED - message size \d+ is larger than configured max size 1000$/,
	'and the broker says why');
like(($broker->messages('user_notification_events'))[-1]{body}, qr/^\{"payload":\{"n":4\}/, 'what comes after it is delivered');

# Nobody sees the password.
my $seen = slurp_file($node->logfile) . $node->safe_psql('postgres',
	'SELECT s, h FROM cqrs_subscription_status s, cqrs_health() h; SELECT * FROM cqrs_dead_letters(\'raws\')');
unlike($seen, qr/\Q$RabbitMQ::password\E/, 'the password is in no log, error or view');

$node->stop('fast');
$broker->stop;
done_testing();
