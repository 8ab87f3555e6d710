# Consumers: what is refused, and what the error says; twice is once; changes; who may
# do what; views; dead letters tried again and discarded.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use ExamplePeer;

my $peer = ExamplePeer->new;
my $node = new_server('main');
$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	CREATE ROLE owner LOGIN;
	CREATE ROLE heir LOGIN;
	CREATE ROLE member LOGIN IN ROLE owner;
	CREATE ROLE stranger LOGIN;
	CREATE ROLE poor LOGIN;
	CREATE ROLE nologin;
	CREATE ROLE watcher LOGIN IN ROLE pg_monitor;
	GRANT EXECUTE ON FUNCTION cqrs_create_consumer, cqrs_subscribe TO owner, stranger, poor, nologin, heir;
	SELECT cqrs_register_event('came', 'things'), cqrs_register_event('went', 'others');
	GRANT SELECT, INSERT ON cqrs_topics.things, cqrs_topics.others TO owner, heir;
	GRANT INSERT ON cqrs_topics.things TO poor, nologin, member;
	CREATE FOREIGN DATA WRAPPER plain;
	CREATE SERVER plain FOREIGN DATA WRAPPER plain));
$peer->create_server($node, 'postgres', 'peer');
$node->safe_psql('postgres', q(
	CREATE USER MAPPING FOR PUBLIC SERVER peer OPTIONS (token 'x');
	GRANT USAGE ON FOREIGN SERVER peer TO owner, heir, nologin;
	GRANT USAGE ON FOREIGN SERVER plain TO owner));

