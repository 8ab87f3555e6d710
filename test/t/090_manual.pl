# The examples of the manual work as they are printed: README.md, and each page
# of docs/, from top to bottom, in an empty database with the worker.
#
# The tag of a block says what it is:
#
#   sql      is run, by a psql that stays open for the page
#   python   is a program, run in between; $DATABASE_URL says where the database
#            is. One that handles SIGTERM goes on beside the following blocks,
#            and is told to end with the page
#   text     right behind one of these: how its output ends; "..." is anything. If
#            it has a line ERROR, the block may fail, and psql goes on
#
# Other blocks, for a shell, another program, or a broker, are not run.
#
# Needs plpython3u, psycopg, pgmq and PgQ.

use strict;
use warnings;

use CqrsTest;
use IPC::Run;
use Manual;
use PostgreSQL::Test::Utils;
use Test::More;

my $manual = $ENV{CQRS_MANUAL};
my $node = new_server('manual');
my $scratch = PostgreSQL::Test::Utils::tempdir;
my $count = 0;

# ends_with(OUTPUT, TEXT): at a line's beginning; blanks at the end of lines do
# not count
sub ends_with
{
	my ($output, $text) = @_;

	s/[ \t]+$//mg, s/\A\n+//, s/\s*\z/\n/ for $output, $text;
	my $pattern = join '.*?', map { quotemeta } split /\.\.\./, $text, -1;

	return $output =~ /^$pattern\z/m;
}

# check(BLOCK, OUTPUT): whether it is what the page shows
sub check
{
	my ($block, $output) = @_;
	my $shown = $block->{output};
	my $line = $shown ? $shown->{line} : $block->{line};
	my $fits = !$shown || ends_with($output, $shown->{text});

	ok($fits, "$block->{page}:$line: " . ($shown ? 'the output' : 'runs')) or diag("was:\n$output");
	return $fits;
}

# run_sql(SESSION, PAGE, BLOCK): false if it failed
sub run_sql
{
	my ($session, $block) = @_;
	my $may_fail = $block->{output} && $block->{output}{text} =~ /^ERROR:/m;
	my $file = "$scratch/" . $count++ . '.sql';

	# Empty lines before it: so psql tells the page's own line numbers.
	append_to_file($file, ("\n" x ($block->{line} - 1)) . $block->{text});
	my $output = $session->query("\\i $file\n");
	my $errors = $output =~ s/^psql:\Q$file\E:(\d+): (?=(\w+):)/push @{ $block->{$2} }, $1; ''/mger;

	if (($block->{ERROR} || $block->{FATAL} || $block->{error}) && !$may_fail)
	{
		fail("$block->{page}:$block->{ERROR}[0]: runs");
		diag($errors);
		return 0;
	}
	return check($block, $errors);
}

# run_python(DATABASE, BLOCK): false if it failed, or the program, if it goes on
sub run_python
{
	my ($database, $block) = @_;
	my $file = "$scratch/" . $count++ . '.py';
	my $output = '';

	append_to_file($file, ("\n" x ($block->{line} - 1)) . $block->{text});
	local $ENV{DATABASE_URL} = $node->connstr($database);
	my $program = IPC::Run::start([ '/usr/bin/python3', $file ], '<', \undef, '>', \$output, '2>&1',
		IPC::Run::timer($PostgreSQL::Test::Utils::timeout_default));

	return { run => $program, output => \$output, block => $block } if $block->{text} =~ /SIGTERM/;
	$program->finish;
	return check($block, $output) if $program->full_result == 0;
	fail("$block->{page}:$block->{line}: the program");
	diag($output);
	return 0;
}

# end_program(PROGRAM): one that went on ends when it is told to
sub end_program
{
	my ($program) = @_;

	$program->{run}->signal('TERM');
	$program->{run}->finish;
	ok($program->{run}->full_result == 0, "$program->{block}{page}:$program->{block}{line}: the program goes on, and ends")
		or diag(${ $program->{output} });
}

# run_page(PAGE, BLOCKS...): up to the first that fails
sub run_page
{
	my ($page, @blocks) = @_;
	my (@programs, $session);

	$node->safe_psql('postgres', 'CREATE DATABASE manual');
	$session = new_session($node, 'manual');
	$session->query("\\set SHOW_CONTEXT never\n\\pset format aligned\n\\pset tuples_only off\n");
	for my $block (@blocks)
	{
		my $done = $block->{tag} eq 'sql' ? run_sql($session, $block) : run_python('manual', $block);

		push @programs, $done if ref $done;
		last unless $done;
	}
	end_program($_) for @programs;
	$session->quit;

	# The next page begins in an empty cluster.
	$node->safe_psql('postgres', 'DROP DATABASE manual WITH (FORCE)');
	$node->safe_psql('postgres', "DROP ROLE $_")
		for split /\n/, $node->safe_psql('postgres', "SELECT quote_ident(rolname) FROM pg_roles WHERE oid >= 16384");
}

$node->start;
my @pages = ('README.md', map { s{.*/}{docs/}r } sort glob("$manual/docs/*.md"));
my %runs;

for my $page (@pages)
{
	my @blocks = grep { $_->{tag} =~ /^(sql|python)$/ } blocks($page);

	$runs{$page} = @blocks;
	run_page($page, @blocks) if @blocks;
}
# Pages for those who work on it, or knew it before, have none.
is_deeply([ grep { !$runs{$_} } @pages ], [ map { "docs/$_.md" } qw(README architecture changes models) ],
	'each page for users has an example');
$node->stop;
done_testing();
