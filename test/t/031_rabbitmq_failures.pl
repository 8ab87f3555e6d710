# Whatever goes wrong with RabbitMQ, the status says what, in words that a
# person can act on. A fault of the connection, or of a broker that rejects
# everything, counts as no event's attempt; when it is over, everything is
# delivered, in order by key. An event that is rejected alone is tried again, and
# given up in the end.

use strict;
use warnings;

use JSON::PP qw(decode_json);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use RabbitMQ;
use TcpProxy;

my $broker = RabbitMQ->new('failures');
my $node = new_server('main');
$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('happened', 'things')));
$broker->create_server($node, 'postgres', 'events', port => $broker->{port}, heartbeat => 1, connect_timeout => 2);
$node->safe_psql('postgres', q(
	SELECT cqrs_subscribe('out', ARRAY['things'], server => 'events', max_attempts => 3,
						  retry_delay => '100 ms', max_retry_delay => '500 ms')));

my $at = "RabbitMQ at 127.0.0.1:$broker->{port}";
my $last = 0;
my $first = 1;

# emit(COUNT): events of five keys, numbered.
sub emit
{
	my ($count) = @_;
	my $from = $last + 1;

	$last += $count;
	$node->safe_psql('postgres', qq(
		SELECT cqrs_emit_many('happened', array_agg(jsonb_build_object('n', i, 'text', repeat('x', 200)) ORDER BY i),
							  array_agg((i % 5)::text ORDER BY i))
		FROM generate_series($from, $last) i));
	return;
}

# server(ACTION): changes options of the server.
sub server
{
	my ($action) = @_;

	$node->safe_psql('postgres', "ALTER SERVER events OPTIONS ($action)");
	return;
}

# is_failing(TEXT, NAME): until that is what is wrong; no event is to blame.
sub is_failing
{
	my ($text, $name) = @_;

	ok(wait_error($node, 'postgres', 'out', quotemeta $text), "$name: the status says so");
	is($node->safe_psql('postgres', q(SELECT lag_events > 0, retrying, waiting, dead, error_position FROM cqrs_subscription_status)),
		't|0|0|0|', "$name: no attempt is counted");
	return;
}

# is_rejecting(TEXT, NAME): until everything is rejected, and no event to blame.
sub is_rejecting
{
	my ($text, $name) = @_;

	ok(wait_error($node, 'postgres', 'out', quotemeta $text), "$name: the status says so");
	ok($node->poll_query_until('postgres', 'SELECT max(failures) > 4 FROM cqrs.failure'), "$name: it is tried again and again");
	is($node->safe_psql('postgres', "SELECT count(*), bool_and(detail LIKE '%: ' || \$\$$text\$\$)::text FROM cqrs_health() WHERE severity = 'error' AND object = 'subscription \"out\"'"),
		'1|true', "$name: cqrs_health() says why");
	is($node->safe_psql('postgres', q(SELECT max(attempts), (SELECT count(*) FROM cqrs.dead_letter) FROM cqrs.retry)),
		'0|0', "$name: no attempt is counted");
	return;
}

