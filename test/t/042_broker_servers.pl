# What is no broker module is refused; a running subscription follows changes of
# its server, user mapping and privileges; and a module that never returns is in
# nobody's way.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use CqrsTest;
use ExamplePeer;

my $node = new_server('main', "cqrs_outbox.max_workers = 8\nlog_statement = none\n");
my $peer = ExamplePeer->new;
my $port = $peer->port;

# wait_delivered(SUBSCRIPTION, WHAT)
sub wait_delivered
{
	my ($name, $what) = @_;

	ok(wait_status($node, 'postgres', $name, '0/0/0/0'), $what);
}

sub emit { query($node, q(SELECT cqrs_emit('order_placed', '{"n": 1}'))); }

# ----------------------------------------------------------------------
# A module of another author: built outside of our sources, with what is
# installed. It confirms everything, but the callback that option "stuck" of the
# server names does not return.
# ----------------------------------------------------------------------

my $source = <<'EOF_C';
#include "postgres.h"
#include "fmgr.h"
#include <unistd.h>
#include "cqrs_broker.h"

PG_MODULE_MAGIC;
extern PGDLLEXPORT const CqrsBrokerModule *cqrs_broker_module(void);

#ifndef MAGIC
#define MAGIC CQRS_BROKER_MAGIC
#endif
#ifndef VERSION
#define VERSION CQRS_BROKER_VERSION
#endif

static const CqrsBrokerConnection *stuck_connection;

static void
maybe_stuck(const CqrsBrokerConnection *connection, const char *where)
{
	for (int i = 0; i < connection->noptions; i++)
	{
		if (strcmp(connection->options[i].name, "stuck") == 0 &&
			strcmp(connection->options[i].value, where) == 0)
			for (;;)
				pause();
	}
}

static bool
stuck_check(const CqrsBrokerConnection *connection, char *error)
{
	return true;
}

static void *
stuck_startup(const CqrsBrokerConnection *connection, char *error)
{
	stuck_connection = connection;
	maybe_stuck(connection, "startup");
	return &stuck_connection;
}

static bool
stuck_publish(void *state, CqrsBrokerMessage *const *messages, int n, char *error)
{
	maybe_stuck(stuck_connection, "publish");
	for (int i = 0; i < n; i++)
		stuck_connection->report(messages[i], CQRS_BROKER_CONFIRMED, NULL);
	return true;
}

static bool
stuck_poll(void *state, char *error)
{
	maybe_stuck(stuck_connection, "poll");
	return true;
}

static int
stuck_fd(void *state)
{
	return -1;
}

static void
stuck_shutdown(void *state)
{
	maybe_stuck(stuck_connection, "shutdown");
}

static const CqrsBrokerModule module = {
	MAGIC, VERSION, "Stuck", "", false, 10,
#ifndef INCOMPLETE
	stuck_check,
#else
	NULL,
#endif
	stuck_startup, stuck_publish, stuck_poll, stuck_fd, stuck_shutdown
};

PG_FUNCTION_INFO_V1(stuck_validator);

Datum
stuck_validator(PG_FUNCTION_ARGS)
{
	PG_RETURN_VOID();
}

#ifndef NO_MODULE
const CqrsBrokerModule *
cqrs_broker_module(void)
{
	return &module;
}
#endif
EOF_C

my $folder = PostgreSQL::Test::Utils::tempdir;

# build_wrapper(NAME, FLAGS): a library, and a wrapper of this name
sub build_wrapper
{
	my ($name, $flags) = @_;

	build_module($folder, $name, $source, $flags);
	query($node, qq(
		CREATE FUNCTION $name(text[], oid) RETURNS void LANGUAGE C STRICT AS '$folder/$name', 'stuck_validator';
		CREATE FOREIGN DATA WRAPPER $name VALIDATOR $name;
		CREATE SERVER $name FOREIGN DATA WRAPPER $name;
	));
}

$node->start;
$peer->create_server($node, 'postgres', 'peer');
query($node, q(
	SELECT cqrs_create_topic('orders');
	SELECT cqrs_register_event('order_placed', 'orders');
));
build_wrapper('other_magic', '-DMAGIC=1');
build_wrapper('other_version', '-DVERSION=1');
build_wrapper('incomplete', '-DINCOMPLETE');
build_wrapper('no_module', '-DNO_MODULE');
build_wrapper('stuck', '');

# ----------------------------------------------------------------------
# What cannot be subscribed
# ----------------------------------------------------------------------

# refused(SERVER, PATTERN, WHAT)
sub refused
{
	my ($server, $pattern, $what) = @_;

	like(error_of($node, 'postgres', "SELECT cqrs_subscribe('refused', ARRAY['orders'], server => '$server')"), $pattern, $what);
}

