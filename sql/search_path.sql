-- The search_path of a handler: that of the session that subscribed
CREATE EXTENSION cqrs_outbox;
\set VERBOSITY terse
SELECT cqrs_register_event('happened', 'things');
CREATE SCHEMA app;
CREATE SCHEMA other;
CREATE SCHEMA "Quo""ted";
CREATE TABLE app.got (seq serial, what text);
CREATE TABLE other.got (seq serial, what text);
CREATE FUNCTION app.describe(event cqrs_event) RETURNS text LANGUAGE sql AS
	$$ SELECT format('%s with %s', event.payload->>'n', current_setting('search_path')) $$;
CREATE FUNCTION app.handle(event cqrs_event) RETURNS void LANGUAGE plpgsql AS $$ BEGIN INSERT INTO got (what) VALUES (app.describe(event)); END $$;
CREATE FUNCTION emit(n integer) RETURNS void LANGUAGE sql AS $$ SELECT public.cqrs_emit('happened', jsonb_build_object('n', n)) $$;

-- what it finds there, it finds when it is called
SET search_path = app, public;
SELECT cqrs_subscribe('bare', ARRAY['things'], 'handle(cqrs_event)');
SET search_path = public, other;
SELECT subscription, topics, handler, search_path FROM cqrs_subscriptions;
SELECT emit(1);
SELECT cqrs_drain('bare');
SHOW search_path;
SELECT what FROM app.got ORDER BY seq;
-- whatever a handler leaves
CREATE FUNCTION app.sets(event cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO got (what) VALUES (app.describe(event));
	SET search_path = other;
END $$;
SELECT cqrs_alter_subscription('bare', handler => 'app.sets(cqrs_event)');
SELECT emit(2), emit(3);
SELECT cqrs_drain('bare');
SHOW search_path;
-- the function's own SET wins
CREATE FUNCTION app.own(event cqrs_event) RETURNS void LANGUAGE plpgsql SET search_path = other, public AS $$
BEGIN INSERT INTO got (what) VALUES (app.describe(event)); END $$;
SELECT cqrs_alter_subscription('bare', handler => 'app.own(cqrs_event)');
SELECT emit(4);
SELECT cqrs_drain('bare');
SELECT what FROM app.got ORDER BY seq;
SELECT what FROM other.got ORDER BY seq;

-- chosen, and changed
SELECT cqrs_subscribe('chosen', ARRAY['things'], 'app.handle(cqrs_event)', start => 'latest', search_path => 'other');
SELECT emit(5);
SELECT cqrs_drain('chosen');
SELECT cqrs_alter_subscription('chosen', search_path => '"$user", "Quo""ted", app');
SELECT emit(6);
SELECT cqrs_drain('chosen');
SELECT cqrs_alter_subscription('chosen', search_path => '');
SELECT emit(7);
SELECT cqrs_drain('chosen');
SELECT error, error_sqlstate FROM cqrs_retries WHERE subscription = 'chosen';
SELECT cqrs_alter_subscription('chosen', search_path => 'app');
SELECT cqrs_retry_all('chosen');
SELECT cqrs_drain('chosen');
SELECT what FROM app.got ORDER BY seq;
SELECT what FROM other.got ORDER BY seq;
SELECT subscription, search_path FROM cqrs_subscriptions ORDER BY 1;

-- what cannot be one
\set VERBOSITY default
SELECT cqrs_alter_subscription('chosen', search_path => 'app, pg_temp');
SELECT cqrs_alter_subscription('chosen', search_path => 'pg_temp_3');
SELECT cqrs_alter_subscription('chosen', search_path => 'app,');
SELECT cqrs_subscribe('pulled', ARRAY['things'], search_path => 'app');
SELECT cqrs_subscribe('pulled', ARRAY['things']);
SELECT cqrs_alter_subscription('pulled', search_path => 'app');
-- a session's goes without
SET search_path = pg_temp, "Quo""ted", public;
SELECT cqrs_subscribe('temporary', ARRAY['things'], 'app.handle(cqrs_event)');
RESET search_path;
SELECT subscription, search_path FROM cqrs_subscriptions ORDER BY 1;

-- where others may put what it calls
CREATE ROLE regress_cqrs_owner LOGIN;
CREATE ROLE regress_cqrs_member IN ROLE regress_cqrs_owner;
CREATE ROLE regress_cqrs_stranger;
GRANT CREATE, USAGE ON SCHEMA app TO regress_cqrs_owner, regress_cqrs_member;
GRANT SELECT ON cqrs_topics.things TO regress_cqrs_owner;
GRANT EXECUTE ON FUNCTION cqrs_subscribe, cqrs_alter_subscription TO regress_cqrs_owner;
SET ROLE regress_cqrs_owner;
SELECT cqrs_subscribe('trusts', ARRAY['things'], 'app.handle(cqrs_event)', search_path => 'app, public, nowhere');
RESET ROLE;
GRANT CREATE ON SCHEMA app TO PUBLIC;
GRANT CREATE ON SCHEMA other TO regress_cqrs_stranger;
CREATE SCHEMA regress_cqrs_owner AUTHORIZATION regress_cqrs_stranger;
CREATE FUNCTION app.definer(event cqrs_event) RETURNS void LANGUAGE sql SECURITY DEFINER AS '';
SET ROLE regress_cqrs_owner;
SELECT cqrs_alter_subscription('trusts', search_path => 'public, app');
SELECT cqrs_alter_subscription('trusts', search_path => 'other');
SELECT cqrs_alter_subscription('trusts', search_path => '"$user"');
SELECT cqrs_alter_subscription('trusts', handler => 'app.own(cqrs_event)', search_path => 'other');
SELECT cqrs_alter_subscription('trusts', handler => 'app.definer(cqrs_event)', search_path => 'public');
RESET ROLE;
-- who may use it sees it
SET ROLE regress_cqrs_member;
SELECT subscription, owner, search_path FROM cqrs_subscriptions;
SET ROLE regress_cqrs_stranger;
SELECT subscription, owner, search_path FROM cqrs_subscriptions;
RESET ROLE;

-- a role's commands: that of the session that created the queue, or another
CREATE FUNCTION app.note(command jsonb) RETURNS void LANGUAGE plpgsql AS
	$$ BEGIN INSERT INTO got (what) VALUES ('command with ' || current_setting('search_path')); END $$;
SELECT cqrs_register_command('Note', 'app.note(jsonb)');
SELECT cqrs_create_command_queue('regress_cqrs_owner', search_path => 'app, pg_temp');
SELECT cqrs_create_command_queue('regress_cqrs_owner', search_path => 'other');
SELECT search_path FROM cqrs_subscriptions WHERE subscription = 'commands_of_regress_cqrs_owner';
SET search_path = pg_temp, app, public;
SELECT cqrs_create_command_queue();
RESET search_path;
SELECT cqrs_enqueue('Note') IS NOT NULL AS enqueued;
SELECT cqrs_drain(subscription) FROM cqrs_subscriptions WHERE subscription LIKE 'commands_of_%' AND owner = current_user;
SELECT what FROM app.got ORDER BY seq DESC LIMIT 1;

SET client_min_messages = warning;
DROP EXTENSION cqrs_outbox CASCADE;
DROP SCHEMA app, other, "Quo""ted", regress_cqrs_owner CASCADE;
DROP FUNCTION emit;
DROP OWNED BY regress_cqrs_owner, regress_cqrs_member, regress_cqrs_stranger;
DROP ROLE regress_cqrs_owner, regress_cqrs_member, regress_cqrs_stranger;
