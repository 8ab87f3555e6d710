# A peer that answers as RabbitMQ is not trusted: whatever it sends, the server
# survives, the status says what is wrong, and when the peer behaves again,
# nothing is lost. It may be published to, or consumed from.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use AmqpPeer;
use CqrsTest;
use RabbitMQ;

my $peer = AmqpPeer->new;
my $node = new_server('main', 'restart_after_crash = on');
$node->start;
$node->safe_psql('postgres', qq(
	CREATE EXTENSION cqrs_outbox_rabbitmq CASCADE;
	CREATE SERVER peer FOREIGN DATA WRAPPER cqrs_rabbitmq OPTIONS (host '127.0.0.1', port '$peer->{port}', connect_timeout '2');
	CREATE USER MAPPING FOR PUBLIC SERVER peer OPTIONS (username 'u', password 'p');
	SELECT cqrs_register_event('happened', 'things');
	SELECT cqrs_subscribe('out', ARRAY['things'], server => 'peer', max_attempts => 1000,
						  retry_delay => '10 ms', max_retry_delay => '50 ms')));
my $started = $node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()');

# nested(DEPTH): a table with an array in an array ...
sub nested
{
	my ($depth) = @_;
	my $array = '';

	$array = pack('a N/a*', 'A', $array) for 1 .. $depth;
	return pack('N/a*', pack('C/a*', 'k') . $array);
}

my $keeps = 'does not keep to AMQP 0-9-1';
my $speaks = 'does not speak AMQP 0-9-1';
my $id = pack('C/a*', 'f' x 36);
my $message_id = 0x0080;
my @hostile = (
	[ 'a header of another class', AmqpPeer::returned() . AmqpPeer::header(10, 0, 0, ''), $keeps ],
	[ 'a header of another class, with flags', AmqpPeer::returned() . AmqpPeer::header(90, 0, 0xFFF0, ''), $keeps ],
	[ 'a header of no class', AmqpPeer::returned() . AmqpPeer::header(4711, 0, $message_id, $id), 'AMQP' ],
	[ 'a header without a return', AmqpPeer::header(60, 0, $message_id, $id), $keeps ],
	[ 'two returns', AmqpPeer::returned() . AmqpPeer::returned(), $keeps ],
	[ 'a confirm within a return', AmqpPeer::returned() . AmqpPeer::ack(1, 0), $keeps ],
	[ 'a confirm within a body', AmqpPeer::returned() . AmqpPeer::header(60, 10, $message_id, $id) . AmqpPeer::ack(1, 0), $keeps ],
	[ 'a body without a return', AmqpPeer::body('x'), $keeps ],
	[ 'too long a body', AmqpPeer::returned() . AmqpPeer::header(60, 3, $message_id, $id) . AmqpPeer::body('xxxx'), $keeps ],
	[ 'a confirm of the largest number', AmqpPeer::ack(~0, 0), $keeps ],
	[ 'a confirm of all up to it', AmqpPeer::ack(~0, 1), $keeps ],
	[ 'a negative confirm of it', AmqpPeer::nack(~0, 0), $keeps ],
	[ 'a confirm of number 0', AmqpPeer::ack(0, 0), $keeps ],
	[ 'a confirm of what was not sent', AmqpPeer::ack(1000, 0), $keeps ],
	[ 'a frame on another channel', AmqpPeer::frame(1, 7, pack('nnQ>C', 60, 80, 1, 0)), 'AMQP' ],
	[ 'a confirm on channel 0', AmqpPeer::frame(1, 0, pack('nnQ>C', 60, 80, 1, 0)), $keeps ],
	[ 'a message that nobody consumes', AmqpPeer::method_frame(60, 60, pack('C/a* Q>C C/a* C/a*', 'tag', 1, 0, '', '')), $keeps ],
	[ 'a method of no class', AmqpPeer::method_frame(4711, 1, ''), $speaks ],
	[ 'a method without its arguments', AmqpPeer::method_frame(60, 80, ''), $speaks ],
	[ 'a string that is longer than its frame', AmqpPeer::method_frame(60, 50, pack('n C', 312, 255)), $speaks ],
	[ 'a frame without an end', pack('Cn N/a* C', 1, 1, pack('nnQ>C', 60, 80, 1, 0), 0), $speaks ],
	[ 'a frame longer than agreed', pack('CnN', 1, 1, 0xFFFFFFF0), 'AMQP' ],
	[ 'properties nested a thousand times', AmqpPeer::returned() . AmqpPeer::header(60, 0, 0x2000, nested(1000)) . AmqpPeer::ack(~0, 0), 'AMQP' ],
	[ 'properties nested without end', AmqpPeer::returned() . AmqpPeer::header(60, 0, 0x2000, nested(20000)) . AmqpPeer::ack(~0, 0), 'AMQP' ],
	[ 'noise', join('', map { chr((7 * $_ * $_ + 13) % 256) } 1 .. 5000), 'RabbitMQ|AMQP' ],
	[ 'an end of the connection without its arguments', AmqpPeer::method_frame(10, 50, '', 0), $speaks ],
	[ 'frames of 8 bytes', AmqpPeer::ack(~0, 0), 'wants frames of at most', AmqpPeer::tune(2047, 8, 0) ],
	[ 'frames of 1 byte', AmqpPeer::ack(~0, 0), 'wants frames of at most', AmqpPeer::tune(2047, 1, 0) ],
	[ 'frames of a negative size', AmqpPeer::ack(~0, 0), $keeps, AmqpPeer::tune(2047, 0xFFFFFFF0, 0) ],
	[ 'one channel, a heartbeat of hours', AmqpPeer::ack(~0, 0), $keeps, AmqpPeer::tune(1, 4096, 65535) ]);

