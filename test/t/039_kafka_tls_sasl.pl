# TLS and logins on the way to Kafka: brokers are verified, by authority and
# name; a certificate is shown to those that want one; credentials come from the
# user mapping, and what is refused is said without them.

use strict;
use warnings;

use JSON::PP qw(encode_json);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use Kafka;

my $secret = 'a secret of the user mapping';
my $dir = PostgreSQL::Test::Utils::tempdir();
my $cluster = Kafka->new(1);
my $node = new_server('main', "log_statement = none\n");
my $n = 0;

certificate($dir, 'ca', 'authority');
certificate($dir, 'other', 'other authority');
certificate($dir, 'broker', 'broker', 'ca', "subjectAltName = IP:127.0.0.1\n");
certificate($dir, 'elsewhere', 'elsewhere', 'ca');
certificate($dir, 'client', 'client', 'ca');
certificate($dir, 'stranger', 'stranger', 'other');
my %pem = map { ($_ => slurp_file("$dir/$_")) } qw(ca.crt other.crt client.crt client.key stranger.crt stranger.key);

system_or_bail('openssl', 'rsa', '-aes256', '-in', "$dir/client.key", '-out', "$dir/encrypted.key", '-passout', "pass:$secret");
$pem{'encrypted.key'} = slurp_file("$dir/encrypted.key");

# tls(NAME, OPTIONS): of a gate that shows this certificate.
sub tls
{
	my ($name, %options) = @_;

	return { key => slurp_file("$dir/$name.key"), cert => slurp_file("$dir/$name.crt"), %options };
}

my %sasl = (username => 'app', password => $secret);
my %gate = (
	tls => $cluster->gate(tls => tls('broker')),
	elsewhere => $cluster->gate(tls => tls('elsewhere')),
	mutual => $cluster->gate(tls => tls('broker', ca => $pem{'ca.crt'}, requestCert => JSON::PP::true)),
	sasl => $cluster->gate(sasl => \%sasl),
	sasl_tls => $cluster->gate(tls => tls('broker'), sasl => \%sasl));

$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	CREATE EXTENSION cqrs_outbox_kafka;
	SELECT cqrs_register_event('happened', 'things');
	CREATE SERVER nowhere FOREIGN DATA WRAPPER cqrs_kafka OPTIONS ("bootstrap.servers" '127.0.0.1:1');
	CREATE USER MAPPING FOR PUBLIC SERVER nowhere;
	SELECT cqrs_subscribe('things', ARRAY['things'], server => 'nowhere', retry_delay => '20 ms', max_retry_delay => '100 ms')));

