// Takes all messages from a queue of RabbitMQ, and prints each, as the SDK of
// CloudEvents sees it, as a line of JSON:
//
//   node rabbitmq_cloudevents.js URL QUEUE
//
// The SDK knows no binding for AMQP. That of HTTP differs in the prefix of the
// headers, and in where the content type is.

const amqp = require('amqplib');
const { HTTP } = require('cloudevents');

async function main(url, queue) {
	const connection = await amqp.connect(url);
	const channel = await connection.createChannel();
	for (;;) {
		const message = await channel.get(queue, { noAck: true });
		if (!message)
			break;
		const headers = { 'content-type': message.properties.contentType };
		for (const [name, value] of Object.entries(message.properties.headers))
			headers[name.replace(/^cloudEvents_/, 'ce-')] = value;
		const event = HTTP.toEvent({ headers, body: message.content.toString() });
		event.validate();
		console.log(event.toString());
	}
	await channel.close();
	await connection.close();
}

main(...process.argv.slice(2)).catch(error => {
	console.error(error.message);
	process.exit(1);
});
