# Kafka's foreign servers and user mappings have the options that are
# documented, checked, for those who may set them; and nobody sees a secret.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use Kafka;

my $secret = 'a secret of the user mapping';
my $cluster = Kafka->new(1);
my $node = new_server('main', "log_statement = none\nlog_min_error_statement = panic\n");

$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	CREATE EXTENSION cqrs_outbox_kafka;
	SELECT cqrs_register_event('happened', 'things');
	CREATE ROLE app LOGIN;
	GRANT SELECT, INSERT ON cqrs_topics.things TO app;
	GRANT EXECUTE ON FUNCTION cqrs_subscribe TO app;
	GRANT USAGE ON FOREIGN DATA WRAPPER cqrs_kafka TO app));

# server(OPTIONS...): a statement
sub server
{
	my ($name, %options) = @_;

	return "CREATE SERVER $name FOREIGN DATA WRAPPER cqrs_kafka OPTIONS ("
	  . join(', ', map { "\"$_\" '$options{$_}'" } sort keys %options) . ')';
}

# Unknown ones; what the core relies on is among them, and what runs code.
$node->safe_psql('postgres', server('events', 'bootstrap.servers' => $cluster->bootstrap) . '; GRANT USAGE ON FOREIGN SERVER events TO app');
like(error_parts($node, "ALTER SERVER events OPTIONS (ADD brokers 'x')"),
	qr/^HV00D: a server of foreign-data wrapper "cqrs_kafka" has no option "brokers"\|Valid options in this context are: topic, bootstrap\.servers, .*window, cloudevents_source, max_message_size\.$/,
	'the valid options of a server are listed');
is(error_parts($node, "CREATE USER MAPPING FOR app SERVER events OPTIONS (\"user\" 'x')"),
	'HV00D: a user mapping of foreign-data wrapper "cqrs_kafka" has no option "user"|Valid options in this context are: '
	  . 'sasl.username, sasl.password, ssl.certificate.pem, ssl.certificate.location, ssl.key.pem, ssl.key.location, ssl.key.password, ssl.keystore.location, ssl.keystore.password.',
	'and those of a user mapping');
like(error_parts($node, "ALTER SERVER events OPTIONS (ADD \"$_\" '$secret')"), qr/^HV00D: .* has no option "\Q$_\E"\|It is an option of a user mapping\./,
	"$_ belongs to the user mapping")
  for qw(sasl.username sasl.password ssl.key.pem ssl.key.password ssl.keystore.password);
like(error_parts($node, "ALTER SERVER events OPTIONS (ADD \"$_\" 'x')"), qr/^HV00D/, "$_ is not an option")
  for qw(acks enable.idempotence enable.gapless.guarantee message.timeout.ms delivery.timeout.ms transactional.id max.in.flight
  message.send.max.retries queuing.strategy plugin.library.paths ssl.engine.location ssl.providers sasl.kerberos.kinit.cmd
  sasl.kerberos.keytab sasl.kerberos.principal sasl.oauthbearer.config sasl.oauthbearer.token.endpoint.url debug log_level
  statistics.interval.ms metadata.broker.list topic.blacklist);
like(error_parts($node, "ALTER FOREIGN DATA WRAPPER cqrs_kafka OPTIONS (topic 'x')"), qr/^HV00D.*There are no valid options in this context/, 'the wrapper has none');

# Values.
for my $wrong ([ topic => '', 'It must not be empty\.' ],
	[ topic => '{tpoic}', 'In a template, braces must be around topic, event_name or key; a brace itself is written twice\.' ],
	[ 'bootstrap.servers' => '', 'It must not be empty\.' ],
	[ 'security.protocol' => 'tls', 'librdkafka says: .*' ],
	[ 'sasl.mechanism' => 'GSSAPI', 'It must be one of: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512\.' ],
	[ 'sasl.mechanism' => 'OAUTHBEARER', 'It must be one of: .*' ],
	[ partitioner => 'random', 'It must be one of: murmur2_random, murmur2, consistent_random, consistent, fnv1a_random, fnv1a\.' ],
	[ 'linger.ms' => '1000000', 'librdkafka says: .*range 0\.\.900000' ],
	[ 'linger.ms' => 'soon', 'librdkafka says: .*' ],
	[ 'compression.type' => 'rar', 'librdkafka says: .*' ],
	[ 'enable.ssl.certificate.verification' => 'perhaps', 'librdkafka says: .*' ],
	[ window => '0', 'It must be an integer from 1 to 1000000\.' ])
{
	my ($name, $value, $detail) = @$wrong;

	like(error_parts($node, server('wrong', $name => $value)), qr/^22023: option "\Q$name\E" of .* cannot have this value\|$detail$/,
		"$name '$value' is not allowed");
}
is(error_parts($node, server('fine', topic => 'a.{topic}', 'bootstrap.servers' => 'kafka1:9092,[::1]:9093', 'security.protocol' => 'sasl_ssl',
			'sasl.mechanism' => 'SCRAM-SHA-512', 'ssl.ca.pem' => 'PEM', 'ssl.endpoint.identification.algorithm' => 'none',
			'linger.ms' => '0.5', 'compression.type' => 'zstd', 'message.max.bytes' => 5000000, 'socket.timeout.ms' => 20000,
			'client.id' => 'x', window => 5, cloudevents_source => '/x'), 'app'),
	'', 'everybody who may create a server may set these');

