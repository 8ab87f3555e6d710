# A manager that cannot work backs off, and says why once. A database that an
# interrupted DROP DATABASE left behind has none.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main');

$node->append_conf('postgresql.conf', "log_line_prefix = '%m [%p] %b '");
$node->start;
$node->safe_psql('postgres', "CREATE DATABASE $_") for qw(good invalid broken);
set_up_recording($node, $_) for qw(good invalid broken);
wait_managers($node, qw(good invalid broken));

sub delivers
{
	my ($dbname, $n) = @_;

	emit_numbers($node, $dbname, $n);
	return wait_recorded($node, $dbname, $n);
}

# in_log(OFFSET, PATTERN): how often
sub in_log
{
	my ($offset, $pattern) = @_;
	my $log = slurp_file($node->logfile, $offset);

	return scalar(() = $log =~ /$pattern/g);
}

ok(delivers($_, 1), "$_ delivers") for qw(good invalid broken);

# What the server's minor versions of 2023 and later do.
my $offset = -s $node->logfile;

$node->safe_psql('postgres', "UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'invalid'");
$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = 'invalid'");
wait_managers($node, qw(good broken));

# A command that holds the database, and fails, has the launcher look at it.
my ($result) = $node->psql('postgres', 'ALTER DATABASE invalid RENAME TO good');
isnt($result, 0, 'a command fails');
ok(delivers('good', 2), 'another delivers');
$node->restart;
wait_managers($node, qw(good broken));
ok(delivers('good', 3), 'also after a restart');
is(in_log($offset, 'cqrs_outbox manager FATAL:  cannot connect to invalid database'), 0, 'no manager is started in an invalid database');
$node->safe_psql('postgres', 'DROP DATABASE invalid');

# Something that concerns a database as a whole.
$offset = -s $node->logfile;
$node->safe_psql('broken', 'ALTER TABLE cqrs.fallback RENAME TO other');
my ($pid) = processes($node, 'manager', 'broken');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid, 60000)");
$node->wait_for_log(qr/(background worker "cqrs_outbox manager".* exited with exit code 1(.*\n)*?.*){4}/, $offset);
is(in_log($offset, 'ERROR:  relation "cqrs.fallback" does not exist'), 1, 'why a manager ends again and again is told once');
ok(delivers('good', 4), 'another delivers');
$node->safe_psql('broken', 'ALTER TABLE cqrs.other RENAME TO fallback');
ok(delivers('broken', 2), 'and so does this one, once it can');

$node->stop;
done_testing();
