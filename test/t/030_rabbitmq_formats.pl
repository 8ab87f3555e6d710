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
use Meetings;
use RabbitMQ;

my $broker = RabbitMQ->new('formats');
$broker->start;
$broker->command('queue user_notification_events', 'queue user_ecst_events',
	'exchange meetings topic', 'queue by_key', 'bind by_key meetings raw.#',
	'queue clouds', 'bind clouds meetings user_ecst_events.user_joined_ecst.#');

my $node = new_server('main', 'log_statement = none');
$node->start;
set_up_meetings($node);
$node->safe_psql('postgres', q(
	CREATE ROLE app LOGIN;
	GRANT SELECT, INSERT ON cqrs_topics.user_notification_events, cqrs_topics.user_ecst_events TO app;
	GRANT EXECUTE ON FUNCTION cqrs_subscribe TO app));
$broker->create_server($node, 'postgres', 'events');
$broker->create_server($node, 'postgres', 'clouds',
	exchange => 'meetings', routing_key => '{topic}.{event_name}.{key}', cloudevents_source => '/meetings');
$broker->create_server($node, 'postgres', 'raws',
	exchange => 'meetings', routing_key => 'raw.{key}', persistent => 'false');

# What is wrong with options.
my $options = 'host, port, vhost, exchange, routing_key, mandatory, persistent, heartbeat, connect_timeout, frame_max, '
  . 'tls, tls_verify, tls_ca_file, tls_cert_file, tls_key_file, window, cloudevents_source, max_message_size';
is(error_parts($node, "ALTER SERVER events OPTIONS (ADD hosts 'x')"),
	"HV00D: a server of foreign-data wrapper \"cqrs_rabbitmq\" has no option \"hosts\"|Valid options in this context are: $options.",
	'the valid options of a server are listed');
is(error_parts($node, "ALTER SERVER events OPTIONS (ADD password 'x')"),
	"HV00D: a server of foreign-data wrapper \"cqrs_rabbitmq\" has no option \"password\"|It is an option of a user mapping.|Valid options in this context are: $options.",
	'a password belongs to the user mapping');
is(error_parts($node, "CREATE USER MAPPING FOR app SERVER events OPTIONS (user 'x')"),
	'HV00D: a user mapping of foreign-data wrapper "cqrs_rabbitmq" has no option "user"|Valid options in this context are: username, password.',
	'and those of a user mapping');
like(error_parts($node, "ALTER FOREIGN DATA WRAPPER cqrs_rabbitmq OPTIONS (host 'x')"),
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

	is(error_parts($node, "CREATE SERVER wrong FOREIGN DATA WRAPPER cqrs_rabbitmq OPTIONS ($name '$value')"),
		"22023: option \"$name\" of a server of foreign-data wrapper \"cqrs_rabbitmq\" cannot have this value|$detail",
		"$name '$value' is not allowed");
}
$node->safe_psql('postgres', 'GRANT USAGE ON FOREIGN DATA WRAPPER cqrs_rabbitmq TO app');
like(error_parts($node, "CREATE SERVER mine FOREIGN DATA WRAPPER cqrs_rabbitmq OPTIONS (tls_ca_file '/etc/passwd')", 'app'),
	qr/^42501: permission denied to set option "tls_ca_file"/, 'files are for superusers to name');

# Who may use a server.
my $subscribe = "SELECT cqrs_subscribe('to-rabbit', ARRAY['user_notification_events', 'user_ecst_events'], server => 'events')";
like(error_parts($node, $subscribe, 'app'), qr/^42501: permission denied for foreign server events/, 'USAGE on the server is needed');
$node->safe_psql('postgres', 'GRANT USAGE ON FOREIGN SERVER events, clouds, raws TO app');
$node->safe_psql('postgres', 'CREATE SERVER bare FOREIGN DATA WRAPPER cqrs_rabbitmq; GRANT USAGE ON FOREIGN SERVER bare TO app');
is(error_parts($node, $subscribe =~ s/'events'/'bare'/r, 'app'),
	'22023: server "bare" cannot be connected to as it is|the user mapping has no option "username"|Use ALTER SERVER, or CREATE USER MAPPING FOR app.',
	'and credentials');
$node->safe_psql('postgres', "ALTER SERVER bare OPTIONS (tls_verify 'false'); CREATE USER MAPPING FOR app SERVER bare OPTIONS (username 'x', password 'y')");
like(error_parts($node, $subscribe =~ s/'events'/'bare'/r, 'app'), qr/the server has option "tls_verify", but not "tls"/,
	'options that do nothing are not accepted silently');