# is_refused(SQL, ERROR, ROLE): "SQLSTATE: message|detail|hint"
sub is_refused
{
	my ($sql, $error, $role) = @_;

	is(error_parts($node, "SELECT $sql", $role // 'owner'), $error, $sql . ' as ' . ($role // 'owner'));
	return;
}

# create(ARGUMENTS): of cqrs_create_consumer(), with what is not given as it would be right
sub create
{
	my (%arguments) = @_;
	my %all = (consumer => "'in'", server => "'peer'", source => "'wire'", topic => "'things'", event_name => "'came'", %arguments);

	return 'cqrs_create_consumer(' . join(', ', map { "$_ => $all{$_}" } sort keys %all) . ')';
}

# as(ROLE, SQL)
sub as
{
	my ($role, $sql) = @_;

	return $node->safe_psql('postgres', "SET ROLE $role; SET client_min_messages = error; $sql");
}

# ----------------------------------------------------------------------
# What is refused
# ----------------------------------------------------------------------

my $values = '|Valid values are ';

is_refused(create(consumer => 'NULL'), '22004: consumer name must not be null');
is_refused(create(consumer => "''"), '42602: consumer name must not be empty');
is_refused(create(consumer => "repeat('x', 64)"), '42622: consumer name "' . 'x' x 64 . '" is too long|It has 64 bytes.|Names have at most 63 bytes.');
is_refused(create(server => 'NULL'), '22004: server of consumer "in" must not be null');
is_refused(create(source => 'NULL'), '22004: source of consumer "in" must not be null');
is_refused(create(topic => 'NULL'), '22004: topic of consumer "in" must not be null');
is_refused(create(source => "''"), '22023: consumer "in" has no source|Name a topic or queue of the broker.');
is_refused(create(topic => "'none'"), '42704: topic "none" does not exist|Create it with cqrs_create_topic().');
is_refused(create(format => "'json'"), '22023: consumer "in" cannot have format "json"' . "${values}\"raw\", \"bytes\", \"cqrs\" and \"cloudevents\".");
is_refused(create(on_gap => "'latest'"), '22023: consumer "in" cannot have on_gap "latest"' . "${values}\"stop\" and \"earliest\".");
is_refused(create(workers => $_), "22023: consumer \"in\" cannot have $_ workers|It may have 1 to 64.") for 0, 65, -1;
is_refused(create(event_name => 'NULL'), '22023: consumer "in" has no event_name|In format "raw", messages do not say which event they are.');
is_refused(create(event_name => 'NULL', format => "'bytes'"), '22023: consumer "in" has no event_name|In format "bytes", messages do not say which event they are.');
is_refused(create(event_name => "'nothing'"), '42704: event "nothing" is not registered|Register it with cqrs_register_event().');
is_refused(create(start => "'yesterdays'"), '22007: invalid input syntax for type timestamp with time zone: "yesterdays"');
is_refused(create(start => "'$_'"), "22008: consumer \"in\" cannot begin at \"$_\"|Give a time from 1970 to 9999, \"earliest\" or \"latest\".")
  for 'infinity', '-infinity', '1969-12-31 23:59:59Z', '10000-01-01 00:00Z', '0044-03-15 BC';
is_refused(create(message_id => "'$_'"), "22023: consumer \"in\" cannot have message_id \"$_\"$values\"required\", \"header:NAME\" and \"body_hash\".")
  for '', 'header', 'header:', 'body';
like(error_parts($node, 'SELECT ' . create(server => "'none'"), 'owner'), qr/^42704: server "none" does not exist/, 'a server that is none');
like(error_parts($node, 'SELECT ' . create(server => "'plain'"), 'owner'), qr/^42809: server "plain" is not one of a message broker/, 'a server that is no broker');
like(error_parts($node, 'SELECT ' . create(), 'stranger'), qr/^42501: permission denied for (?:topic|view) "?things/, 'nobody writes where he may not INSERT');
like(error_parts($node, 'SELECT ' . create(), 'poor'), qr/^42501: permission denied for foreign server peer/, 'nor consumes without USAGE on the server');
like(error_parts($node, 'SELECT ' . create(), 'nologin'), qr/^42501: role "nologin" cannot own consumer "in"\|The worker connects as the owner/, 'the owner may log in')
  if $node->safe_psql('postgres', 'SHOW server_version_num') < 170000;
is_refused(create(), '42501: permission denied for function cqrs_create_consumer', 'watcher');
like(error_of($node, 'postgres', 'BEGIN READ ONLY; SELECT ' . create()), qr/ERROR:  25006: cannot execute cqrs_create_consumer\(\) in a read-only transaction/, 'nor in a read-only transaction');

as('owner', q(SELECT cqrs_subscribe('taken', ARRAY['things'])));
is_refused(create(consumer => "'taken'"), '42710: "taken" is the name of a subscription|No consumer can have the name of a subscription: choose another one.');

# ----------------------------------------------------------------------
# Twice is once
# ----------------------------------------------------------------------

is(as('owner', 'SELECT ' . create()), 't', 'it is made');
is(as('owner', 'SELECT ' . create()), 'f', 'and made again, which changes nothing');
is(as('owner', 'SELECT ' . create(format => "'raw'", start => "'earliest'", message_id => "'required'", on_gap => "'stop'", workers => 1)), 'f',
	'what is not given is the default');
my $another = '42710: consumer "in" already exists, and is another one|Use cqrs_alter_consumer(), or cqrs_drop_consumer() first.';
is_refused(create(@$_), $another)
  for [ source => "'other'" ], [ topic => "'others'" ], [ event_name => "'went'" ], [ format => "'bytes'" ], [ start => "'latest'" ],
  [ message_id => "'body_hash'" ], [ on_gap => "'earliest'" ], [ workers => 2 ];
is_refused(create(), '42501: must be owner of consumer "in"|What it takes is membership in its owner: GRANT owner TO heir.', 'heir');
is_refused("cqrs_subscribe('in', ARRAY['things'])", '42710: "in" is the name of a consumer|No subscription can have the name of a consumer: choose another one.');
like(error_parts($node, "SELECT $_"), qr/^42704: subscription "in" does not exist\|It is a consumer: use the functions of that, such as cqrs_pause_consumer\(\)\./, "$_ says what it is")
  for "cqrs_pause('in')", "cqrs_resume('in')", "cqrs_seek('in', 'latest')", "cqrs_redrive_all('in')", "cqrs_alter_subscription('in', partitions => 2)", "cqrs_wait('in')", "cqrs_receive('in')";
like(error_parts($node, "SELECT $_"), qr/^42704: consumer "taken" does not exist\|It is a subscription: use the functions of that, such as cqrs_pause\(\)\./, "$_ says what it is")
  for "cqrs_pause_consumer('taken')", "cqrs_alter_consumer('taken', workers => 2)";

# A start is a moment, not words for one, nor a wall clock's time in the session's zone.
as('owner', q(SET timezone = 'Asia/Tokyo'; SELECT ) . create(consumer => "'begun'", source => "'later'", start => "'2026-01-02 03:04:05'"));
is($node->safe_psql('postgres', q(SELECT start FROM cqrs_consumers WHERE consumer = 'begun')), '2026-01-01T18:04:05.000000+00:00', 'a start is in UTC');
is(as('owner', q(SET timezone = 'Europe/Lisbon'; SELECT ) . create(consumer => "'begun'", source => "'later'", start => "'2026-01-01 18:04:05'")), 'f',
	'whatever the time zone, the same moment is the same');
as('owner', 'SELECT ' . create(consumer => "'now'", source => "'later'", start => "'now'"));
is($node->safe_psql('postgres', q(SELECT start ~ '^2[0-9-]+T' FROM cqrs_consumers WHERE consumer = 'now')), 't', 'now is when it was made');
as('owner', q(SELECT cqrs_drop_consumer('begun'), cqrs_drop_consumer('now')));

# Names are anything.
my $odd = q(a "b'; %s \ c) . 'x' x 50;
(my $quoted = $odd) =~ s/'/''/g;
is(length $odd, 63, 'a name of 63 bytes');
is(as('owner', "SELECT " . create(consumer => "'$quoted'", source => "'$quoted'")), 't', 'with quotes in it');
is($node->safe_psql('postgres', "SELECT source FROM cqrs_consumers WHERE consumer = '$quoted'"), $odd, 'is in the list');
(my $view = $odd) =~ s/"/""/g;
is($node->safe_psql('postgres', qq(SELECT consumer FROM cqrs_subscriptions."$view")), $odd, 'has a view');
is(as('owner', "SELECT cqrs_alter_consumer('$quoted', workers => 3), cqrs_pause_consumer('$quoted'), cqrs_drop_consumer('$quoted')"), 't|t|t', 'is changed, paused and dropped');

# ----------------------------------------------------------------------
# Who may do what
# ----------------------------------------------------------------------

for my $call (
	"cqrs_alter_consumer('in', workers => 2)", "cqrs_drop_consumer('in')", "cqrs_pause_consumer('in')", "cqrs_resume_consumer('in')", "cqrs_seek_consumer('in', 'latest')",
	"cqrs_seek_consumer('in', 0, 1)", "cqrs_redrive_consumed('in', '{}')", "cqrs_redrive_all_consumed('in')", "cqrs_discard_consumed('in', '{}')", "cqrs_discard_all_consumed('in')")
{
	is_refused($call, "42501: must be owner of consumer \"in\"|What it takes is membership in its owner: GRANT owner TO $_.", $_) for 'stranger', 'watcher';
	like(error_of($node, 'postgres', "BEGIN READ ONLY; SELECT $call"), qr/ERROR:  25006: cannot execute cqrs_/, "$call writes");
	(my $null = $call) =~ s/'in'/NULL/;
	is_refused($null, '22004: consumer name must not be null');
	(my $none = $call) =~ s/'in'/'none'/;
	is(error_parts($node, "SELECT $none", 'owner'), $none =~ /drop/ ? '42704: consumer "none" does not exist|View cqrs_consumers has what there is. With if_exists => true, this is no error.' :
		'42704: consumer "none" does not exist|Create it with cqrs_create_consumer().', $none);
}
is(as('owner', q(SELECT cqrs_drop_consumer('none', if_exists => true), cqrs_drop_consumer('none', NULL IS NULL))), 'f|f', 'if_exists');

for my $list (qw(cqrs_consumers cqrs_consumer_status cqrs_subscriptions.in))
{
	(my $name = $list) =~ s/\.in/."in"/;
	is(as($_, "SELECT count(*) FROM $name"), 1, "$_ sees $list") for $list =~ /\./ ? ('owner', 'member') : ('owner', 'member', 'watcher');
}
is(as('stranger', "SELECT count(*) FROM $_"), 0, "not everybody sees $_") for qw(cqrs_consumers cqrs_consumer_status cqrs_consumer_partitions cqrs_consumer_dead_letters);
$node->safe_psql('postgres', 'GRANT SELECT ON cqrs_subscriptions."in" TO stranger');
is(as('stranger', "SELECT count(*) FROM $_"), 1, "whom it was granted sees $_") for qw(cqrs_consumers cqrs_consumer_status cqrs_subscriptions."in");
is(as('stranger', 'SELECT count(*) FROM cqrs_consumer_dead_letters'), 0, 'but no messages');

# ----------------------------------------------------------------------
# Changes
# ----------------------------------------------------------------------

is(as('owner', q(SELECT cqrs_alter_consumer('in'))), 'f', 'nothing is changed');
is(as('member', q(SELECT cqrs_alter_consumer('in', on_gap => 'earliest', workers => 2))), 't', 'a member changes it');
is(as('member', q(SELECT cqrs_alter_consumer('in', on_gap => 'earliest'))), 'f', 'to what it is');
is($node->safe_psql('postgres', q(SELECT topic, event_name, format, message_id, start, on_gap, workers, owner FROM cqrs_consumers)),
	'things|came|raw|required|earliest|earliest|2|owner', 'what is not given stays');
is_refused(q(cqrs_alter_consumer('in', topic => 'others')), '42501: must be owner of consumer "in" to change its topic|SET ROLE owner.', 'member');
is_refused(q(cqrs_alter_consumer('in', format => 'x')), "22023: consumer \"in\" cannot have format \"x\"$values\"raw\", \"bytes\", \"cqrs\" and \"cloudevents\".");
is_refused(q(cqrs_alter_consumer('in', message_id => 'x')), "22023: consumer \"in\" cannot have message_id \"x\"$values\"required\", \"header:NAME\" and \"body_hash\".");
is_refused(q(cqrs_alter_consumer('in', workers => 0)), '22023: consumer "in" cannot have 0 workers|It may have 1 to 64.');
is(as('owner', q(SELECT cqrs_alter_consumer('in', topic => 'others', event_name => 'went', on_gap => 'stop'))), 't', 'the owner changes the topic');

# Two at the same time: neither undoes the other.
my $first = new_session($node, 'postgres', 'owner');
$first->query(q(BEGIN; SELECT cqrs_alter_consumer('in', format => 'bytes')));
my $other = new_session($node, 'postgres', 'owner');
$other->begin(q(SELECT cqrs_alter_consumer('in', workers => 5)));
ok($node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT l.granted AND a.query ~ 'workers => 5')), 'the second waits');
$first->query('COMMIT');
$other->finish;
is($node->safe_psql('postgres', q(SELECT format, workers FROM cqrs_consumers)), 'bytes|5', 'two changes at the same time are both made');
as('owner', q(SELECT cqrs_alter_consumer('in', topic => 'things', event_name => 'came', format => 'raw', workers => 1)));

is_refused(q(cqrs_seek_consumer('in', 'latest')), '55000: the source of consumer "in" has no offsets|What was acknowledged, the broker has forgotten.');
is_refused(q(cqrs_seek_consumer('in', NULL)), '22004: target of cqrs_seek_consumer() must not be null');
is_refused(q(cqrs_seek_consumer('in', 'x')), '22007: invalid input syntax for type timestamp with time zone: "x"');
is_refused(q(cqrs_seek_consumer('in', 'infinity')), '22008: consumer "in" cannot begin at "infinity"|Give a time from 1970 to 9999, "earliest" or "latest".');
is_refused(q(cqrs_seek_consumer('in', 0, -1)), '22023: consumer "in" cannot go to offset -1|Offsets count from 0. "earliest" and "latest" are targets, too.');
is_refused(q(cqrs_seek_consumer('in', NULL::integer, 1::bigint)), '22004: partition of cqrs_seek_consumer() must not be null');
is_refused(q(cqrs_seek_consumer('in', 0, NULL::bigint)), '22004: offset of cqrs_seek_consumer() must not be null');

is(as('owner', q(SELECT cqrs_resume_consumer('in'), cqrs_pause_consumer('in'), cqrs_pause_consumer('in'))), 'f|t|f', 'it is paused once');
is($node->safe_psql('postgres', 'SELECT state FROM cqrs_consumer_status'), 'paused', 'its state says so');
is(as('owner', q(SELECT cqrs_resume_consumer('in'))), 't', 'and goes on');

# ----------------------------------------------------------------------
# Dead letters
# ----------------------------------------------------------------------

$peer->feed('wire', { id => 'a', body => 'no JSON' }, { id => 'b', body => '[1' }, { id => 'c', body => '{"n": 3}' }, { id => 'd', body => '1}' },
	{ id => 'e', body => 'x5', content_type => "text/\xC4" });
ok($node->poll_query_until('postgres', 'SELECT consumed = 1 AND dead = 4 AND dead_letters = 4 FROM cqrs_consumer_status'), 'messages that cannot be events are kept')
  or diag($node->safe_psql('postgres', 'SELECT * FROM cqrs_consumer_status'));
is($node->safe_psql('postgres', q(SELECT message_id, convert_from(body, 'LATIN1'), body_size, error_sqlstate, content_type FROM cqrs_consumer_dead_letters ORDER BY message_id)),
	"a|no JSON|7|22P02|\nb|[1|2|22P02|\nd|1}|2|22P02|\ne|x5|2|22P02|", 'as they came, and why');
is($node->safe_psql('postgres', q(SELECT problem, detail, hint FROM cqrs_health() WHERE object = 'consumer "in"')) =~ s/: invalid.*?\|/: WHY|/sr =~ s/with: .*?\|/with: WHY|/sr,
	q(consumer_dead_letters|Messages that could not become events: 4, the last with: WHY|SELECT * FROM cqrs_consumer_dead_letters WHERE consumer = 'in'; -- then cqrs_redrive_all_consumed('in'), cqrs_discard_consumed('in', ARRAY[event_id]) or cqrs_discard_all_consumed('in')),
	'health says so');
is(as('owner', q(SELECT cqrs_redrive_consumed('in', NULL), cqrs_redrive_consumed('in', '{}'), cqrs_discard_consumed('in', NULL), cqrs_discard_consumed('in', '{}'))), '0|0|0|0', 'no list is none of them');
is(as('owner', q(SELECT cqrs_redrive_all_consumed('in'))), '0', 'what still cannot be an event stays');
is($node->safe_psql('postgres', 'SELECT count(*) FROM cqrs_consumer_dead_letters'), 4, 'all of it');
is(as('owner', q(SELECT cqrs_discard_consumed('in', array_agg(event_id)) FROM cqrs_consumer_dead_letters WHERE message_id = 'a')), 1, 'one is discarded');
as('owner', q(SELECT cqrs_alter_consumer('in', format => 'bytes')));
is(as('owner', q(SELECT cqrs_redrive_consumed('in', array_agg(event_id)) FROM cqrs_consumer_dead_letters WHERE message_id = 'b')), 1, 'one becomes an event');
is(as('member', q(SELECT cqrs_redrive_all_consumed('in'))), 2, 'then the others');
is($node->safe_psql('postgres', q(SELECT headers->>'source_message_id', payload FROM cqrs_topics.things ORDER BY 1)),
	qq(b|{"base64": "WzE="}\nc|{"n": 3}\nd|{"base64": "MX0="}\ne|{"base64": "eDU="}), 'of what they were');
is($node->safe_psql('postgres', q(SELECT count(*) FROM cqrs_topics.things t JOIN cqrs_topics.things u USING (event_id))), 4, 'with ids of their own');

# Of a body that was cut, nothing is read that is not there.
$node->safe_psql('postgres', q(
	INSERT INTO cqrs.consumer_dead_letter (consumer_id, event_id, partition, message_offset, message_id, body, body_size, sqlstate, message, died_at)
	SELECT consumer_id, gen_random_uuid(), 0, -1, 'huge', '{}', 200000000, '54000', 'too large', now() FROM cqrs.consumer;
	ALTER SERVER peer OPTIONS (ADD max_message_size '500000000')));
my (undef, undef, $said) = $node->psql('postgres', q(SELECT cqrs_redrive_all_consumed('in')));
like($said, qr/NOTICE:  a dead letter of consumer "in" still cannot be an event\nDETAIL:  of a message of 200000000 bytes, the first 2 are kept/, 'a message of which the rest is not kept is no event');
is(as('owner', q(SELECT cqrs_discard_all_consumed('in'), cqrs_discard_all_consumed('in'))), '1|0', 'the rest is discarded');

# ----------------------------------------------------------------------
# Workers that are gone have no errors
# ----------------------------------------------------------------------

as('owner', q(SELECT cqrs_alter_consumer('in', workers => 2)));
$node->safe_psql('postgres', q(
	INSERT INTO cqrs.failure (subscription_id, partition, failures, failed_at, retry_at, sqlstate, message)
	SELECT consumer_id, 1, 3, now(), now() + interval '1 day', '08000', 'gone' FROM cqrs.consumer));
is($node->safe_psql('postgres', 'SELECT state, error FROM cqrs_consumer_status'), 'failing|gone', 'a worker fails');
is($node->safe_psql('postgres', q(SELECT severity, problem, hint FROM cqrs_health() WHERE object = 'consumer "in"')),
	q(error|consumer_failing|SELECT cqrs_resume_consumer('in'); -- once the cause is removed; otherwise, it is tried again by itself), 'health says so');
as('owner', q(SELECT cqrs_alter_consumer('in', workers => 1)));
is($node->safe_psql('postgres', 'SELECT state, error FROM cqrs_consumer_status'), 'active|', 'and is no more');

# ----------------------------------------------------------------------
# Topics that are dropped
# ----------------------------------------------------------------------

$node->safe_psql('postgres', q(SELECT cqrs_create_topic('more'); GRANT INSERT ON cqrs_topics.more TO owner));
as('owner', q(SELECT cqrs_alter_consumer('in', topic => 'more')));
is_refused(q(cqrs_drop_topic('more')),
	'2BP01: cannot drop topic "more" because consumer "in" writes to it|Use cqrs_drop_consumer() or cqrs_alter_consumer() first, or cascade => true: it waits then for another topic.', 'postgres');
$node->safe_psql('postgres', q(SELECT cqrs_drop_topic('more', cascade => true)));
$peer->feed('wire', { id => 'f', body => '{"n": 6}' });
ok($node->poll_query_until('postgres', q(SELECT error = 'the topic of consumer "in" was dropped' FROM cqrs_consumer_status)), 'without a topic, it waits');
is($node->safe_psql('postgres', q(SELECT severity, detail, hint FROM cqrs_health() WHERE problem = 'consumer_without_topic')),
	q(error|The topic that it writes to was dropped; nothing is consumed.|SELECT cqrs_alter_consumer('in', topic => ...); -- or cqrs_drop_consumer('in')), 'health says so');
is_refused(q(cqrs_redrive_all_consumed('in')), '55000: the topic of consumer "in" was dropped|Use cqrs_alter_consumer().');
as('owner', q(SELECT cqrs_alter_consumer('in', topic => 'things')));
ok($node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM cqrs_topics.things WHERE headers->>'source_message_id' = 'f')), 'for another one');

