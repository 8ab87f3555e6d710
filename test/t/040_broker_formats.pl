# A broker gets an event as documented, character by character, in each format,
# and from databases of other encodings. The broker is the peer of the example
# module.

use strict;
use warnings;
use utf8;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use ExamplePeer;

my $node = new_server('main');
my $peer = ExamplePeer->new;
my $port = $peer->port;
my $traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01';

# sql(SQL, DATABASE): its output
sub sql
{
	my ($sql, $dbname) = @_;

	utf8::encode($sql);
	return $node->safe_psql($dbname // 'postgres', $sql);
}

$node->append_conf('postgresql.conf', "cqrs_outbox.max_workers = 8\nlog_statement = none\n");
$node->start;
sql(qq(
	CREATE EXTENSION cqrs_outbox;
	CREATE EXTENSION cqrs_outbox_example;
	CREATE SERVER peer FOREIGN DATA WRAPPER cqrs_example OPTIONS (host '127.0.0.1', port '$port');
	CREATE SERVER named FOREIGN DATA WRAPPER cqrs_example
		OPTIONS (host '127.0.0.1', port '$port', cloudevents_source 'urn:shop:Größe');
	CREATE USER MAPPING FOR postgres SERVER peer OPTIONS (token 'a "secret"');
	SELECT cqrs_create_topic('orders');
	SELECT cqrs_register_event('order_placed', 'orders');
	SELECT cqrs_create_topic('bestellungen/größe 1');
	SELECT cqrs_register_event('"größe" geändert', 'bestellungen/größe 1');
));

for my $format (qw(cqrs cloudevents raw))
{
	sql("SELECT cqrs_subscribe('$format', ARRAY['orders', 'bestellungen/größe 1'], server => 'peer', format => '$format')");
}
sql("SELECT cqrs_subscribe('named', ARRAY['orders'], server => 'named', format => 'cloudevents')");

# One by one, to have an order between topics too.
sql(<<~'EOS');
	SELECT cqrs_emit('order_placed', $${"text": "é\u0001\u001f\u007f\b\f\n\r\t\"\\/😀", "": "",
		"numbers": [0, -1, 1.10, 1e20, 1e-7, 123456789012345678901234567890.5, 1.0],
		"nothing": null, "yes": true, "no": false, "object": {}, "array": [],
		"nested": [[1, [{"k": [null, "v", {}]}]], {"a": {"b": {"c": []}}}]}$$,
		key => E'cl\u00e9 "1"\n', event_id => '01890A5D-AC96-774B-BCCE-B302099A8057',
		headers => $${"text": "é \"1\"\n", "number": 1.50, "yes": true, "none": null, "array": [1, "2", {}],
			"object": {"b": "c"}, "": "empty name", "traceparent": "its own", "tracestate": "k=v",
			"event_id": "forged", "topic": "forged", "ce-id": "forged", "ce-subject": "forged"}$$);
	EOS
sql(<<~"EOS");
	SET cqrs_outbox.traceparent = '$traceparent';
	SELECT cqrs_emit('order_placed', '{}', event_id => '01890a5d-ac96-774b-bcce-b302099a8058');
	EOS
sql(<<~'EOS');
	SELECT cqrs_emit('order_placed', NULL, key => '', event_id => '01890a5d-ac96-774b-bcce-b302099a8059');
	SELECT cqrs_emit('"größe" geändert', '{"n": 1}', event_id => '01890a5d-ac96-774b-bcce-b302099a805a');
	EOS

# when(END): the time of the event whose id ends so, as text and in
# microseconds since 1970
sub when
{
	my ($end) = @_;

	return split /\|/, sql("SELECT to_char(emitted_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US+00:00'),
		(extract(epoch FROM emitted_at) * 1000000)::bigint
		FROM (SELECT * FROM cqrs_topics.orders UNION ALL SELECT * FROM cqrs_topics.\"bestellungen/größe 1\") e
		WHERE event_id::text LIKE '%$end'");
}

my %time;
my %microseconds;
($time{$_}, $microseconds{$_}) = when($_) for qw(8057 8058 8059 805a);

my $payload = '{"":"","no":false,"yes":true,"text":"é\u0001\u001f' . "\x7f" . '\b\f\n\r\t\"\\\\/😀","array":[],'
  . '"nested":[[1,[{"k":[null,"v",{}]}]],{"a":{"b":{"c":[]}}}],"object":{},"nothing":null,'
  . '"numbers":[0,-1,1.10,100000000000000000000,0.0000001,123456789012345678901234567890.5,1.0]}';
my %own_headers = (
	'' => 'empty name', text => qq(é "1"\n), number => '1.50', yes => 'true', array => '[1,"2",{}]',
	object => '{"b":"c"}', traceparent => 'its own', tracestate => 'k=v', event_id => 'forged',
	topic => 'forged', 'ce-id' => 'forged', 'ce-subject' => 'forged');
my $id = '01890a5d-ac96-774b-bcce-b302099a';

# received(CLIENT): its messages, by the end of the event's id
sub received
{
	my ($client) = @_;

	$peer->wait_messages("postgres/$client", $_[1] // 4);
	return map { substr($_->{message}{message_id}, -4) => $_->{message} } $peer->messages("postgres/$client");
}

# is_message(MESSAGE, EXPECTED, NAME): tag aside
sub is_message
{
	my ($message, $expected, $name) = @_;
	my ($end) = $expected->{message_id};

	delete $message->{tag};
	is_deeply($message,
		{
			topic => 'orders', event_name => 'order_placed', key => undef, content_type => 'application/json',
			headers => {}, %$expected, message_id => "$id$end", timestamp => $microseconds{$end}
		}, $name);
}

# envelope(PAYLOAD, END, EVENT NAME, TOPIC): as JSON
sub envelope
{
	my ($payload, $end, $name, $topic) = @_;

	return qq({"payload":$payload,"event_id":"$id$end","event_timestamp":"$time{$end}","event_name":"$name","topic":"$topic"});
}

my %cqrs = received('cqrs');
is_message($cqrs{8057},
	{ message_id => '8057', key => qq(clé "1"\n), headers => \%own_headers, body => envelope($payload, '8057', 'order_placed', 'orders') },
	'cqrs: the whole event');
is_message($cqrs{8058},
	{ message_id => '8058', headers => { traceparent => $traceparent }, body => envelope('{}', '8058', 'order_placed', 'orders') },
	'cqrs: no key, an empty payload, a trace');
is_message($cqrs{8059}, { message_id => '8059', key => '', content_type => undef, body => undef }, 'cqrs: a tombstone');
is_message($cqrs{'805a'},
	{
		message_id => '805a', topic => 'bestellungen/größe 1', event_name => '"größe" geändert',
		body => envelope('{"n":1}', '805a', '\"größe\" geändert', 'bestellungen/größe 1')
	}, 'cqrs: names are escaped');

# Who sends by himself gets the same.
for my $format (qw(cqrs cloudevents raw))
{
	my %message = received($format);

	for my $end (qw(8057 8058 805a))
	{
		my $body = sql(qq(SELECT convert_from(cqrs_envelope(ROW(position, event_id, event_name, topic, key, payload, headers, emitted_at)::cqrs_event, '$format'), 'UTF8')
				FROM cqrs_events(status => 'all') WHERE event_id::text LIKE '%$end'));

		utf8::decode($body);
		is($body, $message{$end}{body}, "cqrs_envelope: $format $end");
	}
}
like($peer->tell('received')->[0]{message}{message_id}, qr/^[0-9a-f]{8}-[0-9a-f]{4}-7/, 'ids are lower case');

# attributes(END, MORE): of CloudEvents
sub attributes
{
	my ($end, %more) = @_;

	return {
		'ce-specversion' => '1.0', 'ce-id' => "$id$end", 'ce-source' => '/postgres/orders', 'ce-type' => 'order_placed',
		'ce-time' => $time{$end}, %more
	};
}

my %cloudevents = received('cloudevents');
is_message($cloudevents{8057},
	{
		message_id => '8057', key => qq(clé "1"\n), body => $payload,
		headers => {
			%own_headers,
			%{ attributes('8057', 'ce-subject' => qq(clé "1"\n), 'ce-traceparent' => 'its own', 'ce-tracestate' => 'k=v') }
		}
	}, 'cloudevents: the whole event');
is_message($cloudevents{8058},
	{
		message_id => '8058', body => '{}',
		headers => attributes('8058', 'ce-traceparent' => $traceparent, traceparent => $traceparent)
	}, 'cloudevents: no key, an empty payload, a trace');
is_message($cloudevents{8059}, { message_id => '8059', key => '', content_type => undef, body => undef, headers => attributes('8059') },
	'cloudevents: a tombstone, and no empty subject');
is_message($cloudevents{'805a'},
	{
		message_id => '805a', topic => 'bestellungen/größe 1', event_name => '"größe" geändert', body => '{"n":1}',
		headers => attributes('805a', 'ce-source' => '/postgres/bestellungen%2Fgr%C3%B6%C3%9Fe%201', 'ce-type' => '"größe" geändert')
	}, 'cloudevents: the source is a URI reference');
my %named = received('named', 3);
is($named{8058}{headers}{'ce-source'}, 'urn:shop:Größe', 'cloudevents: the source that the server has');

# metadata(END, MORE): headers of the format raw
sub metadata
{
	my ($end, %more) = @_;

	return { event_id => "$id$end", event_name => 'order_placed', event_timestamp => $time{$end}, topic => 'orders', %more };
}

my %raw = received('raw');
is_message($raw{8057},
	{ message_id => '8057', key => qq(clé "1"\n), body => $payload, headers => { %own_headers, %{ metadata('8057') } } },
	'raw: the whole event');
is_message($raw{8058}, { message_id => '8058', body => '{}', headers => metadata('8058', traceparent => $traceparent) },
	'raw: no key, an empty payload, a trace');
is_message($raw{8059}, { message_id => '8059', key => '', content_type => undef, body => undef, headers => metadata('8059') },
	'raw: a tombstone');
is_message($raw{'805a'},
	{
		message_id => '805a', topic => 'bestellungen/größe 1', event_name => '"größe" geändert', body => '{"n":1}',
		headers => metadata('805a', topic => 'bestellungen/größe 1', event_name => '"größe" geändert')
	}, 'raw: names');

# What happened elsewhere says when. The message's own timestamp stays that of the
# emission: a broker may expire messages by it.
sql("INSERT INTO cqrs_topics.orders (event_name, payload, event_id, occurred_at)
	VALUES ('order_placed', '{}', '01890a5d-ac96-774b-bcce-b302099a805b', '2024-12-31 23:00:00.5+01')");
(undef, $microseconds{'805b'}) = when('805b');
my $occurred_at = $time{'805b'} = '2024-12-31T22:00:00.500000+00:00';
is_message({ received('cqrs', 5) }->{'805b'},
	{ message_id => '805b', headers => { occurred_at => $occurred_at }, body => envelope('{}', '805b', 'order_placed', 'orders') },
	'cqrs: when it happened');
is_message({ received('cloudevents', 5) }->{'805b'},
	{ message_id => '805b', body => '{}', headers => attributes('805b', occurred_at => $occurred_at) }, 'cloudevents: when it happened');
is_message({ received('raw', 5) }->{'805b'},
	{ message_id => '805b', body => '{}', headers => metadata('805b', occurred_at => $occurred_at) }, 'raw: when it happened');
received('named', 4);

my %hellos = map { $_->{client} => $_->{token} } @{ $peer->tell('hellos') };
is_deeply(\%hellos,
	{ 'postgres/cqrs' => 'a "secret"', 'postgres/cloudevents' => 'a "secret"', 'postgres/raw' => 'a "secret"', 'postgres/named' => undef },
	'the module has the options of the user mapping');

sql("SELECT cqrs_alter_subscription('cqrs', format => 'raw')");
sql(q(SELECT cqrs_emit('order_placed', '{"n": 1}')));
$peer->wait_messages('postgres/cqrs', 6);
is(($peer->messages('postgres/cqrs'))[5]{message}{body}, '{"n":1}', 'the format can be changed');
sql("SELECT cqrs_unsubscribe(s) FROM unnest(ARRAY['cqrs', 'cloudevents', 'raw', 'named']) s");

# ----------------------------------------------------------------------
# Other encodings
# ----------------------------------------------------------------------

# set_up(DATABASE, ENCODING): a subscription in a database that has it
sub set_up
{
	my ($dbname, $encoding) = @_;

	sql(qq(CREATE DATABASE "$dbname" TEMPLATE template0 ENCODING '$encoding' LC_COLLATE 'C' LC_CTYPE 'C'));
	sql(qq(
		SET client_encoding = 'UTF8';
		CREATE EXTENSION cqrs_outbox;
		CREATE EXTENSION cqrs_outbox_example;
		CREATE SERVER peer FOREIGN DATA WRAPPER cqrs_example OPTIONS (host '127.0.0.1', port '$port');
		CREATE SERVER named FOREIGN DATA WRAPPER cqrs_example
			OPTIONS (host '127.0.0.1', port '$port', cloudevents_source 'urn:Größe');
		SELECT cqrs_register_event('größe', 'größe');
		SELECT cqrs_subscribe('cqrs', ARRAY['größe'], server => 'peer');
		SELECT cqrs_subscribe('cloudevents', ARRAY['größe'], server => 'peer', format => 'cloudevents');
		SELECT cqrs_subscribe('named', ARRAY['größe'], server => 'named', format => 'cloudevents');
	), $dbname);
}

# message(CLIENT): its first
sub message
{
	my ($client) = @_;

	$peer->wait_messages($client, 1);
	return ($peer->messages($client))[0]{message};
}

set_up('latin 1', 'LATIN1');
sql(q(SET client_encoding = 'UTF8'; SELECT cqrs_emit('größe', '{"é\n": "\"ß\""}', key => 'clé', headers => '{"tête": "ö", "à": ["ü"]}')),
	'latin 1');
my $message = message('latin 1/cqrs');
like($message->{body}, qr/^\{"payload":\{"é\\n":"\\"ß\\""\},.*,"event_name":"größe","topic":"größe"\}$/, 'LATIN1: the body is UTF-8');
is_deeply([ @$message{qw(topic event_name key headers)} ], [ 'größe', 'größe', 'clé', { 'tête' => 'ö', 'à' => '["ü"]' } ],
	'LATIN1: and so is all else');
$message = message('latin 1/cloudevents');
is($message->{headers}{'ce-source'}, '/latin%201/gr%C3%B6%C3%9Fe', 'LATIN1: the source');
is(message('latin 1/named')->{headers}{'ce-source'}, 'urn:Größe', 'LATIN1: the source that the server has');

# Bytes that are no UTF-8 cannot be sent.
set_up('ascii', 'SQL_ASCII');
sql(q(
	SET client_encoding = 'SQL_ASCII';
	SELECT cqrs_emit('größe', (E'{"n": "\xe9"}')::jsonb);
	SELECT cqrs_emit('größe', '{"n": "é"}');
), 'ascii');
like(message('ascii/cqrs')->{body}, qr/^\{"payload":\{"n":"é"\}/, 'SQL_ASCII: what is UTF-8 is sent');
is(scalar($peer->messages('ascii/cqrs')), 1, 'SQL_ASCII: what is not, is not');
ok($node->poll_query_until('ascii',
		"SELECT count(*) = 1 FROM cqrs_dead_letters WHERE subscription = 'cqrs' AND error_sqlstate = '22021' AND error LIKE 'invalid byte sequence%'"),
	'SQL_ASCII: but a dead letter');

$peer->stop;
$node->stop;
done_testing();