query($node, q(
	CREATE FOREIGN DATA WRAPPER unvalidated;
	CREATE SERVER unvalidated FOREIGN DATA WRAPPER unvalidated;
	CREATE FOREIGN DATA WRAPPER built_in VALIDATOR postgresql_fdw_validator;
	CREATE SERVER built_in FOREIGN DATA WRAPPER built_in;
	CREATE SERVER portless FOREIGN DATA WRAPPER cqrs_example;
));
refused('nowhere', qr/ERROR:  42704: server "nowhere" does not exist\nHINT/, 'no such server');
refused('unvalidated', qr/ERROR:  42809: server "unvalidated" is not one of a message broker\n/, 'a wrapper without a validator');
refused('built_in', qr/ERROR:  42809: .* not one of a message broker\n/, "a validator of the server's");
refused('no_module', qr/ERROR:  42809: .* not one of a message broker\n/, 'a library that is no module');
refused('other_magic', qr/ERROR:  55000: library ".*other_magic" of server "other_magic" is not a broker module\n/, 'another magic');
refused('other_version', qr/ERROR:  55000: .* does not fit cqrs_outbox\nDETAIL:  It has version 1 of the interface, cqrs_outbox has 2\.\nHINT/,
	'another version');
refused('incomplete', qr/ERROR:  55000: broker module ".*incomplete" of server "incomplete" is not complete\n/, 'a callback is missing');
refused('portless', qr/ERROR:  22023: server "portless" cannot be connected to as it is\nDETAIL:  option "port" of the server is not set\nHINT/,
	'what check() says');
is(query($node, 'SELECT count(*) FROM cqrs.subscription'), '0', 'nothing is left of that');

# The example's validator.
like(error_of($node, 'postgres', "CREATE SERVER x FOREIGN DATA WRAPPER cqrs_example OPTIONS (prot '1')"),
	qr/ERROR:  HV00D: foreign-data wrapper "cqrs_example" has no option "prot" here\nHINT:  Valid options in this context are: host, port, timeout, window, cloudevents_source, max_message_size\.\n/,
	'an unknown option');
for my $value ('0', '65536', 'http', '')
{
	like(error_of($node, 'postgres', "CREATE SERVER x FOREIGN DATA WRAPPER cqrs_example OPTIONS (port '$value')"),
		qr/ERROR:  22023: option "port" must be a number from 1 to 65535\n/, "port '$value'");
}
like(error_of($node, 'postgres', "CREATE USER MAPPING FOR PUBLIC SERVER peer OPTIONS (password 'swordfish')"),
	qr/ERROR:  HV00D: .*"password" here\nHINT:  Valid options in this context are: token\.\n/, 'an unknown option of a user mapping');

# ----------------------------------------------------------------------
# Privileges
# ----------------------------------------------------------------------

query($node, q(
	CREATE ROLE app LOGIN;
	GRANT EXECUTE ON FUNCTION
		cqrs_subscribe
		TO app;
	GRANT SELECT ON cqrs_topics.orders TO app;
));
my $subscribe = "SELECT cqrs_subscribe('apps', ARRAY['orders'], server => 'peer', retry_delay => '10 ms', max_retry_delay => '20 ms')";
like(error_of($node, 'postgres', "SET ROLE app; $subscribe"), qr/ERROR:  42501: permission denied for foreign server peer\n/, 'USAGE is needed');
query($node, qq(
	GRANT USAGE ON FOREIGN SERVER peer TO app;
	CREATE USER MAPPING FOR PUBLIC SERVER peer OPTIONS (token 'of everybody');
	SET ROLE app;
	$subscribe;
));
emit();
wait_delivered('apps', 'and enough');
is($peer->tell('hellos')->[-1]{token}, 'of everybody', "without a user mapping, it is PUBLIC's");

query($node, 'REVOKE USAGE ON FOREIGN SERVER peer FROM app');
emit();
ok(wait_error($node, 'postgres', 'apps', '^permission denied for foreign server peer'), 'USAGE is revoked while it runs');
is(scalar($peer->messages), 1, 'and nothing is sent any more');
query($node, 'GRANT USAGE ON FOREIGN SERVER peer TO app');
wait_delivered('apps', 'until it is granted again');

# ----------------------------------------------------------------------
# Changes while it runs
# ----------------------------------------------------------------------