# Files are opened as the server's user.
for my $name (qw(ssl.ca.location ssl.crl.location))
{
	like(error_parts($node, server('mine', $name => '/etc/passwd'), 'app'), qr/^42501: permission denied to set option "\Q$name\E"/, "$name is a superuser's to set");
	is(error_parts($node, server("\"$name\"", $name => '/etc/passwd')), '', 'who may');
}
for my $name (qw(ssl.certificate.location ssl.key.location ssl.keystore.location))
{
	like(error_parts($node, "CREATE USER MAPPING FOR app SERVER events OPTIONS (\"$name\" '/etc/passwd')", 'app'),
		qr/^42501: permission denied to set option "\Q$name\E"/, "$name is a superuser's to set");
}

# What is missing is said when subscribing.
$node->safe_psql('postgres', server('bare', 'security.protocol' => 'sasl_plaintext') . '; GRANT USAGE ON FOREIGN SERVER bare TO app');
my $subscribe = "SELECT cqrs_subscribe('things', ARRAY['things'], server => 'bare')";
like(error_parts($node, $subscribe, 'app'), qr/^22023: server "bare" cannot be connected to as it is\|the server has no option "bootstrap\.servers"/, 'bootstrap.servers is needed');
$node->safe_psql('postgres', "ALTER SERVER bare OPTIONS (ADD \"bootstrap.servers\" '" . $cluster->bootstrap . "')");
like(error_parts($node, $subscribe, 'app'), qr/the server needs the option "sasl\.mechanism"/, 'a mechanism');
$node->safe_psql('postgres', "ALTER SERVER bare OPTIONS (ADD \"sasl.mechanism\" 'PLAIN')");
like(error_parts($node, $subscribe, 'app'), qr/the user mapping needs the options "sasl\.username" and "sasl\.password"/, 'and credentials');
like(error_parts($node, "SELECT cqrs_subscribe('events', ARRAY['things'], server => 'fine')", 'app'), qr/^42501|^22023/, 'USAGE, too');

# The user mapping is the subscription's owner's, and nobody sees what is in it.
is(error_parts($node, "CREATE USER MAPPING FOR app SERVER bare OPTIONS (\"sasl.username\" 'app', \"sasl.password\" '$secret')", 'app'), '', 'they are the user\'s to set');
$node->safe_psql('postgres', "SET ROLE app; $subscribe; SELECT cqrs_emit('happened', '{}')");
ok(wait_error($node, 'postgres', 'things', 'could not authenticate to Kafka at '), 'the cluster does not accept them');
$node->safe_psql('postgres', "ALTER SERVER bare OPTIONS (SET \"security.protocol\" 'sasl_ssl');
	ALTER USER MAPPING FOR app SERVER bare OPTIONS (ADD \"ssl.key.pem\" '$secret', ADD \"ssl.key.password\" '$secret', ADD \"ssl.certificate.pem\" '$secret')");
ok(wait_error($node, 'postgres', 'things', 'could not make a Kafka producer: '), 'what is no key is an error when connecting');
my $error = error_of($node, 'postgres', "CREATE USER MAPPING FOR PUBLIC SERVER bare OPTIONS (\"sasl.passwort\" '$secret')");
my $seen = slurp_file($node->logfile) . $error . $node->safe_psql('postgres', "
	SELECT s, h FROM cqrs_subscription_status s, cqrs_health() h");
unlike($seen, qr/\Q$secret\E/, 'no secret is in a log, error or view');
like($seen, qr/could not make a Kafka producer/, 'where the errors are');
is($node->safe_psql('postgres', "SET ROLE app; SELECT count(*) FROM pg_user_mappings WHERE umoptions::text LIKE '%$secret%'"), 1, 'its owner sees it');
$node->safe_psql('postgres', 'CREATE ROLE other');
is($node->safe_psql('postgres', "SET ROLE other; SELECT count(*) FROM pg_user_mappings WHERE umoptions::text LIKE '%$secret%'"), 0, 'nobody else');

# Without it, all is well.
$node->safe_psql('postgres', q(ALTER SERVER bare OPTIONS (SET "security.protocol" 'plaintext')));
ok(wait_status($node, 'postgres', 'things', '0/0/0/0'), 'delivered in the end');

$node->stop('fast');
done_testing();
