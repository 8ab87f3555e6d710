// An application with node-postgres, which sends each value as text without a
// type, and an object as JSON.

const assert = require('assert');
const { Client } = require('pg');

const meeting = '00000000-0000-4000-8000-000000000017';
const eventId = '00000000-0000-4000-8000-000000000018';
const later = new Date('2100-01-01T00:00:00Z');
const client = new Client({ connectionString: process.env.DATABASE_URL });

// JSON with blanks, as PostgreSQL writes it
function show(value) {
	return value instanceof Object ? JSON.stringify(value).replace(/[:,]/g, '$& ') : String(value);
}

async function run(label, sql, ...values) {
	const { rows } = await client.query(sql, values);
	for (const row of rows)
		console.log([label, ...Object.values(row).map(show)].join(' | '));
	return rows;
}

async function main() {
	await client.connect();

	await run('event', 'SELECT cqrs_register_event($1, $2)', 'joined', 'meetings');
	await run('event', 'SELECT cqrs_register_event($1, $2, $3)', 'typed', null, 'named');
	for (let i = 0; i < 2; i++)
		await run('command', 'SELECT cqrs_register_command($1, $2, $3)', 'Join', 'join_meeting', null);
	await run('chain', 'SELECT cqrs_register_chain($1, $2)', 'Chain', ['join_meeting', 'pass_on']);
	await run('subscribe', 'SELECT cqrs_subscribe($1, $2, $3, retry_delay => $4)',
		'handled', ['meetings'], 'ignore', '1 s');
	await run('subscribe', 'SELECT cqrs_subscribe($1, $2, $3, $4, $5, $6, $7)',
		'pulled', ['meetings'], null, null, null, null, null);

	for (const [payload, key] of [[{ n: 1 }, 'once'], [{ n: 1 }, 'once'], [null, null]])
		await run('send', 'SELECT cqrs_send($1, $2, $3)', 'Join', payload, key);
	await run('send', 'SELECT cqrs_send($1, $2, $3)', 'Unknown', null, null)
		.catch(error => console.log(['error', error.code].join(' | ')));

	for (const key of ['text', 17, meeting, null])
		await run('emit', 'SELECT cqrs_emit($1, $2, $3, $4)', 'joined', { n: 2 }, key, null);
	await run('emit', 'SELECT cqrs_emit($1, $2, $3, $4)', 'joined', null, 'text', { tenant: 'a' });
	const insert = 'INSERT INTO cqrs_topics.meetings (event_name, key, payload, headers, event_id)' +
		' VALUES ($1, $2, $3, $4, $5) RETURNING event_id, position';
	for (const key of ['text', 17, meeting, null])
		await run('insert', insert, 'joined', key, { n: 3 }, null, null);
	await run('insert', insert, 'joined', 'text', null, { tenant: 'a' }, eventId);

	let acknowledged = 0;
	while (acknowledged < 10) {
		await client.query('BEGIN');
		const batch = await run('receive', 'SELECT event_name, key, payload, headers, position, receipt' +
			' FROM cqrs_receive($1, $2)', 'pulled', 100);
		if (batch.length > 0) {
			const { rows } = await client.query('SELECT cqrs_ack($1, $2, $3)',
				['pulled', batch.map(row => row.position), batch[0].receipt]);
			acknowledged += Number(rows[0].cqrs_ack);
		}
		await client.query('COMMIT');
	}
	console.log(['acknowledged', acknowledged].join(' | '));
	await run('receive', 'SELECT position FROM cqrs_receive($1, $2)', 'pulled', null);

	for (const key of ['text', 17, meeting])
		await run('enqueue', 'SELECT cqrs_enqueue($1, $2, $3, $4)', 'Join', { n: 4 }, key, later);
	await run('enqueue', 'SELECT cqrs_enqueue($1, $2, $3, $4)', 'Join', null, null, null);
	await run('enqueued', 'SELECT command_name, key, payload, state, run_at = $1' +
		' FROM cqrs_enqueued_commands ORDER BY command_id', later);

	const { rows } = await client.query('SELECT payload, event_id, position FROM cqrs_topics.meetings LIMIT 1');
	assert.deepEqual(Object.values(rows[0]).map(value => typeof value), ['object', 'string', 'string']);
	await client.end();
}

main();
