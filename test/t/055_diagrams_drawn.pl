# What cqrs_diagram() returns is drawn by the Mermaid CLI, with every name as it
# is, whatever it has in it.

use strict;
use warnings;
use utf8;

use Encode;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main');
my $dir = PostgreSQL::Test::Utils::tempdir();
my %entities = (lt => '<', gt => '>', amp => '&', quot => '"', apos => "'", nbsp => "\xa0");

# The browser writes there.
$ENV{HOME} = $dir;

# drawn(NAME, ARGUMENTS): the texts in the picture, one on each line
sub drawn
{
	my ($name, $arguments) = @_;
	my $text = $node->safe_psql('postgres', "SELECT cqrs_diagram($arguments)");
	my ($out, $err);

	PostgreSQL::Test::Utils::append_to_file("$dir/$name.mmd", $text);
	my $done = IPC::Run::run([split(/ /, $ENV{CQRS_MERMAID}), '-i', "$dir/$name.mmd", '-o', "$dir/$name.svg"], '>', \$out, '2>', \$err);
	ok($done, "$name is drawn") or diag("$out$err\n$text");
	my $svg = decode('UTF-8', PostgreSQL::Test::Utils::slurp_file("$dir/$name.svg"));
	unlike($svg, qr/Syntax error/, "$name: without an error");
	$svg =~ s/<style.*?<\/style>//gs;
	$svg =~ s/<br ?\/?>/\n/g;
	$svg =~ s/<[^>]*>/\n/g;
	$svg =~ s/&#(\d+);/chr($1)/ge;
	$svg =~ s/&(\w+);/$entities{$1}/g;
	$svg =~ s/\xa0/ /g;
	$svg =~ s/\x{200b}//g;
	return $svg;
}

# shows(DRAWN, NAME...): all of these are in it, each on a line of its own
sub shows
{
	my ($drawn, @names) = @_;

	is(join(', ', grep { $drawn !~ /^\s*\Q$_\E\s*$/m } @names), '', 'with all the names');
}

$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	CREATE TABLE member (meeting_id text, user_id text);
	CREATE TYPE join_meeting AS (user_id text, meeting_id text);
	CREATE FUNCTION join_meeting(command join_meeting) RETURNS void LANGUAGE sql AS $$
		INSERT INTO member VALUES (command.meeting_id, command.user_id);
		SELECT cqrs_emit('user_joined', to_jsonb(command))
	$$;
	CREATE FUNCTION wait_for_seat(command join_meeting) RETURNS void LANGUAGE sql AS '';
	CREATE FUNCTION greet(event cqrs_event) RETURNS void LANGUAGE sql AS '';
	CREATE FUNCTION project(event cqrs_event) RETURNS void LANGUAGE sql AS '';
	SELECT cqrs_register_event('user_joined', 'meeting_events');
	SELECT cqrs_register_event_handler('user_joined', 'greet(cqrs_event)');
	SELECT cqrs_register_command('JoinMeeting', 'join_meeting(join_meeting)');
	SELECT cqrs_register_fallback('join_meeting(join_meeting)', 'wait_for_seat(join_meeting)', '{P0002}');
	SELECT cqrs_subscribe('meetings', '{meeting_events}', 'project(cqrs_event)');
	SELECT cqrs_register_middleware('cqrs_log_dispatch(cqrs_request)');
));
shows(drawn('flowchart', ''), 'middleware', 'public.cqrs_log_dispatch(public.cqrs_request)', 'command', 'JoinMeeting', 'public.join_meeting(public.join_meeting)', 'on P0002',
	'public.wait_for_seat(public.join_meeting)', 'event', 'user_joined', 'public.greet(public.cqrs_event)', 'topic',
	'meeting_events', 'subscription', 'meetings', 'public.project(public.cqrs_event)');
shows(drawn('sequence', q('sequence', 'JoinMeeting')), 'mediator', 'public.join_meeting(public.join_meeting)',
	'cqrs_send(JoinMeeting)', 'cqrs_proceed()', '[it raises P0002, or its circuit breaker is open]', 'outbox', 'relay');

# What Mermaid, Markdown, HTML and SVG have a use for; and what each kind of
# diagram begins and ends with.
my @names = ('end', 'subgraph', 'x"]; --> y', '<b>bold</b> &amp; &lt;', '#35; #quot;', '`code` **bold** _a_ ~b~', '%% comment',
	'%%{init: {}}%%', '1. list', '- item', 'a:b;c,d', '(x) [y] {z} |w|', q(it's \\n $$x$$), 'größer ≥ 語', 'participant mediator',
	'style fill:#f00', 'click c1 "https://x"', 'fa:fa-user', ':::class', 'Note over x: y', 'a  b');
my $quoted = join(', ', map { "'" . s/'/''/gr . "'" } @names);
$node->safe_psql('postgres', encode('UTF-8', qq(
	CREATE FUNCTION handle(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT \$1';
	CREATE FUNCTION "end""];(x)#"(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT \$1';
	SELECT cqrs_register_chain('c ' || name, ARRAY['handle(jsonb)', '"end""];(x)#"(jsonb)']),
		   cqrs_register_event('e ' || name, 't'), cqrs_register_event(name)
	FROM unnest(ARRAY[$quoted]) name;
	SELECT cqrs_subscribe(name, '{t}') FROM unnest(ARRAY[$quoted]) name;
)));
shows(drawn('flowchart_of_names', ''), (map { ($_, "c $_", "e $_") } @names), 'public."end""];(x)#"(pg_catalog.jsonb)');
for my $i (0 .. $#names)
{
	next if $i % 5;
	my $name = $names[$i] =~ s/'/''/gr;

	shows(drawn("sequence_$i", encode('UTF-8', "'sequence', 'c $name'")), "cqrs_send(c $names[$i])", 'public."end""];(x)#"(pg_catalog.jsonb)');
}

$node->stop;
done_testing();