# use_server(GATE, OPTIONS, SECRETS): what is delivered from now on goes there.
sub use_server
{
	my ($gate, $options, $secrets) = @_;
	my %options = ('bootstrap.servers' => "127.0.0.1:$gate{$gate}", %$options);
	my ($server, $mapping) = map {
		my $list = $_;
		%$list ? 'OPTIONS (' . join(', ', map { "\"$_\" '$list->{$_}'" } sort keys %$list) . ')' : '' } (\%options, $secrets // {});
	my $name = 'server_' . ++$n;

	$node->safe_psql('postgres', "CREATE SERVER $name FOREIGN DATA WRAPPER cqrs_kafka $server;
		CREATE USER MAPPING FOR PUBLIC SERVER $name $mapping;
		SELECT cqrs_alter_subscription('things', server => '$name');
		SELECT cqrs_emit('happened', jsonb_build_object('n', $n))");
	return;
}

# fails(NAME, PATTERN, ...): as use_server()
sub fails
{
	my ($name, $pattern, $gate, @rest) = @_;

	use_server($gate, @rest);
	return ok(wait_error($node, 'postgres', 'things', $pattern =~ s/GATE/127.0.0.1:$gate{$gate}/r), $name);
}

sub delivers
{
	my ($name, @rest) = @_;

	use_server(@rest);
	return ok(wait_status($node, 'postgres', 'things', '0/0/0/0'), $name);
}

my %ssl = ('security.protocol' => 'ssl');
my %trusting = (%ssl, 'ssl.ca.pem' => $pem{'ca.crt'});

fails('a broker of an unknown authority is not trusted', '^could not connect to Kafka at GATE: .*certificate verify failed', 'tls', \%ssl);
fails('nor one of another authority', '^could not connect to Kafka at GATE: .*certificate verify failed', 'tls',
	{ %ssl, 'ssl.ca.pem' => $pem{'other.crt'} });
fails('nor one with a certificate for another host', '^could not connect to Kafka at GATE: .*certificate verify failed', 'elsewhere', \%trusting);
delivers('the authority as an option', 'tls', \%trusting);
delivers('or as a file', 'tls', { %ssl, 'ssl.ca.location' => "$dir/ca.crt" });
delivers('the name need not be verified', 'elsewhere', { %trusting, 'ssl.endpoint.identification.algorithm' => 'none' });
delivers('nor anything', 'tls', { %ssl, 'enable.ssl.certificate.verification' => 'false' });

fails('a broker that wants a certificate', '^could not connect to Kafka at GATE: ', 'mutual', \%trusting);
fails('wants one of its authority', '^could not connect to Kafka at GATE: ', 'mutual', \%trusting,
	{ 'ssl.certificate.pem' => $pem{'stranger.crt'}, 'ssl.key.pem' => $pem{'stranger.key'} });
delivers('and gets it', 'mutual', \%trusting, { 'ssl.certificate.pem' => $pem{'client.crt'}, 'ssl.key.pem' => $pem{'client.key'} });
fails('an encrypted key needs its password', '^could not make a Kafka producer: ', 'mutual', \%trusting,
	{ 'ssl.certificate.pem' => $pem{'client.crt'}, 'ssl.key.pem' => $pem{'encrypted.key'} });
delivers('which is an option', 'mutual', \%trusting,
	{ 'ssl.certificate.pem' => $pem{'client.crt'}, 'ssl.key.pem' => $pem{'encrypted.key'}, 'ssl.key.password' => $secret });

my %plain = ('security.protocol' => 'sasl_plaintext', 'sasl.mechanism' => 'PLAIN');
my %mapping = ('sasl.username' => 'app', 'sasl.password' => $secret);

fails('a wrong password', '^could not authenticate to Kafka at GATE: .*Invalid username or password', 'sasl', \%plain,
	{ %mapping, 'sasl.password' => "not $secret" });
is($node->safe_psql('postgres', "SELECT retrying, waiting, dead FROM cqrs_subscription_status"), '0|0|0', 'is no event\'s fault');
fails('another mechanism than the broker has', '^could not authenticate to Kafka at GATE: ', 'sasl',
	{ %plain, 'sasl.mechanism' => 'SCRAM-SHA-256' }, \%mapping);
delivers('the right password', 'sasl', \%plain, \%mapping);
fails('a login without the TLS that the broker wants', '^could not (connect|authenticate) to Kafka at GATE: ', 'sasl_tls', \%plain, \%mapping);
delivers('both', 'sasl_tls', { %plain, %trusting, 'security.protocol' => 'sasl_ssl' }, \%mapping);

is(join(' ', sort { $a <=> $b } keys %{ { map { $_->{value} =~ /"n":(\d+)/ ? ($1 => 1) : () } $cluster->records('things') } }),
	join(' ', 1 .. $n), 'all events are there');

# None of these is anywhere.
my $seen = slurp_file($node->logfile) . $node->safe_psql('postgres', 'SELECT s, h FROM cqrs_subscription_status s, cqrs_health() h');
unlike($seen, qr/\Q$secret\E/, 'the password is in no log, error or view');
unlike($seen, qr/PRIVATE KEY/, 'nor is a key');

$node->stop('fast');
done_testing();
