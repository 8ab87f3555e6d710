-- What an extension consists of, one line for each object: an update must make of
-- an older version what the installation makes.
SELECT pg_describe_object(d.classid, d.objid, 0) || ': ' || concat_ws('; ',
	CASE d.classid
		WHEN 'pg_proc'::regclass THEN pg_get_functiondef(d.objid)
		WHEN 'pg_class'::regclass THEN concat_ws('; ',
			(SELECT string_agg(format('%s %s %s %s', attname, format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid)), ', ' ORDER BY attnum)
				FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum WHERE attrelid = d.objid AND attnum > 0),
			(SELECT concat_ws('; ', relkind, reloptions::text, CASE relkind WHEN 'v' THEN pg_get_viewdef(oid) END) FROM pg_class WHERE oid = d.objid),
			(SELECT string_agg(pg_get_indexdef(indexrelid), ', ' ORDER BY indexrelid::regclass::text) FROM pg_index WHERE indrelid = d.objid),
			(SELECT string_agg(pg_get_constraintdef(oid), ', ' ORDER BY conname) FROM pg_constraint WHERE conrelid = d.objid),
			(SELECT string_agg(concat(pg_get_triggerdef(oid), ' ', tgenabled), ', ' ORDER BY tgname) FROM pg_trigger WHERE tgrelid = d.objid AND NOT tgisinternal))
		WHEN 'pg_type'::regclass THEN (SELECT concat(typtype, typbasetype::regtype::text, typdefault) FROM pg_type WHERE oid = d.objid)
	END,
	d.objid::regclass = ANY (e.extconfig),
	(SELECT initprivs::text FROM pg_init_privs i WHERE (i.classoid, i.objoid, i.objsubid) = (d.classid, d.objid, 0)),
	obj_description(d.objid, d.classid::regclass::name))
FROM pg_extension e JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
WHERE e.extname = 'cqrs_outbox' AND d.classid <> 'pg_rewrite'::regclass
ORDER BY 1;
