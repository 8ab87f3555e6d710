# The hooks of other extensions are called around dispatches, whether they were
# installed before our library was loaded or after; the logging middleware
# writes its lines; and a dump contains what is registered. The regression tests
# cannot see these.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main', "log_statement = none\n");

# ----------------------------------------------------------------------
# Extensions of other authors: built outside of our sources, with what is
# installed. Each says what it sees with its name; what it does, the payload's
# key "hook" says, if its name is in "by".
# ----------------------------------------------------------------------

my $source = <<'EOF_C';
#include "postgres.h"
#include "fmgr.h"
#include "access/xact.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "cqrs_hooks.h"

PG_MODULE_MAGIC;

void		_PG_init(void);

static CqrsDispatchHook previous;
static CqrsProceed kept_proceed;
static void *kept_inner;

static char *
value_of(Jsonb *payload, const char *key)
{
	JsonbValue	value;

	if (getKeyJsonValueFromContainer(&payload->root, key, strlen(key), &value) == NULL)
		return pstrdup("");
	return pnstrdup(value.val.string.val, value.val.string.len);
}

static Jsonb *
json(const char *text)
{
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(text)));
}

static Jsonb *
go_on(const CqrsRequest *request, CqrsProceed proceed, void *inner)
{
	return previous != NULL ? previous(request, proceed, inner) : proceed(inner, request->payload);
}

static Jsonb *
swallow(const CqrsRequest *request, CqrsProceed proceed, void *inner)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	Jsonb	   *volatile answer = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		answer = go_on(request, proceed, inner);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		answer = json("\"swallowed\"");
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return answer;
}

static Jsonb *
hook(const CqrsRequest *request, CqrsProceed proceed, void *inner)
{
	char	   *action = value_of(request->payload, "hook");
	Jsonb	   *volatile answer = NULL;

	if (strcmp(value_of(request->payload, "by"), NAME) != 0)
		action = "";
	ereport(NOTICE, (errmsg(NAME ": %s %s %s", request->kind, request->name,
							JsonbToCString(NULL, &request->payload->root, 0))));
	if (strcmp(action, "answer") == 0)
		return json("\"" NAME "\"");
	if (strcmp(action, "payload") == 0)
	{
		CqrsRequest changed = *request;

		changed.payload = json("{\"from\": \"" NAME "\"}");
		return go_on(&changed, proceed, inner);
	}
	if (strcmp(action, "array") == 0)
		return proceed(inner, json("[]"));
	if (strcmp(action, "id") == 0)
		return json(psprintf("\"%s\"", DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(request->id)))));
	if (strcmp(action, "swallow") == 0)
		return swallow(request, proceed, inner);
	if (strcmp(action, "sql") == 0)
	{
		SPI_connect();
		SPI_execute("SELECT cqrs_proceed()", false, 0);
		SPI_finish();
	}
	if (strcmp(action, "keep") == 0)
	{
		kept_proceed = proceed;
		kept_inner = inner;
	}
	if (strcmp(action, "kept") == 0)
		return kept_proceed(kept_inner, request->payload);
	PG_TRY();
	{
		answer = go_on(request, proceed, inner);
		if (strcmp(action, "twice") == 0)
			answer = go_on(request, proceed, inner);
	}
	PG_CATCH();
	{
		int			code = geterrcode();

		ereport(NOTICE, (errmsg(NAME ": error %s", unpack_sql_state(code))));
		PG_RE_THROW();
	}
	PG_END_TRY();
	ereport(NOTICE, (errmsg(NAME ": answer %s", answer == NULL ? "NULL" :
							JsonbToCString(NULL, &answer->root, 0))));
	return answer;
}

void
_PG_init(void)
{
	CqrsDispatchHook *place = cqrs_find_dispatch_hook();

	previous = *place;
	*place = hook;
}
EOF_C

my $folder = PostgreSQL::Test::Utils::tempdir;