query($node, q(CREATE USER MAPPING FOR app SERVER peer OPTIONS (token 'of app')));
emit();
wait_delivered('apps', 'a user mapping');
is($peer->tell('hellos')->[-1]{token}, 'of app', 'is used at once');
query($node, q(ALTER USER MAPPING FOR app SERVER peer OPTIONS (SET token 'another')));
emit();
wait_delivered('apps', 'another token');
is($peer->tell('hellos')->[-1]{token}, 'another', 'is used at once');

my $second = ExamplePeer->new;
query($node, "ALTER SERVER peer OPTIONS (SET port '" . $second->port . "')");
emit();
wait_delivered('apps', 'another port');
is(scalar($second->messages), 1, 'is used at once');
query($node, "ALTER SERVER peer OPTIONS (DROP port)");
emit();
ok(wait_error($node, 'postgres', 'apps', '^server "peer" cannot be connected to as it is'), 'options that will not do');
query($node, "ALTER SERVER peer OPTIONS (ADD port '$port')");
wait_delivered('apps', 'and those that do');

my $before = $peer->messages;
query($node, 'DROP SERVER peer CASCADE');
emit();
ok(wait_error($node, 'postgres', 'apps', '^server "peer" does not exist'), 'the server is dropped');
$peer->create_server($node, 'postgres', 'peer');
query($node, 'GRANT USAGE ON FOREIGN SERVER peer TO app');
wait_delivered('apps', 'and made anew');
is(scalar($peer->messages), $before + 1, 'the event that was emitted meanwhile is delivered');
is($peer->tell('hellos')->[-1]{token}, undef, 'without the token that is gone');
unlike(slurp_file($node->logfile), qr/of everybody|of app|another/, 'no secret is in the log');

# ----------------------------------------------------------------------
# A module that does not return
# ----------------------------------------------------------------------

# seconds(FUNCTION): how long it takes
sub seconds
{
	my ($function) = @_;
	my $start = time;

	$function->();
	return time - $start;
}

for my $where (qw(startup publish poll shutdown))
{
	query($node, "DROP SERVER stuck; CREATE SERVER stuck FOREIGN DATA WRAPPER stuck OPTIONS (stuck '$where')");

	# subscribe(): and wait until it is stuck, or will be
	my $subscribe = sub {
		query($node, q(SELECT cqrs_subscribe('stuck', ARRAY['orders'], server => 'stuck', start => 'latest',
			retry_delay => '10 ms', max_retry_delay => '20 ms', delivery_timeout => '1 h')));
		emit();
		ok($node->poll_query_until('postgres',
				"SELECT pid IS NOT NULL AND (lag_events = 0) = ('$where' = 'shutdown') FROM cqrs_subscription_status WHERE subscription = 'stuck'"),
			"stuck in $where: the worker waits");
	};

	$subscribe->();
	cmp_ok(seconds(sub { query($node, "SELECT cqrs_pause('stuck')") }), '<', 2, "stuck in $where: pausing");
	cmp_ok(seconds(sub { query($node, "SELECT cqrs_resume('stuck')") }), '<', 2, "stuck in $where: resuming");
	cmp_ok(seconds(sub { query($node, "SELECT cqrs_unsubscribe('stuck')") }), '<', 2, "stuck in $where: unsubscribing");
	ok($node->poll_query_until('postgres',
			"SELECT count(*) = 0 FROM cqrs_worker_status WHERE state = 'delivering' AND subscription IS NULL"),
		"stuck in $where: the worker lets go");

	$subscribe->();
	emit();
	wait_delivered('apps', "stuck in $where: another subscription goes on");
	cmp_ok(seconds(sub { $node->stop('fast') }), '<', 2, "stuck in $where: a fast stop of the server");
	$node->start;
	query($node, "SELECT cqrs_unsubscribe('stuck')");
}
unlike(slurp_file($node->logfile), qr/terminated by signal|PANIC/, 'nothing crashed');

# One that does not answer for the subscription's delivery_timeout is given up.
query($node, q(
	DROP SERVER stuck; CREATE SERVER stuck FOREIGN DATA WRAPPER stuck OPTIONS (stuck 'publish');
	SELECT cqrs_subscribe('stuck', ARRAY['orders'], server => 'stuck', start => 'latest',
		retry_delay => '10 ms', max_retry_delay => '20 ms', delivery_timeout => '100 ms');
));
emit();
ok(wait_error($node, 'postgres', 'stuck', '^Stuck of server "stuck" has confirmed nothing for 100 ms'), 'a module is given as long as a handler');
query($node, 'ALTER SERVER stuck OPTIONS (DROP stuck)');
wait_delivered('stuck', 'and another process tries again');

$peer->stop;
$second->stop;
$node->stop;
done_testing();
