# The outbox of python-cqrs on ours: the repository of docs/python-cqrs.md, as it is
# printed there, does what python-cqrs expects of one, in both of its major
# versions, and with both drivers. See test/python_cqrs/outbox.py.
#
# Needs what is in test/python_cqrs/requirements.txt, and psycopg.

use strict;
use warnings;

use CqrsTest;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $packages = $ENV{CQRS_PYTHON_CQRS};
my $scratch = PostgreSQL::Test::Utils::tempdir;
my $node = new_server('main');
my $user = getpwuid $<;

# The blocks of the section.
my $page = slurp_file("$ENV{CQRS_MANUAL}/docs/python-cqrs.md");
my ($section) = $page =~ /^## Your repository on this outbox\n(.*?)^## /ms;
my ($sql) = $section =~ /^```sql\n(.*?)^```/ms;
my ($repository) = $section =~ /^```py\n(.*?)^```/ms;

append_to_file("$scratch/topics_repository.py", $repository);
$node->start;
foreach my $version (qw(4 5))
{
	foreach my $driver (qw(psycopg asyncpg))
	{
		my $database = "python_cqrs_${version}_$driver";
		my $output = '';

		$node->safe_psql('postgres', "CREATE DATABASE $database");
		$node->safe_psql($database, "CREATE EXTENSION cqrs_outbox; $sql");
		local $ENV{DATABASE_URL} = "postgresql://$user\@/$database?host=" . $node->host . '&port=' . $node->port;
		local $ENV{PYTHONPATH} = join ':', $scratch, "$packages/$version", "$packages/both";
		IPC::Run::run([ '/usr/bin/python3', "$packages/outbox.py", $driver ], '<', \undef, '>', \$output, '2>&1',
			IPC::Run::timer(2 * $PostgreSQL::Test::Utils::timeout_default));

		my @results = $output =~ /^((?:not )?ok) test_(\w+)$/mg;
		while (my ($result, $name) = splice @results, 0, 2)
		{
			is($result, 'ok', "python-cqrs $version, $driver: " . $name =~ tr/_/ /r);
		}
		like($output, qr/^done$/m, '... and that was all');
		diag($output) if $output =~ /^not ok/m || $output !~ /^done$/m;
	}
}

$node->stop;
done_testing();
