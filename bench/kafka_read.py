"""What bench/debezium sees of a topic of Kafka, beginning with its first record:

    kafka_read.py BROKERS TOPIC EVENTS [MARK]

Says "ready" when it is, and then prints each committed record until it has seen so
many ids: the time at which it was read, that of the record, its partition, the id,
which is in the header "id" or "message_id", key and value, with tabs between. With a
MARK, it only looks how many records there are, says "marked" when there are that many,
and does not read them before there are as many as events.
"""

import sys
import time

from confluent_kafka import Consumer, TopicPartition

brokers, topic, events, *mark = sys.argv[1:]
events = int(events)
settings = {'bootstrap.servers': brokers, 'group.id': 'read', 'enable.auto.commit': False, 'auto.offset.reset': 'earliest'}
consumer = Consumer({**settings, 'isolation.level': 'read_committed'})
places = [TopicPartition(topic, number, 0) for number in consumer.list_topics(topic).topics[topic].partitions]


def say(what):
    print(what, file=sys.stderr, flush=True)


def wait_for(count):
    while sum(watcher.get_watermark_offsets(place)[1] for place in places) < count:
        time.sleep(0.02)


if mark:
    # Also what is not committed.
    watcher = Consumer({**settings, 'isolation.level': 'read_uncommitted'})
    wait_for(0)
    say('ready')
    wait_for(int(mark[0]))
    say('marked')
    wait_for(events)
    consumer.assign(places)
else:
    consumer.assign(places)
    say('ready')

ids = set()
while len(ids) < events:
    record = consumer.poll(1)
    if record is None:
        continue
    if record.error():
        raise Exception(record.error())
    headers = dict(record.headers())
    id = (headers.get('id') or headers['message_id']).decode()
    ids.add(id)
    print(f'{time.time():.6f}', record.timestamp()[1] / 1000, record.partition(), id, record.key().decode(),
          record.value().decode(), sep='\t')
consumer.close()
