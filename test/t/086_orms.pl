# Events by way of an ORM: the examples of docs/events.md, as they are printed there,
# with SQLAlchemy and Django, each in a small application.
#
# Needs what is in test/orms/requirements.txt.

use strict;
use warnings;

use CqrsTest;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $orms = $ENV{CQRS_ORMS} // die "CQRS_ORMS must name the folder of test/orms, with its packages installed\n";
my $scratch = PostgreSQL::Test::Utils::tempdir;
my $node = new_server('main');
my $user = getpwuid $<;

# The two blocks of the section.
my ($section) = slurp_file("$ENV{CQRS_MANUAL}/docs/events.md") =~ /^## An event is an INSERT\n(.*?)^## /ms;
my %example;
@example{qw(sqlalchemy django)} = $section =~ /^```py\n(.*?)^```/msg;

my %expected = (
	sqlalchemy => <<'E',
invoice_sent | 17 | {'id': 17, 'total': 100} | None | None | True
invoice_sent | 19 | None | {'tenant': 'a', 'occurred_at': '2024-12-31T23:59:59.000000+00:00'} | 2024-12-31 23:59:59+00:00 | True
invoice_sent | 20 | None | {'tenant': 'a', 'occurred_at': '2024-12-31T23:59:59.000000+00:00'} | 2024-12-31 23:59:59+00:00 | True
E
	django => <<'E');
invoice_sent | 17 | {'id': 17, 'total': 100} | None | True
invoice_sent | 19 | None | 2024-12-31 23:59:59+00:00 | True
invoice_sent | 20 | None | 2024-12-31 23:59:59+00:00 | True
E

$node->append_conf('postgresql.conf', "timezone = 'UTC'\n");
$node->start;
for my $orm (sort keys %expected)
{
	my $output = '';

	append_to_file("$scratch/$orm.py", $example{$orm});
	$node->safe_psql('postgres', "CREATE DATABASE $orm");
	$node->safe_psql($orm, q(
		CREATE EXTENSION cqrs_outbox;
		SELECT cqrs_register_event('invoice_sent', 'meeting_events');
		SELECT cqrs_subscribe('pulled', ARRAY['meeting_events'])));
	local $ENV{DATABASE_URL} = "postgresql://$user\@/$orm?host=" . $node->host . '&port=' . $node->port;
	local ($ENV{PGHOST}, $ENV{PGPORT}, $ENV{PGDATABASE}, $ENV{PGUSER}) = ($node->host, $node->port, $orm, $user);
	local $ENV{PYTHONPATH} = "$orms:$orms/python";
	IPC::Run::run([ '/usr/bin/python3', "$orms/with_$orm.py", "$scratch/$orm.py" ], '<', \undef, '>', \$output, '2>&1',
		IPC::Run::timer($PostgreSQL::Test::Utils::timeout_default));
	is($output, $expected{$orm}, $orm);
	is($node->safe_psql($orm, q(SELECT string_agg(key, ' ' ORDER BY position) FROM cqrs_receive('pulled', wait => '60 s'))),
		'17 19 20', "$orm: what is committed is delivered");
}

$node->stop;
done_testing();