# The example, in three formats.
$node->safe_psql('postgres', "SET ROLE app; $subscribe;
	SELECT cqrs_subscribe('clouds', ARRAY['user_ecst_events'], server => 'clouds', format => 'cloudevents');
	SELECT cqrs_subscribe('raws', ARRAY['user_ecst_events'], server => 'raws', format => 'raw')");
join_meeting($node);
ok(wait_status($node, 'postgres', $_, '0/0/0/0'), "subscription $_ has delivered") for qw(to-rabbit clouds raws);

for my $topic (qw(user_notification_events user_ecst_events))
{
	my @messages = $broker->messages($topic);
	my @events = meeting_events($node, $topic);

	is(scalar(@messages), 4, "$topic: the event of the transaction that rolled back is not there");
	for my $i (0 .. $#messages)
	{
		my ($message, $event) = ($messages[$i], $events[$i]);

		is($message->{body}, $event->{envelope}, "$topic $i: the envelope of python-cqrs");
		is_deeply([ @$message{qw(messageId type contentType deliveryMode timestamp exchange routingKey)} ],
			[ $event->{id}, $event->{name}, 'application/json', 2, $event->{seconds}, '', $topic ],
			"$topic $i: its properties");
	}
	ok(take_causes($messages[0]{headers}), "$topic: which command emitted it");
	is_deeply($messages[0]{headers},
		$topic eq 'user_ecst_events' ?
		{ traceparent => $traceparent, tenant => "Zo\x{eb}", n => '1' } : {},
		"$topic: the event's own headers");
}

my @events = meeting_events($node, 'user_ecst_events');
my ($out, $err) = ('', '');
ok(IPC::Run::run([ 'node', consumer('rabbitmq_cloudevents.js'), $broker->url, 'clouds' ], '<', \undef, '>', \$out, '2>', \$err),
	'the SDK of CloudEvents accepts what it gets') or diag($err);
my @clouds = map { decode_json($_) } split /\n/, $out;
is(scalar(@clouds), 4, 'all of it');
check_cloud($clouds[$_], $events[$_], "cloudevents $_") for 0 .. $#clouds;

my @raws = $broker->messages('by_key');
is(scalar(@raws), 4, 'raw: routed by key');
for my $i (0 .. $#raws)
{
	my ($raw, $event) = ($raws[$i], $events[$i]);

	is($raw->{body}, $event->{payload}, "raw $i: the payload alone");
	ok(take_causes($raw->{headers}), "raw $i: which command emitted it");
	is_deeply($raw->{headers},
		{ event_id => $event->{id}, event_name => 'user_joined_ecst', event_timestamp => $event->{time}, topic => 'user_ecst_events',
			traceparent => $traceparent, tenant => "Zo\x{eb}", n => '1' },
		"raw $i: headers");
	is_deeply([ @$raw{qw(messageId deliveryMode exchange routingKey)} ], [ $event->{id}, 1, 'meetings', 'raw.1' ],
		"raw $i: not persistent, if the server says so");
}

# What RabbitMQ could not take is a dead letter at once; the rest goes on.
$node->safe_psql('postgres', q(
	SELECT cqrs_emit('user_joined_ecst', '{"n": 1}', repeat('k', 300));
	SELECT cqrs_emit('user_joined_ecst', '{"n": 2}', '1', '{"CC": "elsewhere"}');
	SELECT cqrs_emit('user_joined_ecst', '{"n": 3}', '1')));
ok(wait_status($node, 'postgres', 'raws', '0/0/0/2'), 'messages that RabbitMQ cannot take are refused');
is($node->safe_psql('postgres', "SELECT attempts, error FROM cqrs_dead_letters WHERE subscription = 'raws' ORDER BY position"),
	"1|the message's routing key has 304 bytes; RabbitMQ allows 255\n1|the event has a header \"CC\", by which RabbitMQ would route it",
	'after one attempt, and for a reason');
is(join(' ', map { $_->{body} } $broker->messages('by_key')), '{"n":3}', 'later ones, of the same key too, are delivered');
$node->safe_psql('postgres', "ALTER SERVER raws OPTIONS (ADD max_message_size '100');
	SELECT cqrs_emit('user_joined_ecst', jsonb_build_object('text', repeat('x', 200)))");
ok(wait_status($node, 'postgres', 'raws', '0/0/0/3'), 'so are larger ones than the server allows');

# The broker allows less than the server.
$broker->stop;
$broker->configure('max_message_size = 1000');
$broker->start;
$node->safe_psql('postgres', q(
	SELECT cqrs_emit('user_joined_notification', jsonb_build_object('text', repeat('x', 2000)), '1');
	SELECT cqrs_emit('user_joined_notification', '{"n": 4}', '1')));
ok(wait_status($node, 'postgres', 'to-rabbit', '0/0/0/2'), 'a message too large for the broker is not tried for ever');
like($node->safe_psql('postgres', "SELECT error FROM cqrs_dead_letters WHERE subscription = 'to-rabbit' AND event_name = 'user_joined_notification'"),
	qr/^RabbitMQ at 127\.0\.0\.1:\d+ did not take the message: PRECONDITION_FAILED - message size \d+ is larger than configured max size 1000$/,
	'and the broker says why');
like(($broker->messages('user_notification_events'))[-1]{body}, qr/^\{"payload":\{"n":4\}/, 'what comes after it is delivered');

# Nobody sees the password.
my $seen = slurp_file($node->logfile) . $node->safe_psql('postgres',
	'SELECT s, h FROM cqrs_subscription_status s, cqrs_health() h; SELECT * FROM cqrs_dead_letters WHERE subscription = \'raws\'');
unlike($seen, qr/\Q$RabbitMQ::password\E/, 'the password is in no log, error or view');

$node->stop('fast');
$broker->stop;
done_testing();