# What a session with hooks says.
sub said
{
	my ($session, $sql) = @_;

	(my $said = $session->query($sql)) =~ s/^psql:[^\n]*?: (NOTICE|ERROR):  /$1 /mg;
	$said =~ s/^(CONTEXT|SQL |PL\/pgSQL |handler |middleware )[^\n]*\n?//mg;
	return $said =~ s/NOTICE //gr =~ s/\n+$//r;
}

build_module($folder, $_, $source, qq(-Werror -DNAME=\\"$_\\")) for qw(inner outer);
# One is loaded before our library is, one in a session.
$node->append_conf('postgresql.conf', "shared_preload_libraries = '$folder/inner, cqrs_outbox'");
$node->start;
query($node, q(
	CREATE EXTENSION cqrs_outbox;
	CREATE TABLE handled (n serial, payload jsonb);
	CREATE FUNCTION handle(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO handled (payload) VALUES (c);
		IF c ? 'nested' THEN
			PERFORM cqrs_send('Handle', c->'nested');
		END IF;
		IF c ? 'error' THEN
			RAISE 'failed' USING ERRCODE = c->>'error';
		END IF;
		RETURN nullif(c->'answer', 'null');
	END $$;
	CREATE FUNCTION ask(c jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT c';
	CREATE FUNCTION rows(c jsonb) RETURNS SETOF int LANGUAGE sql AS 'SELECT generate_series(1, 2)';
	CREATE FUNCTION context(c jsonb) RETURNS text LANGUAGE sql AS 'SELECT (cqrs_context()).id';
	SELECT cqrs_register_command('Handle', 'handle(jsonb)'), cqrs_register_query('Ask', 'ask(jsonb)'),
		   cqrs_register_command('Rows', 'rows(jsonb)');
));

my $one = new_session($node, 'postgres');

is(said($one, q(SELECT cqrs_send('Handle', '{"answer": 1}'))),
	join("\n", 'inner: command Handle {"answer": 1}', 'inner: answer 1', '1'), 'before and after a command');
is(said($one, q(SELECT cqrs_query('Ask', '{"a": 1}'))),
	join("\n", 'inner: query Ask {"a": 1}', 'inner: answer {"a": 1}', '{"a": 1}'), 'and a query');
is(said($one, q(SELECT cqrs_stream('Rows'))), "1\n2", 'not a stream');
like(said($one, q(SELECT cqrs_send('Handle', '{"error": "22012"}'))),
	qr/^inner: command Handle \{"error": "22012"\}\ninner: error 22012\nERROR failed$/, 'it sees an error, which goes on');

$one->query("LOAD '$folder/outer'");
is(said($one, q(SELECT cqrs_send('Handle', '{"answer": null}'))),
	join("\n", 'outer: command Handle {"answer": null}', 'inner: command Handle {"answer": null}', 'inner: answer NULL', 'outer: answer NULL'),
	'one that is installed later is outermost; NULL');
is(said($one, q(SELECT cqrs_send('Handle', '{"hook": "answer", "by": "outer"}'))),
	join("\n", 'outer: command Handle {"by": "outer", "hook": "answer"}', '"outer"'), 'it answers itself');
is(said($one, q(SELECT cqrs_query('Ask', '{"hook": "payload", "by": "outer"}'))),
	join("\n", 'outer: query Ask {"by": "outer", "hook": "payload"}', 'inner: query Ask {"from": "outer"}',
		'inner: answer {"from": "outer"}', '{"from": "outer"}'), 'it gives another payload to the next hook');
is(said($one, q(SELECT cqrs_query('Ask', '{"hook": "payload", "by": "inner"}') - 'by')),
	join("\n", 'outer: query Ask {"by": "inner", "hook": "payload"}', 'inner: query Ask {"by": "inner", "hook": "payload"}',
		'outer: answer {"from": "inner"}', '{"from": "inner"}'), 'and to the handler');
like(said($one, q(SELECT cqrs_query('Ask', '{"hook": "array", "by": "inner"}'))), qr/ERROR payload of query "Ask" is not a JSON object/,
	'which is an object');
query($node, 'TRUNCATE handled');
like(said($one, q(SELECT cqrs_send('Handle', '{"hook": "twice", "by": "inner", "answer": 2}'))), qr/\n2$/, 'it proceeds twice');
is(query($node, 'SELECT count(*) FROM handled'), '2', '... and so the command is handled twice');
query($node, 'TRUNCATE handled');
like(said($one, q(SELECT cqrs_send('Handle', '{"hook": "swallow", "by": "inner", "error": "P0001"}'))), qr/\n"swallowed"$/,
	'it swallows an error');
is(query($node, 'SELECT count(*) FROM handled'), '0', '... with what was done before it');
like(said($one, q(SELECT cqrs_send('Handle', '{"answer": 3, "nested": {"answer": 4}}'))),
	qr/^outer: command Handle \{"answer": 3.*\n(.*\n)*outer: command Handle \{"answer": 4\}\n(.*\n)*outer: answer 4\n(.*\n)*outer: answer 3\n3$/,
	'nested commands');
like(said($one, q(SELECT cqrs_send('Handle', '{"hook": "keep", "by": "inner", "nested": {"hook": "kept", "by": "inner"}}'))),
	qr/ERROR a dispatch proceeds outside of its hook/, 'a nested command does not proceed the outer one');
like(said($one, q(SELECT cqrs_send('Handle', '{"hook": "sql", "by": "inner"}'))),
	qr/ERROR cqrs_proceed\(\) was not called by a middleware/, 'what a hook runs as SQL is no middleware');
like(said($one, q(SELECT cqrs_send('Handle', '{"answer": 5}'))), qr/\n5$/, 'all is well after that');

# Registered middleware is further in, and finds the same id.
query($node, q(
	CREATE FUNCTION middleware(request cqrs_request) RETURNS jsonb LANGUAGE plpgsql AS $$
	BEGIN
		RAISE NOTICE 'middleware: %', request.payload;
		RETURN cqrs_proceed();
	END $$;
	SELECT cqrs_register_middleware('middleware(cqrs_request)');
));
is(said($one, q(SELECT cqrs_query('Ask', '{"hook": "payload", "by": "inner"}'))),
	join("\n", 'outer: query Ask {"by": "inner", "hook": "payload"}', 'inner: query Ask {"by": "inner", "hook": "payload"}',
		'middleware: {"from": "inner"}', 'outer: answer {"from": "inner"}', '{"from": "inner"}'), 'registered middleware is further in');
query($node, q(
	CREATE FUNCTION middleware_id(request cqrs_request) RETURNS jsonb LANGUAGE sql AS $$
		SELECT cqrs_proceed() || jsonb_build_object('context', (cqrs_context()).id)
	$$;
	CREATE OR REPLACE FUNCTION ask(c jsonb) RETURNS jsonb LANGUAGE sql AS
		$$SELECT jsonb_build_object('handler', (cqrs_context()).id)$$;
	SELECT cqrs_register_middleware('middleware_id(cqrs_request)');
));
like(said($one, q(SELECT cqrs_query('Ask', '{}'))), qr/\n\{"context": "([-0-9a-f]{36})", "handler": "\1"\}$/, 'one id for all of them');

$one->quit;
query($node, q(SELECT cqrs_unregister_middleware('middleware_id(cqrs_request)'), cqrs_unregister_middleware('middleware(cqrs_request)')));

# ----------------------------------------------------------------------
# The log
# ----------------------------------------------------------------------

# written(OFFSET): what the server wrote since
sub written { return substr(slurp_file($node->logfile), $_[0]); }

# logged(SQL): the lines that the server wrote of it
sub logged
{
	my ($sql) = @_;
	my $offset = -s $node->logfile;

	$node->psql('postgres', $sql);
	return join "\n", grep { /LOG:  (command|query|stream) "/ } split /\n/, written($offset);
}

my $id = '[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}';
query($node, q(
	SELECT cqrs_register_middleware('cqrs_log_dispatch(cqrs_request)');
	CREATE ROLE sender LOGIN;
	GRANT ALL ON handled TO sender;
	GRANT ALL ON SEQUENCE handled_n_seq TO sender;
));
like(logged(q(SELECT cqrs_query('Ask', '{"secret": "4711"}'))), qr/^.*LOG:  query "Ask" \($id\) took \d+\.\d{3} ms$/, 'a line for a query');
like(logged(q(SET ROLE sender; SELECT cqrs_send('Handle', '{"nested": {}}'))),
	qr/^.*LOG:  command "Handle" \(($id)\) took [^\n]*\n.*LOG:  command "Handle" \((?!\1)$id\) took \d+\.\d{3} ms$/, "of a sender's commands, one each");
like(logged(q(SELECT cqrs_send('Handle', '{"error": "22012"}'))),
	qr/^.*LOG:  command "Handle" \($id\) failed with 22012 after \d+\.\d{3} ms$/, 'an error, with its code');
query($node, q(CREATE OR REPLACE FUNCTION ask(c jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT to_jsonb((cqrs_context()).id::text)$$));
my $offset = -s $node->logfile;
my $told = query($node, q(SELECT cqrs_query('Ask') #>> '{}'));
like(written($offset), qr/query "Ask" \($told\)/, 'its id is that of the context');
query($node, q(
	CREATE FUNCTION slow(jsonb) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(0.2)';
	SELECT cqrs_register_command('Slow', 'slow(jsonb)');
));
like(logged(q(SELECT cqrs_send('Slow'))), qr/ took [2-9]\d\d+\.\d{3} ms$/, 'milliseconds');
like(logged(q(SET statement_timeout = '50ms'; SELECT cqrs_send('Slow'))), qr/failed with 57014 after/, 'a cancelled one, which is cancelled');
$offset = -s $node->logfile;
like(error_of($node, 'postgres', q(SELECT cqrs_send('Handle', '{"error": "P0007", "secret": "4712"}'))), qr/ERROR:  P0007: failed\nCONTEXT:  .*\nhandler public\.handle.* of command "Handle"\nmiddleware public\.cqrs_log_dispatch/s, 'the error goes on as it was');
unlike(written($offset), qr/LOG:  command "Handle"[^\n]*(4712|\n[^\n]* (CONTEXT|STATEMENT):)/,
	'no payload in the line, and no second one');
like(logged(q(SET client_min_messages = log; SELECT cqrs_log_dispatch(NULL))), qr/^$/, 'not called by a dispatch, it logs nothing');

# ----------------------------------------------------------------------
# A dump
# ----------------------------------------------------------------------

query($node, q(
	CREATE FUNCTION first(request cqrs_request) RETURNS jsonb LANGUAGE sql AS 'SELECT public.cqrs_proceed()';
	CREATE FUNCTION last(request cqrs_request) RETURNS jsonb LANGUAGE sql AS 'SELECT public.cqrs_proceed()';
	SELECT cqrs_register_middleware('last(cqrs_request)'), cqrs_register_middleware('first(cqrs_request)', -5);
	CREATE DATABASE restored;
));
$node->command_ok([ 'pg_dump', '-Fc', '-f', "$folder/dump", $node->connstr('postgres') ], 'dumped');
$node->command_ok([ 'pg_restore', '-d', $node->connstr('restored'), "$folder/dump" ], 'restored');
$node->safe_psql('restored', q(
	CREATE FUNCTION registered_now(request cqrs_request) RETURNS jsonb LANGUAGE sql AS 'SELECT public.cqrs_proceed()';
	SELECT cqrs_register_middleware('registered_now(cqrs_request)');
));
is($node->safe_psql('restored', q(SELECT string_agg(handler::regproc::text, ' ' ORDER BY priority, seq) FROM (SELECT handler::regprocedure::oid AS handler, priority, seq FROM cqrs.middleware) m)),
	'first cqrs_log_dispatch last registered_now', 'in the same order, with later ones behind');
$offset = -s $node->logfile;
is($node->safe_psql('restored', q(SELECT cqrs_send('Handle', '{"answer": 6}'))), '6', 'a command in the restored database');
like(written($offset), qr/command "Handle" \($id\) took/, '... goes through them');

$node->stop;
done_testing();
