# docs/interface.md lists every public function, type, view and setting as it is
# in the catalog: its tables are written from there, and compared here.
#
# With CQRS_WRITE=FILE, the page is written to that file, with the tables of the
# catalog.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $page = "$ENV{CQRS_MANUAL}/docs/interface.md";
my $node = PostgreSQL::Test::Cluster->new('main');

# With the defaults of every setting, so nothing else is set.
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'cqrs_outbox'\n");
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION cqrs_outbox');

# What of ours is in the schema that CREATE EXTENSION was told: what is public.
my $ours = q(FROM pg_extension e
	JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e');

my %tables = (
	functions => [ 'function', 'returns', 'who may call it', 'what it does' ],
	types => [ 'type', 'columns' ],
	views => [ 'view', 'columns', 'what it shows' ],
	settings => [ 'setting', 'default', 'who may set it', 'what it does' ],
);
my %queries = (
	functions => qq(SELECT format('`%s(%s)`', p.proname, regexp_replace(pg_get_function_arguments(p.oid), ',? ?OUT .*', '')),
		'`' || regexp_replace(pg_get_function_result(p.oid), 'record\$', (
			SELECT coalesce('(' || string_agg(p.proargnames[i] || ' ' || format_type(p.proallargtypes[i], NULL), ', ' ORDER BY i) || ')', 'record')
			FROM generate_subscripts(p.proargmodes, 1) i WHERE p.proargmodes[i] = 'o')) || '`',
		CASE WHEN has_function_privilege('somebody', p.oid, 'EXECUTE') THEN 'everybody'
			 WHEN has_function_privilege('watcher', p.oid, 'EXECUTE') THEN '`pg_monitor`'
			 ELSE 'the owner, or who was granted it' END,
		obj_description(p.oid, 'pg_proc')
		$ours AND d.classid = 'pg_proc'::regclass
		JOIN pg_proc p ON p.oid = d.objid AND p.pronamespace = e.extnamespace
		WHERE e.extname = 'cqrs_outbox' ORDER BY p.oid),
	types => qq(SELECT format('`%s`', c.relname), (SELECT string_agg(format('`%s %s`', attname, format_type(atttypid, atttypmod)), ', ' ORDER BY attnum)
			FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0)
		$ours AND d.classid = 'pg_type'::regclass
		JOIN pg_type t ON t.oid = d.objid AND t.typnamespace = e.extnamespace
		JOIN pg_class c ON c.oid = t.typrelid AND c.relkind = 'c'
		WHERE e.extname = 'cqrs_outbox' ORDER BY c.relname),
	views => qq(SELECT format('`%s`', c.relname), (SELECT string_agg(format('`%s`', attname), ', ' ORDER BY attnum)
			FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0), obj_description(c.oid, 'pg_class')
		$ours AND d.classid = 'pg_class'::regclass
		JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'v' AND c.relnamespace = e.extnamespace
		WHERE e.extname = 'cqrs_outbox' ORDER BY c.relname),
	settings => q(SELECT format('`%s`', name), format('`%s`', current_setting(name)),
		CASE context WHEN 'user' THEN 'everybody' WHEN 'superuser' THEN 'superusers' WHEN 'sighup' THEN 'the server, reloaded'
			WHEN 'postmaster' THEN 'the server, at its start' END, rtrim(short_desc, '.')
		FROM pg_settings WHERE name LIKE 'cqrs_outbox.%' ORDER BY name),
);

sub table
{
	my ($name) = @_;
	my $markdown = join(' | ', '|', @{ $tables{$name} }) . " |\n" . '| ' . join(' | ', map { '---' } @{ $tables{$name} }) . " |\n";

	$markdown =~ s/^\| \| /| /;
	for my $row (split /\x1e/, $node->safe_psql('postgres', $queries{$name}, extra_params => [ '-F', "\x1f", '-R', "\x1e" ]))
	{
		my @cells = split /\x1f/, $row, -1;

		for (@cells)
		{
			s/\|/\\|/g;
			s/\s+/ /g;
			s/::[a-z ]+(?:\[\])?//g;
			s/ DEFAULT / = /g;
			s/timestamp with time zone/timestamptz/g;
		}
		$markdown .= '| ' . join(' | ', @cells) . " |\n";
	}
	return $markdown;
}

$node->safe_psql('postgres', 'CREATE ROLE somebody; CREATE ROLE watcher IN ROLE pg_monitor');
my $text = slurp_file($page);
my $written = $text;

for my $name (sort keys %tables)
{
	my $table = table($name);

	like($text, qr/<!-- $name -->\n.*?<!-- end -->/s, "the page has a table of $name");
	$written =~ s/(<!-- $name -->\n\n).*?(\n<!-- end -->)/$1$table$2/s;
	my ($there) = $text =~ /<!-- $name -->\n\n(.*?)\n<!-- end -->/s;
	is($there, $table, "the table of $name is that of the catalog (CQRS_WRITE writes it)");
}

# What is said to be there now, where the interface before is told of, is there.
my %there = map { $_ => 1 } split /\n/, $node->safe_psql('postgres', q(
	SELECT proname FROM pg_proc WHERE proname ~ '^cqrs_' UNION SELECT relname FROM pg_class WHERE relname ~ '^cqrs_'));
my @now = map { /^\|.*\|(.*?)\|$/ ? $1 : () } split /\n/, slurp_file($page =~ s/interface/changes/r);
is_deeply([ grep { !$there{$_} } map { /\b(cqrs_\w+)/g } @now ], [], 'what has changed is what there is');
cmp_ok(scalar(@now), '>', 40, '... all of it');
if ($ENV{CQRS_WRITE})
{
	open my $file, '>', $ENV{CQRS_WRITE} or die "$ENV{CQRS_WRITE}: $!";
	print $file $written;
	close $file;
}
$node->stop;

done_testing();