for my $case (@hostile)
{
	my ($name, $answer, $error, $tune) = @$case;

	$peer->answer($answer, $tune);
	$node->safe_psql('postgres', "SELECT cqrs_emit('happened', '{}')");
	ok($node->poll_query_until('postgres', "SELECT error ~ '$error' FROM cqrs_subscription_status"), "$name: the status says so")
	  or diag($node->safe_psql('postgres', 'SELECT error FROM cqrs_subscription_status'));
	$peer->answer(undef);
	ok(wait_status($node, 'postgres', 'out', '0/0/0/0'), "$name: everything is delivered afterwards");
}

# What is allowed, if unusual.
for my $case (
	[ 'a return of another message', AmqpPeer::returned() . AmqpPeer::header(60, 4, $message_id, $id) . AmqpPeer::body('xx') . AmqpPeer::body('xx') ],
	[ 'a return without an id', AmqpPeer::returned() . AmqpPeer::header(60, 0, 0, '') ])
{
	my ($name, $answer) = @$case;

	$peer->answer($answer . AmqpPeer::ack(0, 1));
	$node->safe_psql('postgres', "SELECT cqrs_emit('happened', '{}')");
	ok(wait_status($node, 'postgres', 'out', '0/0/0/0'), "$name: is no fault");
}

# The same peer, consumed from.
$node->safe_psql('postgres', q(
	SELECT cqrs_unsubscribe('out');
	SELECT cqrs_create_topic('inbox');
	SELECT cqrs_create_consumer('in', 'peer', 'queue', 'inbox', event_name => 'happened')));

# message(ID, FLAGS, PROPERTIES, SIZE): the first of a channel, with body {}.
sub message
{
	my ($id, $flags, $properties, $size) = @_;

	return AmqpPeer::deliver(1)
	  . AmqpPeer::header(60, $size // 2, $message_id | ($flags // 0), ($properties // '') . pack('C/a*', $id))
	  . AmqpPeer::body('{}');
}

my $header = AmqpPeer::header(60, 2, $message_id, $id);
my @consumed = (
	[ 'a message of another number', AmqpPeer::deliver(2) . $header . AmqpPeer::body('{}'), $keeps ],
	[ 'the same number twice', message('first') . message('second'), $keeps ],
	[ 'a message in a message', AmqpPeer::deliver(1) . AmqpPeer::deliver(2), $keeps ],
	[ 'a confirm', AmqpPeer::ack(1, 0), $keeps ],
	[ 'a header that is no message\'s', $header, $keeps ],
	[ 'a body that is no message\'s', AmqpPeer::body('x'), $keeps ],
	[ 'a body instead of a header', AmqpPeer::deliver(1) . AmqpPeer::body('x'), $keeps ],
	[ 'a header of another class', AmqpPeer::deliver(1) . AmqpPeer::header(10, 2, 0, ''), $keeps ],
	[ 'too long a body', message('long', 0, '', 1), $keeps ],
	[ 'a body longer than any', message('longest', 0, '', ~0), $keeps ],
	[ 'a method without its arguments', AmqpPeer::method_frame(60, 60, ''), $speaks ],
	[ 'the end of the consumer', AmqpPeer::method_frame(60, 30, pack('C/a* C', 'tag', 1)), 'was deleted, or has moved' ]);

for my $case (@consumed)
{
	my ($name, $answer, $error) = @$case;

	$peer->answer($answer);
	$node->safe_psql('postgres', q(SELECT cqrs_pause_consumer('in'); SELECT cqrs_resume_consumer('in')));
	ok($node->poll_query_until('postgres', "SELECT error ~ '$error' FROM cqrs_consumer_status"), "consumed: $name: the status says so")
	  or diag($node->safe_psql('postgres', 'SELECT error FROM cqrs_consumer_status'));
	$peer->answer(message($name));
	ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM cqrs_topics.inbox WHERE headers->>'source_message_id' = \$\$$name\$\$"),
		"consumed: $name: it goes on");
}

# Headers as deep as they like.
for my $depth (20, 1000)
{
	$peer->answer(message("deep $depth", 0x2000, nested($depth)));
	$node->safe_psql('postgres', q(SELECT cqrs_pause_consumer('in'); SELECT cqrs_resume_consumer('in')));
	ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM cqrs_topics.inbox WHERE headers->>'source_message_id' = 'deep $depth'"),
		"headers nested $depth times");
}
is($node->safe_psql('postgres', q(
	SELECT string_agg((headers->>'k')::jsonb::text, ' ' ORDER BY position) FROM cqrs_topics.inbox WHERE headers ? 'k')),
	join(' ', map { '[' x $_->[0] . $_->[1] . ']' x $_->[0] } [ 20, '' ], [ 33, 'null' ]), 'are JSON, as far as anybody reads');
is($node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()'), $started, 'the server is the same');
unlike(slurp_file($node->logfile), qr/terminated by signal|was terminated|PANIC/, 'no process has crashed');

$node->stop('fast');
done_testing();
