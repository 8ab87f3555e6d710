SELECT cqrs_emit('traced', jsonb_build_object('xid', pg_current_xact_id()));
