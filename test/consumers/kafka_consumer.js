// Reads all that topics of Kafka have, in the order of each partition, and
// prints each record as a line of JSON:
//
//   node kafka_consumer.js BROKERS TOPIC[,TOPIC...]               as kafkajs has it
//   node kafka_consumer.js BROKERS TOPIC[,TOPIC...] cloudevents   as the SDK of
//                                                    CloudEvents decodes that

const { Kafka, Partitioners, logLevel } = require('kafkajs');
const cloudevents = require('cloudevents');

function text(value) {
	return value === null || value === undefined ? null : value.toString();
}

// What a record says; and the partition that the Java client, like kafkajs,
// would choose for its key.
const choose = Partitioners.DefaultPartitioner();

function plain(topic, partition, message, partitions) {
	const headers = {};
	for (const [name, value] of Object.entries(message.headers))
		headers[name] = text(value);
	return {
		topic, partition, offset: message.offset, timestamp: message.timestamp,
		key: text(message.key), value: text(message.value), headers,
		java_partition: choose({ topic, partitionMetadata: partitions.get(topic), message })
	};
}

// The SDK's binding takes headers as text, and the value as it comes.
function decoded(message) {
	const headers = {};
	for (const [name, value] of Object.entries(message.headers))
		headers[name] = text(value);
	const event = cloudevents.Kafka.toEvent({ key: text(message.key), value: text(message.value),
		body: text(message.value), headers });
	event.validate();
	return event;
}

async function main(brokers, topics, binding) {
	const kafka = new Kafka({ clientId: 'test', brokers: brokers.split(','), logLevel: logLevel.NOTHING });
	const left = new Map();
	const partitions = new Map();
	const admin = kafka.admin();

	// Up to where each partition is to be read.
	await admin.connect();
	for (const topic of topics.split(',')) {
		const offsets = await admin.fetchTopicOffsets(topic);
		for (const { partition, offset } of offsets)
			if (Number(offset) > 0)
				left.set(`${topic} ${partition}`, Number(offset));
		partitions.set(topic, offsets.map(({ partition }) => ({ partitionId: partition, leader: 0 })));
	}
	await admin.disconnect();
	if (left.size === 0)
		return;

	const consumer = kafka.consumer({ groupId: `test-${process.pid}-${Date.now()}`, maxWaitTimeInMs: 100 });
	await consumer.connect();
	await consumer.subscribe({ topics: topics.split(','), fromBeginning: true });
	await new Promise((resolve, reject) => {
		consumer.on(consumer.events.CRASH, ({ payload }) => reject(payload.error));
		consumer.run({
			autoCommit: false,
			eachBatch: async ({ batch }) => {
				const name = `${batch.topic} ${batch.partition}`;
				const lines = [];
				for (const message of batch.messages) {
					if (!left.has(name) || Number(message.offset) >= left.get(name))
						continue;
					lines.push(JSON.stringify(binding === 'cloudevents' ? decoded(message)
						: plain(batch.topic, batch.partition, message, partitions)));
				}
				if (lines.length > 0)
					process.stdout.write(lines.join('\n') + '\n');
				if (left.has(name) && Number(batch.lastOffset()) + 1 >= left.get(name))
					left.delete(name);
				if (left.size === 0)
					resolve();
			}
		}).catch(reject);
	});
	await consumer.disconnect();
}

main(...process.argv.slice(2)).catch(error => {
	console.error(error.stack);
	process.exit(1);
});
