# While library and extension are of different versions, our functions say so,
# and nothing is delivered; once they are of one, it is. In an installation of
# its own.

use strict;
use warnings;

use File::Basename;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::RecursiveCopy;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

# A server finds its files by where it is itself.
my $root = PostgreSQL::Test::Utils::tempdir;
my %dir = map { my ($out) = run_command([ 'pg_config', "--$_" ]); $_ => $out } qw(bindir sharedir pkglibdir);

for my $dir (values %dir)
{
	system_or_bail('mkdir', '-p', dirname("$root$dir"));
	system_or_bail('cp', '-RL', $dir, "$root$dir");
}
my $extension = "$root$dir{sharedir}/extension";
my ($current) = slurp_file("$extension/cqrs_outbox.control") =~ /default_version = '(.*)'/;
my $older = '0.8';
my $newer = '1000.0';

# Versions that this library knows nothing of. What they change is to come and
# go, and they tell everybody.
sub script
{
	my ($name, $sql) = @_;

	append_to_file("$extension/cqrs_outbox--$name.sql", "$sql; SELECT cqrs.announce();");
}
script("$current--$newer", 'CREATE FUNCTION cqrs_newer() RETURNS int LANGUAGE sql AS $$ SELECT 1 $$');
script("$newer--$current", 'DROP FUNCTION cqrs_newer()');
script($older, slurp_file("$extension/cqrs_outbox--$current.sql") =~ s/\\quit$//mr);
script("$older--$current", 'SELECT 1');

my $node = new_server('main', '', install_path => dirname("$root$dir{bindir}"));
$node->start;
is($node->safe_psql('postgres', 'SHOW data_directory') ne '' && dirname($node->safe_psql('postgres', "SELECT setting FROM pg_config WHERE name = 'SHAREDIR'")), dirname("$root$dir{sharedir}"), 'the installation is its own');

# An extension that is newer than the library.
set_up_recording($node, 'postgres');
emit_numbers($node, 'postgres', 1);
ok(wait_recorded($node, 'postgres', 1), 'with one version, events are delivered');
my $session = new_session($node, 'postgres');
like($session->query("SELECT cqrs_emit('happened', '{\"n\": 2}')"), qr/^[0-9a-f-]{36}$/, 'a session has the registry loaded');
ok(wait_recorded($node, 'postgres', 2), 'and emits');
my $waiting = new_session($node, 'postgres');
$waiting->query("BEGIN; SELECT cqrs_emit('happened', '{\"n\": 3}')");

my $offset = -s $node->logfile;
my $said = qr/LOG:  cqrs_outbox delivers nothing in database "postgres"\n.*DETAIL:  The library is of version \Q$current\E, the extension of version \Q$newer\E\.\n.*HINT:  Restart the server/;
$node->safe_psql('postgres', "ALTER EXTENSION cqrs_outbox UPDATE TO '$newer'");
is($node->safe_psql('postgres', 'SELECT cqrs_newer()'), '1', 'the extension is newer');
ok($node->wait_for_log($said, $offset), 'the manager says that the server is to be restarted');
$waiting->query('COMMIT');
for my $sql ("SELECT cqrs_emit('happened', '{}')", "SELECT cqrs_send('x')", "SELECT * FROM cqrs_events()", "SELECT cqrs_subscribe('s', ARRAY['things'])",
	'SELECT * FROM cqrs_subscription_status', 'SELECT cqrs_adopt()')
{
	like(error_of($node, 'postgres', $sql), qr/ERROR:  55000: cqrs_outbox cannot be used in this database\nDETAIL:  The library is of version \Q$current\E, the extension of version \Q$newer\E\.\nHINT:  Restart the server/,
		"$sql says so too");
}
like($session->query("SELECT cqrs_emit('happened', '{\"n\": 4}')"), qr/cannot be used/, 'in a session that was there, too');
is($node->safe_psql('postgres', 'SELECT severity, problem, object FROM cqrs_health()'), 'error|version_mismatch|extension "cqrs_outbox"', 'and cqrs_health()');

# A restart with the same library changes nothing; another database is served.
$session->quit;
$waiting->quit;
my $restarted = -s $node->logfile;
$node->restart;
ok($node->wait_for_log($said, $restarted), 'after a restart with the same library, the same');
$node->safe_psql('postgres', 'CREATE DATABASE other');
set_up_recording($node, 'other');
emit_numbers($node, 'other', 1);
ok(wait_recorded($node, 'other', 1), 'other databases are served');
is(recorded($node, 'postgres'), '1 2', 'in this one, nothing was delivered');
is(scalar(() = slurp_file($node->logfile, $offset) =~ /cqrs_outbox delivers nothing/g), 2, 'which the manager says once');

# Back.
$node->safe_psql('postgres', "ALTER EXTENSION cqrs_outbox UPDATE TO '$current'");
ok(wait_recorded($node, 'postgres', 3), 'with one version again, what waited is delivered');
emit_numbers($node, 'postgres', 4);
ok(wait_recorded($node, 'postgres', 4), 'and what comes');
is(recorded($node, 'postgres'), '1 2 3 4', 'each once');
is($node->safe_psql('postgres', 'SELECT problem FROM cqrs_health()'), '', 'and all is well');

# An extension that is older than the library.
$node->safe_psql('postgres', 'CREATE DATABASE old');
$node->safe_psql('old', "CREATE EXTENSION cqrs_outbox VERSION '$older'");
like(error_of($node, 'old', "SELECT cqrs_register_event('happened', 'things')"), qr/ERROR:  55000: .*\nDETAIL:  The library is of version \Q$current\E, the extension of version \Q$older\E\.\nHINT:  ALTER EXTENSION cqrs_outbox UPDATE\./, 'an older extension is to be updated');
$node->safe_psql('old', 'ALTER EXTENSION cqrs_outbox UPDATE');
set_up_recording($node, 'old');
emit_numbers($node, 'old', 1);
ok(wait_recorded($node, 'old', 1), 'and then it works');
unlike(slurp_file($node->logfile), qr/(PANIC|TRAP|terminated by signal|cqrs_outbox (manager|worker)".* exited)/, 'none of our processes failed');
$node->stop;

done_testing();
