# TLS to RabbitMQ works with an authority of one's own and a client certificate;
# a certificate of another authority or for another host, and a client without
# one, are refused.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use RabbitMQ;

my $dir = PostgreSQL::Test::Utils::tempdir;

certificate($dir, $_, $_) for qw(ours theirs);
certificate($dir, 'server', 'server', 'ours', "subjectAltName = IP:127.0.0.1, DNS:rabbit.test\nextendedKeyUsage = serverAuth\n");
certificate($dir, 'client', 'client', 'ours', "extendedKeyUsage = clientAuth\n");

my $broker = RabbitMQ->new('tls');
my $port = PostgreSQL::Test::Cluster::get_free_port();
append_to_file("$broker->{dir}/rabbitmq.conf", qq(
listeners.ssl.1 = 127.0.0.1:$port
ssl_options.cacertfile = $dir/ours.crt
ssl_options.certfile = $dir/server.crt
ssl_options.keyfile = $dir/server.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
));
$broker->start;
$broker->command('queue things');

my $node = new_server('main');
$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('happened', 'things')));
$broker->create_server($node, 'postgres', 'events', port => $port, tls => 'on', connect_timeout => 5,
	tls_ca_file => "$dir/ours.crt", tls_cert_file => "$dir/client.crt", tls_key_file => "$dir/client.key");
$node->safe_psql('postgres', q(
	SELECT cqrs_subscribe('out', ARRAY['things'], server => 'events', retry_delay => '100 ms', max_retry_delay => '500 ms')));

my $emitted = 0;

# delivers(NAME): one more event.
sub delivers
{
	my ($name) = @_;

	$emitted++;
	$node->safe_psql('postgres', "SELECT cqrs_emit('happened', '{}')");
	ok(wait_status($node, 'postgres', 'out', '0/0/0/0'), $name);
	is($broker->command('count things'), $emitted, "$name: it is there");
	return;
}

# refuses(NAME, ACTION, UNDO, TEXTS...): with the options of the server changed
# and back, an event is not delivered, and one of the texts says why.
sub refuses
{
	my ($name, $action, $undo, @texts) = @_;
	my $like = join ' OR ', map { "error LIKE \$\$%$_%\$\$" } @texts;

	$node->safe_psql('postgres', "ALTER SERVER events OPTIONS ($action)");
	$node->safe_psql('postgres', "SELECT cqrs_emit('happened', '{}')");
	$emitted++;
	ok($node->poll_query_until('postgres', "SELECT $like FROM cqrs_subscription_status"), $name)
	  or diag($node->safe_psql('postgres', 'SELECT error FROM cqrs_subscription_status'));
	is($node->safe_psql('postgres', 'SELECT lag_events, retrying, dead FROM cqrs_subscription_status'), '1|0|0',
		"$name: nothing is delivered, and nothing given up");
	$node->safe_psql('postgres', "ALTER SERVER events OPTIONS ($undo)");
	ok(wait_status($node, 'postgres', 'out', '0/0/0/0'), "$name: delivered once it is right again");
	return;
}

my $at = "RabbitMQ at 127.0.0.1:$port";

delivers('an authority of our own, and a client certificate');
is($broker->ctl('list_connections', 'name', 'ssl') =~ /\ttrue$/m ? 1 : 0, 1, 'the connection uses TLS');

# A lot, so that much is read and written at a time.
$node->safe_psql('postgres', q(
	SELECT cqrs_emit_many('happened', array_agg(jsonb_build_object('n', i, 'text', repeat('x', i % 2000)))) FROM generate_series(1, 5000) i));
$emitted += 5000;
ok(wait_status($node, 'postgres', 'out', '0/0/0/0'), 'many events');
is($broker->command('count things'), $emitted, 'many events: they are there');

# Consumed from, with more than the library reads at a time.
$broker->command('queue back', 'fill back 1 5000');
$node->safe_psql('postgres', q(
	SELECT cqrs_create_topic('back');
	SELECT cqrs_create_consumer('in', 'events', 'back', 'back', event_name => 'happened')));
ok($node->poll_query_until('postgres', 'SELECT count(*) = 5000 FROM cqrs_topics.back'), 'a queue is consumed');
ok(wait_until(sub { $broker->ctl('list_queues', 'name', 'messages') =~ /^back\t0$/m }), 'and empty');
$node->safe_psql('postgres', q(SELECT cqrs_drop_consumer('in')));

refuses('another authority', "SET tls_ca_file '$dir/theirs.crt'", "SET tls_ca_file '$dir/ours.crt'",
	"the certificate of $at is not trusted: ");
refuses('the authorities of the system', 'DROP tls_ca_file', "ADD tls_ca_file '$dir/ours.crt'",
	"the certificate of $at is not trusted: ");
refuses('another host name', "SET host 'localhost'", "SET host '127.0.0.1'",
	"the certificate of RabbitMQ at localhost:$port is not trusted: hostname mismatch",
	"the certificate of RabbitMQ at localhost:$port is not trusted: Hostname mismatch");
refuses('no client certificate', 'DROP tls_cert_file, DROP tls_key_file',
	"ADD tls_cert_file '$dir/client.crt', ADD tls_key_file '$dir/client.key'",
	'certificate required', 'handshake failure');
refuses('a key of another certificate', "SET tls_key_file '$dir/server.key'", "SET tls_key_file '$dir/client.key'",
	"could not use \"$dir/client.crt\" and \"$dir/server.key\" as certificate and key: ");
refuses('a file that is not there', "SET tls_ca_file '$dir/nosuch.crt'", "SET tls_ca_file '$dir/ours.crt'",
	"could not read file \"$dir/nosuch.crt\": ");
refuses('TLS where there is none', "SET port '$broker->{port}'", "SET port '$port'",
	"could not agree on TLS with RabbitMQ at 127.0.0.1:$broker->{port}: ");

$node->safe_psql('postgres', "ALTER SERVER events OPTIONS (SET host 'localhost', DROP tls_ca_file, ADD tls_verify 'off')");
delivers('any certificate, if the server says so');

$node->safe_psql('postgres', q(
	ALTER SERVER events OPTIONS (SET host '127.0.0.1', DROP tls, DROP tls_verify, DROP tls_cert_file, DROP tls_key_file)));
refuses('no TLS where there is only that', "SET port '$port'", "SET port '$broker->{port}'",
	"$at ended the connection during the login; perhaps this port expects TLS");

$node->stop('fast');
$broker->stop;
done_testing();
