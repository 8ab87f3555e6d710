# Logins at Kafka's own brokers: TLS with a password on Kafka 4, and SCRAM on Kafka 3.
# librdkafka before 2.6.1 cannot do the latter on Kafka 4, which is said.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use RealKafka;

my $secret = 'a secret of the user mapping';
my $dir = PostgreSQL::Test::Utils::tempdir();

certificate($dir, 'ca', 'authority');
certificate($dir, 'broker', 'broker', 'ca', "subjectAltName = IP:127.0.0.1\n");

my %options = (listeners => [ 'SASL_SSL', 'SASL_PLAINTEXT' ], users => { app => $secret }, certificates => $dir);
my %kafka = map { $_ => RealKafka->new(1, version => $_, %options) } 3, 4;
my $node = new_server('main', "log_statement = none\n");
my $n = 0;

$_->create_topic('things') for values %kafka;
$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	CREATE EXTENSION cqrs_outbox_kafka;
	SELECT cqrs_register_event('happened', 'things');
	CREATE SERVER nowhere FOREIGN DATA WRAPPER cqrs_kafka OPTIONS ("bootstrap.servers" '127.0.0.1:1');
	CREATE USER MAPPING FOR PUBLIC SERVER nowhere;
	SELECT cqrs_subscribe('things', ARRAY['things'], server => 'nowhere', format => 'raw', retry_delay => '20 ms', max_retry_delay => '100 ms')));

# use_server(VERSION, PROTOCOL, MECHANISM, PASSWORD): what is delivered from now on
# goes there.
sub use_server
{
	my ($version, $protocol, $mechanism, $password) = @_;
	my $name = 'server_' . ++$n;

	$kafka{$version}->create_server($node, 'postgres', $name, 'bootstrap.servers' => $kafka{$version}->bootstrap(uc $protocol),
		'security.protocol' => $protocol, 'sasl.mechanism' => $mechanism, 'ssl.ca.pem' => slurp_file("$dir/ca.crt"));
	$node->safe_psql('postgres', qq(
		ALTER USER MAPPING FOR PUBLIC SERVER $name OPTIONS ("sasl.username" 'app', "sasl.password" '$password');
		SELECT cqrs_alter_subscription('things', server => '$name');
		SELECT cqrs_emit('happened', '{"n": $n}')));
	return;
}

# delivers(...), fails(REASON, ...): as use_server()
sub delivers
{
	my ($version, @how) = @_;

	use_server($version, @how, $secret);
	ok(wait_status($node, 'postgres', 'things', '0/0/0/0'), "Kafka $version: @how");
	my ($last) = reverse $kafka{$version}->records('things');
	is($last->{value}, "{\"n\":$n}", '... has the event');
	return;
}

sub fails
{
	my ($error, $version, @how) = @_;

	use_server($version, @how);
	my $address = $kafka{$version}->bootstrap(uc $how[0]);
	return ok(wait_error($node, 'postgres', 'things', "^could not authenticate to Kafka at $address: $error"), "Kafka $version: @how[0, 1] fails");
}

# What the brokers say of a wrong password.
my %refused = (
	PLAIN => 'SASL authentication error: Authentication failed: Invalid username or password',
	SCRAM => 'SASL authentication error: Authentication failed during authentication due to invalid credentials with SASL mechanism SCRAM-SHA-512');

fails("$refused{PLAIN}\$", 4, 'sasl_ssl', 'PLAIN', 'wrong');
delivers(4, 'sasl_ssl', 'PLAIN');
fails($refused{SCRAM}, 3, 'sasl_ssl', 'SCRAM-SHA-512', 'wrong');
is($node->safe_psql('postgres', 'SELECT retrying, waiting, dead FROM cqrs_subscription_status'), '0|0|0', 'which is no event\'s fault');
delivers(3, 'sasl_ssl', 'SCRAM-SHA-512');
delivers(3, 'sasl_plaintext', 'SCRAM-SHA-256');

# The librdkafka that the module was built with, which may be able to do it.
my $installed = `pkg-config --modversion rdkafka` =~ s/\s+//r;
my ($major, $minor, $patch) = split /\./, $installed;
my $old = $major * 10000 + $minor * 100 + $patch < 20601;

if ($old)
{
	fails("$refused{SCRAM}; librdkafka $installed cannot log in to Kafka 4 with SCRAM, and 2.6.1 can\$", 4, 'sasl_ssl', 'SCRAM-SHA-512', $secret);
}
else
{
	delivers(4, 'sasl_ssl', 'SCRAM-SHA-512');
}

# A newer one, that of the client in Python.
my ($newer) = glob "$ENV{CQRS_KAFKA}/python/confluent_kafka.libs/librdkafka-*.so.1";
symlink $newer, "$dir/librdkafka.so.1" or die "$newer: $!";
{
	local $ENV{LD_LIBRARY_PATH} = $dir;
	$node->restart;
}
fails("$refused{SCRAM}\$", 4, 'sasl_ssl', 'SCRAM-SHA-512', 'wrong');
delivers(4, $_, 'SCRAM-SHA-512') for qw(sasl_ssl sasl_plaintext);

my $seen = slurp_file($node->logfile) . $node->safe_psql('postgres', 'SELECT s, h FROM cqrs_subscription_status s, cqrs_health() h');
unlike($seen, qr/\Q$secret\E/, 'the password is in no log, error or view');

$node->stop('fast');
done_testing();