# is_delivered(NAME, QUEUE): all that was emitted since the last call, in order
# by key once duplicates are removed.
sub is_delivered
{
	my ($name, $queue) = @_;
	my (%seen, %of_key, %expected);

	ok(wait_status($node, 'postgres', 'out', '0/0/0/0'), "$name: everything is delivered");
	for my $message ($broker->messages($queue // 'things'))
	{
		my $n = decode_json($message->{body})->{payload}{n};

		push @{ $of_key{ $n % 5 } }, $n unless $seen{ $message->{messageId} }++;
	}
	push @{ $expected{ $_ % 5 } }, $_ for $first .. $last;
	is_deeply(\%of_key, \%expected, "$name: in order by key");
	$first = $last + 1;
	return;
}

# Not there at first.
emit(100);
is_failing("could not connect to $at: connection refused; nothing listens there", 'broker down');
$broker->start;
is_rejecting("queue \"things\" does not exist in vhost \"/\" of $at (NO_ROUTE)", 'no queue yet');
emit(100);
$broker->command('queue things');
is_delivered('broker up, queue made');

# Stopped, and started again.
$broker->stop;
emit(1000);
is_failing("could not connect to $at: connection refused", 'broker stopped');
$broker->start;
is_delivered('broker started again');

# It crashes, with events on their way.
emit(3000);
$broker->crash;
is_failing("could not connect to $at: connection refused", 'broker crashed');
$broker->start;
is_delivered('broker started after a crash');

# One of several hosts.
server("SET host 'localhost:1, 127.0.0.1'");
emit(10);
is_delivered('another host is tried');
server("SET host '127.0.0.1'");

# The network is cut in the middle of a batch, more than once.
my $proxy = TcpProxy->new($broker->{port});
my $through = "RabbitMQ at 127.0.0.1:$proxy->{port}";
server("SET port '$proxy->{port}'");
my $offset = -s $node->logfile;
for (1 .. 3)
{
	$proxy->tell('cut 300000');
	emit(2000);
	$node->wait_for_log(qr/could not deliver to server "events" of subscription "out".*\n.*DETAIL:  .*\Q$through\E/, $offset);
	$offset = -s $node->logfile;
}
pass('network cut in the middle of a batch: the log says so');
is_delivered('network cut in the middle of a batch');

# It becomes a black hole, and stays one for those who connect.
emit(1000);
$proxy->tell('hole');
emit(1000);
is_failing("$through accepts connections, but did not answer within 2 seconds", 'black hole');
like(slurp_file($node->logfile, $offset), qr/\Q$through\E does not answer: nothing came for 2 seconds, twice the heartbeat/,
	'black hole: it is noticed by the heartbeat');
$proxy->tell('pass');
is_delivered('black hole gone');
server("SET port '$broker->{port}'");

# Credentials.
$node->safe_psql('postgres', "ALTER USER MAPPING FOR PUBLIC SERVER events OPTIONS (SET password 'wrong')");
emit(10);
is_failing("$at refused username or password of the user mapping: ACCESS_REFUSED", 'wrong password');
$node->safe_psql('postgres', "ALTER USER MAPPING FOR PUBLIC SERVER events OPTIONS (SET password '$RabbitMQ::password')");
is_delivered('right password');

# The virtual host.
server("ADD vhost 'nosuch'");
emit(10);
is_failing("vhost \"nosuch\" does not exist in $at", 'vhost missing');
server('DROP vhost');
is_delivered('vhost there');

# The exchange.
server("ADD exchange 'later'");
emit(10);
is_failing("exchange \"later\" does not exist in vhost \"/\" of $at", 'exchange missing');
$broker->command('exchange later fanout', 'bind things later x');
is_delivered('exchange there');
server('DROP exchange');

# Permissions.
$broker->command('bind things amq.topic things');
$broker->ctl('set_permissions', $RabbitMQ::username, '.*', '^$', '.*');
server("ADD exchange 'amq.topic'");
emit(10);
is_failing("the user of the user mapping may not publish to $at: ACCESS_REFUSED", 'no permission');
$broker->ctl('set_permissions', $RabbitMQ::username, '.*', '.*', '.*');
is_delivered('permission granted');
server('DROP exchange');

# The name of the host.
server("SET host 'no.such.host.invalid'");
emit(10);
is_failing("could not connect to RabbitMQ at no.such.host.invalid:$broker->{port}: the", 'no such host');
server("SET host '127.0.0.1'");
is_delivered('such a host');

# Closed by an administrator.
emit(3000);
$broker->ctl('close_all_connections', 'maintenance');
emit(10);
is_delivered('connection closed by an administrator');

# Alarms. The connection is closed while one lasts.
for my $alarm ([ 'disk', 'set_disk_free_limit', [ '100000GB' ], ['1MB'] ],
	[ 'memory', 'set_vm_memory_high_watermark', [ 'absolute', '1MB' ], ['0.4'] ])
{
	my ($name, $command, $set, $reset) = @$alarm;

	$broker->ctl($command, @$set);
	emit(2000);
	is_failing("$at accepts no messages at present: low on $name", "$name alarm");
	$broker->ctl($command, @$reset);
	is_delivered("$name alarm over");
}

# There is no such queue: everything comes back, and is no event's fault. Once the
# queue is there, all goes to it.
server("ADD routing_key 'elsewhere'");
emit(20);
is_rejecting("queue \"elsewhere\" does not exist in vhost \"/\" of $at (NO_ROUTE)", 'queue missing');
$broker->command('queue elsewhere');
is_delivered('queue made', 'elsewhere');

# There is one for all keys but one: its events have their attempts, and are given
# up. Once it is there for them, too, the dead letters go to it.
$broker->command('exchange keys direct', map { "bind elsewhere keys $_" } 0 .. 3);
server("ADD exchange 'keys', SET routing_key '{key}'");
emit(5);
ok(wait_status($node, 'postgres', 'out', '0/0/0/1'), 'no binding for one key: its event is given up');
is($node->safe_psql('postgres', "SELECT key, attempts, error_sqlstate, error FROM cqrs_dead_letters WHERE subscription = 'out'"),
	"4|3|HV000|no queue is bound to exchange \"keys\" for routing key \"4\" in vhost \"/\" of $at (NO_ROUTE)",
	'no binding for one key: after its attempts, with the reason');
$broker->command('bind elsewhere keys 4');
$node->safe_psql('postgres', "SELECT cqrs_redrive_all('out')");
is_delivered('bound, dead letter redriven', 'elsewhere');
server('DROP exchange');

# What cannot be routed is discarded, if the server says so.
server("SET routing_key 'nowhere', ADD mandatory 'false'");
emit(10);
ok(wait_status($node, 'postgres', 'out', '0/0/0/0'), 'not mandatory: what cannot be routed counts as delivered');
$first = $last + 1;
server('DROP mandatory');

# A full queue that rejects more.
$broker->command('queue small {"x-max-length":5,"x-overflow":"reject-publish"}');
server("SET routing_key 'small'");
$node->safe_psql('postgres', "SELECT cqrs_alter_subscription('out', max_attempts => 1000)");
emit(20);
ok(wait_error($node, 'postgres', 'out', quotemeta "$at did not take the message (basic.nack); a queue may be full"), 'queue full: the status says so');
my @taken;
wait_until(sub {
	push @taken, map { decode_json($_->{body})->{payload}{n} } $broker->messages('small');
	return @taken >= 20;
});
is_deeply([ sort { $a <=> $b } @taken ], [ $first .. $last ], 'queue full: what it has no room for comes later, once');
ok(wait_status($node, 'postgres', 'out', '0/0/0/0'), 'queue full: nothing is given up');

$node->stop('fast');
$broker->stop;
done_testing();