# ----------------------------------------------------------------------
# Owners
# ----------------------------------------------------------------------

$node->safe_psql('postgres', 'REASSIGN OWNED BY owner TO heir');
is($node->safe_psql('postgres', q(SELECT owner FROM cqrs_consumers)), 'heir', 'REASSIGN OWNED hands it over');
$peer->feed('wire', { id => 'g', body => '{"n": 7}' });
ok($node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM cqrs_topics.things WHERE headers->>'source_message_id' = 'g')), 'and it goes on');
$peer->feed('wire', { id => 'f', body => '{"n": 6}' });
ok($node->poll_query_until('postgres', 'SELECT repeated + dead + consumed = 8 FROM cqrs_consumer_status'), 'a message comes again');
is($node->safe_psql('postgres', 'SELECT repeated FROM cqrs_consumer_status'), 1, 'and is known, whoever owned it then');
like(error_of($node, 'postgres', 'DROP ROLE heir'), qr/owner of view cqrs_subscriptions."in"/, 'a role that has a consumer is not dropped');
$node->safe_psql('postgres', 'DROP OWNED BY heir');
is($node->safe_psql('postgres', q(SELECT state, owner FROM cqrs_consumer_status)), 'broken|', 'DROP OWNED leaves it without');
is($node->safe_psql('postgres', q(SELECT severity, detail, hint FROM cqrs_health() WHERE problem = 'consumer_without_owner')),
	q(error|View cqrs_subscriptions."in" does not exist, whose owner is the consumer's; nothing is consumed.|SELECT cqrs_alter_consumer('in'); -- as a superuser, who owns it then; or cqrs_drop_consumer('in')), 'health says so');
is_refused(q(cqrs_pause_consumer('in')), q(42501: must be owner of consumer "in"|Nobody owns it. The extension's owner may remove it, or own it by cqrs_alter_consumer().), 'heir');
is_refused(q(cqrs_redrive_all_consumed('in')), '55000: consumer "in" has no owner|Use cqrs_alter_consumer(), to own it.', 'postgres');
is($node->safe_psql('postgres', q(SELECT cqrs_alter_consumer('in'), cqrs_alter_consumer('in'))), 't|f', 'the extension\'s owner takes it');
is($node->safe_psql('postgres', q(SELECT state, owner FROM cqrs_consumer_status)), 'active|postgres', 'and owns it');
$peer->feed('wire', { id => 'h', body => '{"n": 8}' });
ok($node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM cqrs_topics.things WHERE headers->>'source_message_id' = 'h')), 'it goes on');

# ----------------------------------------------------------------------
# What health says of partitions, as a source with offsets has them
# ----------------------------------------------------------------------

# problems(MAX_LAG, MAX_HOLD)
sub problems
{
	return $node->safe_psql('postgres', "SELECT severity, problem, detail, hint FROM cqrs_health('$_[0]', '$_[1]') WHERE object = 'consumer \"in\"'",
		extra_params => [ '-U', 'watcher' ]);
}

$node->safe_psql('postgres', q(
	ALTER TABLE cqrs.consumer_position ALTER native DROP EXPRESSION;
	INSERT INTO cqrs.consumer_position (consumer_id, partition, seq, next_offset, last_offset, last_hash, end_offset, consumed, repeated, dead, last_time, stopped, moved_at, native)
	SELECT consumer_id, p.*, true
	FROM cqrs.consumer, (VALUES
		(20, 1, 3, 2, 0, 9, 1, 0, 0, timestamptz '2026-01-01 00:00Z', 'gap', timestamptz '2026-01-01 00:00Z'),
		(21, 1, 3, 2, 0, 9, 1, 0, 0, '2026-01-01 00:00Z', 'other', '2026-01-01 00:00Z'),
		(22, 1, 3, 2, 0, 9, 1, 0, 0, '2026-01-01 00:00Z', NULL, '2026-01-01 00:10Z'),
		(22, 2, 5, 4, 0, 9, 1, 0, 0, '2026-01-01 00:00Z', NULL, '2026-01-01 00:20Z'),
		(22, 3, 5, 4, 0, 12, 1, 0, 0, '2026-01-01 00:00Z', NULL, '2026-01-01 00:30Z'),
		(23, 1, 9, 8, 0, 9, 1, 0, 0, '2026-01-01 00:00Z', NULL, '2026-01-01 00:30Z')) p;
	SET timezone = 'UTC';
	ALTER DATABASE postgres SET timezone = 'UTC'));
my $seek = q(-- goes on with the first message that is there; or 'latest', a time, or an offset);
my $stopped = qq(error|consumer_stopped|Partition 20 is not consumed: what was to be consumed next, at offset 3, the broker has deleted.|SELECT cqrs_seek_consumer('in', 'earliest', 20); $seek
error|consumer_stopped|Partition 21 is not consumed: it is another one than that of which all up to offset 2 was consumed.|SELECT cqrs_seek_consumer('in', 'earliest', 21); $seek);
my $behind = q(warning|consumer_behind|Partition 22 has 7 offsets that are not consumed; the last message was sent at 2026-01-01 00:00:00+00, and consumed at 2026-01-01 00:30:00+00.|See cqrs_consumer_partitions. More workers, of a source with several partitions, consume more.);
my $held = q(warning|consumer_held_by_open_transaction|Partition 22 is connected, and has 7 offsets that cannot be read since 2026-01-01 00:20:00+00: most likely, a producer has left a transaction open.|Have the producer end it, or abort it at the broker: kafka-transactions.sh find-hanging shows it. Otherwise, it is aborted after its transaction.timeout.ms.);

is(problems('1 day', '1000 years'), $stopped, 'partitions that are stopped, and what to do');
is(problems('5 min', '1000 years'), "$stopped\n$behind", 'what is behind');
is(problems('5 min', '1 min'), "$stopped\n$behind\n$held", 'what cannot be read though it is there, since it was last');
$node->safe_psql('postgres', q(SELECT cqrs_pause_consumer('in')));
like(problems('5 min', '1 min'), qr/\A\Q$stopped\E\nnotice\|consumer_paused\|It is paused since [^|]*\|SELECT cqrs_resume_consumer\('in'\);\z/, 'of one that is paused, nothing is late');
is(problems('5 min', '1 min') =~ tr/\n//, 2, 'nor held');
$node->safe_psql('postgres', q(
	DELETE FROM cqrs.consumer_position WHERE partition >= 20;
	SELECT cqrs_resume_consumer('in')));
is(problems('0', '0'), '', 'all is well');

is($node->safe_psql('postgres', q(SELECT cqrs_drop_consumer('in'))), 't', 'it is dropped');
is($node->safe_psql('postgres', q(SELECT (SELECT count(*) FROM cqrs.consumer), (SELECT count(*) FROM cqrs.consumer_position), (SELECT count(*) FROM cqrs.consumer_dead_letter),
	(SELECT count(*) FROM cqrs.failure), (SELECT count(*) FROM cqrs.message_source), to_regclass('cqrs_subscriptions."in"') IS NULL)), '0|0|0|0|0|t', 'with all that it had');
is($node->safe_psql('postgres', 'SELECT count(*) FROM cqrs_topics.things'), 7, 'but its events');

$node->stop('fast');
done_testing();
