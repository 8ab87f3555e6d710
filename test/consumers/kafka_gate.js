// Stands before a broker of a Kafka that has neither TLS nor logins, and asks
// for them:
//
//   node kafka_gate.js HOST:PORT '{"tls": {...}, "sasl": {...}}'
//
//   tls   as tls.createServer() takes it
//   sasl  username and password, for the mechanism PLAIN
//
// Prints its own port, and ends when its input does. The broker's address in
// answers is replaced by its own.

const net = require('net');
const tls = require('tls');

const SASL_HANDSHAKE = 17;
const API_VERSIONS = 18;
const SASL_AUTHENTICATE = 36;

const UNSUPPORTED_SASL_MECHANISM = 33;
const UNSUPPORTED_VERSION = 35;
const SASL_AUTHENTICATION_FAILED = 58;

// Calls handle() with each message of a stream, without its length.
function messages(socket, handle) {
	let buffer = Buffer.alloc(0);
	socket.on('data', data => {
		buffer = Buffer.concat([buffer, data]);
		while (buffer.length >= 4 && buffer.length >= 4 + buffer.readInt32BE()) {
			const length = 4 + buffer.readInt32BE();
			handle(Buffer.from(buffer.subarray(4, length)));
			buffer = buffer.subarray(length);
		}
	});
}

function send(socket, ...parts) {
	const body = Buffer.concat(parts);
	socket.write(Buffer.concat([int32(body.length), body]));
}

function int16(value) {
	const buffer = Buffer.alloc(2);
	buffer.writeInt16BE(value);
	return buffer;
}

function int32(value) {
	const buffer = Buffer.alloc(4);
	buffer.writeInt32BE(value);
	return buffer;
}

function string(value) {
	return Buffer.concat([int16(value.length), Buffer.from(value)]);
}

const [address, json] = process.argv.slice(2);
const [host, port] = address.split(':');
const options = JSON.parse(json);

function serve(client) {
	const broker = net.connect(Number(port), host);
	const asked = new Set();
	let authenticated = !options.sasl;

	client.on('error', () => broker.destroy());
	client.on('close', () => broker.destroy());
	broker.on('error', () => client.destroy());
	broker.on('close', () => client.destroy());

	messages(client, request => {
		const kind = request.readInt16BE(0);
		const version = request.readInt16BE(2);
		const correlation = request.subarray(4, 8);
		// Behind the client's id.
		const body = request.subarray(10 + Math.max(0, request.readInt16BE(8)));

		if (kind === API_VERSIONS && options.sasl) {
			if (version > 0)
				return send(client, correlation, int16(UNSUPPORTED_VERSION), int32(0));
			asked.add(correlation.readInt32BE());
		} else if (kind === SASL_HANDSHAKE && options.sasl) {
			const known = body.subarray(2, 2 + body.readInt16BE(0)).toString() === 'PLAIN';
			return send(client, correlation, int16(known ? 0 : UNSUPPORTED_SASL_MECHANISM), int32(1), string('PLAIN'));
		} else if (kind === SASL_AUTHENTICATE && options.sasl) {
			const [, username, password] = body.subarray(4, 4 + body.readInt32BE(0)).toString().split('\0');
			authenticated = username === options.sasl.username && password === options.sasl.password;
			return send(client, correlation, int16(authenticated ? 0 : SASL_AUTHENTICATION_FAILED),
				authenticated ? int16(-1) : string('Invalid username or password'), int32(0),
				version > 0 ? Buffer.alloc(8) : Buffer.alloc(0));
		} else if (!authenticated)
			return client.destroy();
		send(broker, request);
	});

	messages(broker, answer => {
		// Two more kinds of requests are understood here.
		if (asked.delete(answer.readInt32BE(0))) {
			const count = answer.readInt32BE(6);
			return send(client, answer.subarray(0, 6), int32(count + 2), answer.subarray(10),
				int16(SASL_HANDSHAKE), int16(0), int16(1), int16(SASL_AUTHENTICATE), int16(0), int16(0));
		}
		// Before the host, versions of answers have its length in different ways.
		const own = Buffer.concat([Buffer.from(host), int32(Number(port))]);
		for (let at = answer.indexOf(own); at >= 0; at = answer.indexOf(own, at + 1))
			answer.writeInt32BE(server.address().port, at + own.length - 4);
		send(client, answer);
	});
}

const server = options.tls ? tls.createServer(options.tls, serve) : net.createServer(serve);
server.on('tlsClientError', () => {});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
process.stdin.on('end', () => process.exit(0)).resume();
