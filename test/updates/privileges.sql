-- Who may do what with the objects of the extension and those that it made: one
-- line for each. A function goes by its name, as its arguments may change.
SELECT concat_ws(' ', kind, name, a.grantor::regrole, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END, a.privilege_type, a.is_grantable)
FROM (
	SELECT 'function' AS kind, p.proname::text AS name, coalesce(p.proacl, acldefault('f', p.proowner)) AS acl
	FROM pg_proc p WHERE p.proname ~ '^cqrs_' OR p.pronamespace = 'cqrs'::regnamespace
	UNION ALL
	SELECT 'relation', c.oid::regclass::text, c.relacl
	FROM pg_class c WHERE c.relnamespace IN ('cqrs'::regnamespace, 'cqrs_topics'::regnamespace, 'cqrs_subscriptions'::regnamespace) OR c.relname ~ '^cqrs_'
	UNION ALL
	SELECT 'schema', n.nspname, n.nspacl FROM pg_namespace n WHERE n.nspname ~ '^cqrs'
) o CROSS JOIN LATERAL aclexplode(acl) a
ORDER BY 1;
