/* cqrs_outbox */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION cqrs_outbox" to load this file. \quit

/*
 * 10-extension.sql
 *		Where everything is, and what guards it.
 *
 * The script is made of the files of sql/install, in the order of their names,
 * which is that of the folders of src/ that have something in SQL. So a file
 * refers only to itself and to those before it.
 *
 * Our objects in the target schema are written @extschema@.name. Nothing else in
 * that schema is ever used: whoever may create functions and operators there
 * must not be able to make tables' defaults, views and SQL functions call them.
 *
 * Each function is followed by its privileges and its comment. A function that is
 * granted to PUBLIC checks what its caller may do; those in schema cqrs are
 * called by views, as the reader. A GRANT is one line, since make puts all of
 * them at the end, after cqrs.withdraw_privileges() has withdrawn whatever ALTER
 * DEFAULT PRIVILEGES granted.
 *
 * Each table is followed by whether a dump contains it, and by its guards. No
 * table refers to another by a foreign key: in a dump, a key between members of
 * an extension is no dependency, and pg_restore -j would load the tables in any
 * order. Instead, changes of the tables take the locks needed (see
 * topic_drop.c, subscribe.c), and a row that refers to nothing is ignored.
 */

SET LOCAL search_path TO pg_catalog, pg_temp;

-- ----------------------------------------------------------------------
-- Schemas
--
-- cqrs         tables, sequences and functions of the extension's own, and
--              the segments of every topic; nobody needs USAGE on it
-- cqrs_topics  one view for each topic, named like the topic: what people
--              read, and what carries a topic's privileges
-- cqrs_subscriptions
--              one view for each subscription, named like it, with its row of
--              cqrs_subscription_status. Who owns the view owns the
--              subscription; whoever has CREATE here could own one whose view
--              was dropped
-- ----------------------------------------------------------------------
DO $$
DECLARE
	taken	text;
BEGIN
	SELECT string_agg(quote_ident(nspname), ', ' ORDER BY nspname) INTO taken
	FROM pg_namespace WHERE nspname IN ('cqrs', 'cqrs_topics', 'cqrs_subscriptions');
	IF taken IS NOT NULL THEN
		RAISE EXCEPTION 'cqrs_outbox cannot be created where there are schemas of its names: %', taken
			USING ERRCODE = 'duplicate_schema', HINT = 'Rename them, or create the extension in another database.';
	END IF;
END $$;
CREATE SCHEMA cqrs;
COMMENT ON SCHEMA cqrs IS 'internals of cqrs_outbox';
CREATE SCHEMA cqrs_topics;
GRANT USAGE ON SCHEMA cqrs_topics TO PUBLIC;
COMMENT ON SCHEMA cqrs_topics IS
'one view for each topic; GRANT INSERT on it allows to emit, GRANT SELECT to read';
CREATE SCHEMA cqrs_subscriptions;
GRANT USAGE ON SCHEMA cqrs_subscriptions TO PUBLIC;
COMMENT ON SCHEMA cqrs_subscriptions IS
'one view for each subscription; who owns it owns the subscription, GRANT SELECT on it allows to see it, GRANT UPDATE to receive';

-- Withdraws every privilege on the extension's objects from everybody but their
-- owner.
CREATE FUNCTION cqrs.withdraw_privileges() RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_withdraw_privileges';
REVOKE ALL ON FUNCTION cqrs.withdraw_privileges() FROM PUBLIC;
COMMENT ON FUNCTION cqrs.withdraw_privileges() IS 'withdraws every privilege on the extension''s objects';

-- For scripts that update the extension: a function that takes another's place has
-- what was granted on that one. Call it between CREATE and DROP; CREATE OR REPLACE
-- keeps what is granted. What is granted so is no part of the extension: a dump has
-- it.
-- Errors: 55000 not in such a script; 42883 no such function.
CREATE FUNCTION cqrs.copy_privileges(source regprocedure, target regprocedure) RETURNS void
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_copy_privileges';
REVOKE ALL ON FUNCTION cqrs.copy_privileges(regprocedure, regprocedure) FROM PUBLIC;
COMMENT ON FUNCTION cqrs.copy_privileges(regprocedure, regprocedure) IS 'grants on a function what is granted on another';

-- Grants a role what configures and maintains: EXECUTE on each function of the
-- extension that neither everybody nor pg_monitor has. Subscriptions and topics
-- still belong to whoever made them. After an update of the extension that brings
-- new functions, call it again.
-- Returns how many were granted that had not been before.
-- Errors: 42704 no such role; 22004; 25006 read-only transaction or standby.
-- Privileges: EXECUTE, not granted to PUBLIC, nor by this.
CREATE FUNCTION @extschema@.cqrs_grant_admin(role text) RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_grant_admin(text) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_grant_admin(text) IS 'grants a role the functions that configure and maintain';

-- Revokes what cqrs_grant_admin() granted. Returns how many, errors and
-- privileges: as of that.
CREATE FUNCTION @extschema@.cqrs_revoke_admin(role text) RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_revoke_admin(text) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_revoke_admin(text) IS 'revokes the functions that configure and maintain';

-- Statement trigger of every table in schema cqrs, those of topics too. Whatever
-- is granted, nobody but a table's owner and superusers may write it: the tables
-- say as whom functions are executed. Our own writing bypasses the trigger. It
-- is enabled ALWAYS, so that replication and session_replication_role do not.
-- Errors: 42501.
CREATE FUNCTION cqrs.refuse_write() RETURNS trigger
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_refuse_write';
REVOKE ALL ON FUNCTION cqrs.refuse_write() FROM PUBLIC;
COMMENT ON FUNCTION cqrs.refuse_write() IS 'keeps everybody but the owner from writing our tables';

-- Statement trigger of the tables that the registry is read from. Makes every
-- backend reload its copy of the registry, from the commit on. Enabled ALWAYS,
-- too.
CREATE FUNCTION cqrs.registry_changed() RETURNS trigger
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_registry_changed';
REVOKE ALL ON FUNCTION cqrs.registry_changed() FROM PUBLIC;
COMMENT ON FUNCTION cqrs.registry_changed() IS 'has the registry reloaded everywhere';

-- ----------------------------------------------------------------------
-- cqrs.identity: which databases this one is, or was copied from. If no row
-- has the database's OID, it is a copy that CREATE DATABASE ... TEMPLATE made:
-- nothing is delivered in it until cqrs_adopt() adds one. Not dumped: what is
-- restored gets a row when the extension is created.
--
-- id        of the database, random
-- database  its OID in pg_database
-- ----------------------------------------------------------------------
CREATE TABLE cqrs.identity (
	id			uuid	NOT NULL,
	database	oid		NOT NULL
);
INSERT INTO cqrs.identity (id, database)
SELECT gen_random_uuid(), oid FROM pg_database WHERE datname = current_database();
COMMENT ON TABLE cqrs.identity IS 'which databases this one is, or was copied from';
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.identity
	EXECUTE FUNCTION cqrs.refuse_write();
CREATE TRIGGER registry_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.identity
	EXECUTE FUNCTION cqrs.registry_changed();
ALTER TABLE cqrs.identity ENABLE ALWAYS TRIGGER refuse_write, ENABLE ALWAYS TRIGGER registry_changed;
