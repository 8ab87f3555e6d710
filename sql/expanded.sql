-- A command that is an expanded record, as PL/pgSQL returns it: each function that gets it
-- has its own, whatever the one before did to it.
CREATE EXTENSION cqrs_outbox;
CREATE TYPE payment AS (amount integer, note text);
CREATE FUNCTION made() RETURNS payment LANGUAGE plpgsql AS $$
DECLARE
	p payment;
BEGIN
	p.amount := 1;
	p.note := repeat('long ', 1000);
	RETURN p;
END $$;

-- The first one of a chain, and the next.
CREATE FUNCTION first(p payment) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	p.amount := p.amount + 10;
	p.note := 'changed';
	RETURN jsonb_build_object('first', p.amount, 'next', cqrs_next(), 'note', p.note);
END $$;
CREATE FUNCTION second(p payment) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	p.amount := p.amount + 100;
	RETURN jsonb_build_object('second', p.amount, 'length', length(p.note));
END $$;
SELECT cqrs_register_chain('Pay', ARRAY['first', 'second']);
SELECT cqrs_send(made());
SELECT cqrs_unregister_command('Pay');

-- One that fails, and its fallback.
CREATE FUNCTION fails(p payment) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	p.amount := p.amount + 10;
	RAISE 'no';
END $$;
SELECT cqrs_register_command('Pay', 'fails');
SELECT cqrs_register_fallback('fails', 'second');
SELECT cqrs_send(made());

-- A middleware that goes on twice.
CREATE FUNCTION twice(request cqrs_request) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	PERFORM cqrs_proceed();
	RETURN cqrs_proceed();
END $$;
SELECT cqrs_register_middleware('twice');
SELECT cqrs_send(made());

DROP FUNCTION made, first, second, fails, twice;
DROP EXTENSION cqrs_outbox;
DROP TYPE payment;
