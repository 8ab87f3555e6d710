// Does what a test wants of a RabbitMQ:
//
//   node rabbitmq_admin.js URL STEP...
//
//   queue NAME [JSON]		declares a durable queue, with these arguments
//   delete NAME			deletes it
//   purge NAME				empties it
//   exchange NAME TYPE		declares a durable exchange
//   bind QUEUE EXCHANGE KEY
//   count NAME				prints how many messages are in a queue
//   get NAME				takes those, and prints each as a line of JSON
//   put NAME JSON			sends it a message: its body, and its properties
//   fill NAME FIRST LAST	sends it messages {"n": N}, with ids n-N
//
// Each step is one argument.

const amqp = require('amqplib');

async function get(channel, queue) {
	const { messageCount } = await channel.checkQueue(queue);
	let left = messageCount;
	if (left === 0)
		return;
	const tag = `get-${process.pid}`;
	await new Promise(resolve => {
		channel.consume(queue, message => {
			if (left === 0)
				return;
			console.log(JSON.stringify({
				body: message.content.toString(),
				exchange: message.fields.exchange,
				routingKey: message.fields.routingKey,
				...message.properties
			}));
			channel.ack(message);
			if (--left === 0)
				resolve();
		}, { consumerTag: tag });
	});
	await channel.cancel(tag);
}

async function fill(channel, queue, first, last) {
	for (let n = Number(first); n <= Number(last); n++) {
		channel.sendToQueue(queue, Buffer.from(`{"n": ${n}}`), { persistent: true, messageId: `n-${n}` });
		if (n % 1000 === 0)
			await channel.waitForConfirms();
	}
}

const steps = {
	queue: (channel, name, args) =>
		channel.assertQueue(name, { durable: true, arguments: JSON.parse(args || '{}') }),
	delete: (channel, name) => channel.deleteQueue(name),
	purge: (channel, name) => channel.purgeQueue(name),
	exchange: (channel, name, type) => channel.assertExchange(name, type, { durable: true }),
	bind: (channel, queue, exchange, key) => channel.bindQueue(queue, exchange, key),
	count: async (channel, name) => console.log((await channel.checkQueue(name)).messageCount),
	get,
	put: (channel, name, ...json) => {
		const { body, ...properties } = JSON.parse(json.join(' '));
		channel.sendToQueue(name, Buffer.from(body), { persistent: true, ...properties });
	},
	fill
};

async function main(url, ...list) {
	const connection = await amqp.connect(url);
	const channel = await connection.createConfirmChannel();
	for (const step of list) {
		const [verb, ...args] = step.split(' ');
		await steps[verb](channel, ...args);
	}
	await channel.waitForConfirms();
	await channel.close();
	await connection.close();
}

main(...process.argv.slice(2)).catch(error => {
	console.error(error.message);
	process.exit(1);
});
