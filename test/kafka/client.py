"""Does what a test wants of a Kafka:

    client.py BROKERS

Each line of the input is a command, [NAME, {ARGUMENT: VALUE, ...}] in JSON, with
the name and the arguments of a function below. Each is answered by a line:
{"result": ...} or {"error": ...}. It ends when its input does.

A key or value is text or null; other bytes are {"hex": "00ff"}, both ways.
"""

import json
import sys
import time

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (AclBinding, AclBindingFilter, AclOperation, AclPermissionType, AdminClient,
                                   AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions, NewTopic,
                                   ResourcePatternType, ResourceType)

BROKERS = sys.argv[1]
PATIENCE = 120

# How long to wait for the end of a transaction that may be open, in seconds.
OPEN = 5

NETWORK = {'reconnect.backoff.ms': 50, 'reconnect.backoff.max.ms': 200, 'log_level': 0}

admin = AdminClient({'bootstrap.servers': BROKERS, **NETWORK})
transaction = None


def wait_until(condition, what):
    """Until it is true; a broker that is away says nothing about it."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            if condition():
                return
        except KafkaException:
            pass
        time.sleep(0.1)
    raise Exception(f'timed out waiting until {what}')


def all_of(futures):
    for future in futures.values():
        future.result(PATIENCE)


def answers(broker, count):
    """Whether the broker at this address does, and knows so many brokers; asked for
    a second."""
    client = AdminClient({'bootstrap.servers': broker, **NETWORK})
    end = time.monotonic() + 1
    while time.monotonic() < end:
        try:
            if len(client.list_topics(timeout=0.5).brokers) >= count:
                return True
            time.sleep(0.1)
        except KafkaException:
            pass
    return False


def partitions(topic):
    """The topic's partitions; none, if it is not there. Asking does not make it."""
    metadata = admin.list_topics(timeout=5).topics.get(topic)
    return metadata.partitions if metadata is not None and metadata.error is None else {}


def create_topic(topic, count=1, replicas=1, config={}):
    """Until each partition has a leader, and all replicas are in sync."""
    all_of(admin.create_topics([NewTopic(topic, count, replicas, config=config)]))
    wait_until(lambda: len(partitions(topic)) == count and in_sync(topic, replicas), f'topic {topic} is there')


def in_sync(topic, replicas):
    return all(p.leader >= 0 and len(p.isrs) >= replicas for p in partitions(topic).values())


def wait_in_sync(topic, replicas):
    wait_until(lambda: in_sync(topic, replicas), f'topic {topic} is in sync')


def delete_topic(topic):
    all_of(admin.delete_topics([topic]))
    wait_until(lambda: not partitions(topic), f'topic {topic} is gone')


def add_partitions(topic, count):
    """Until it has so many."""
    all_of(admin.create_partitions([NewPartitions(topic, count)]))
    wait_until(lambda: len(partitions(topic)) == count and in_sync(topic, 1), f'topic {topic} has {count} partitions')


def delete_records(topic, partition, offset):
    """What a partition has before the offset."""
    all_of(admin.delete_records([TopicPartition(topic, partition, offset)]))


def committed(group, topic, partition):
    """The offset that a group has committed; negative: none."""
    consumer = Consumer({'bootstrap.servers': BROKERS, 'group.id': group, **NETWORK})
    offset = consumer.committed([TopicPartition(topic, partition)], PATIENCE)[0].offset
    consumer.close()
    return offset


def set_config(topic, config):
    """These of a topic's settings; null: its default."""
    entries = [ConfigEntry(name, value if value is None else str(value), incremental_operation=(
        AlterConfigOpType.DELETE if value is None else AlterConfigOpType.SET)) for name, value in config.items()]
    all_of(admin.incremental_alter_configs([ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)]))


def leader(topic, partition=0):
    """The number of the broker that leads it; -1: none does."""
    return partitions(topic)[partition].leader


def acl(permission, user, operation, topic, add):
    """Add or remove one, until the broker goes by it."""
    parts = ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, f'User:{user}', '*', \
        AclOperation[operation.upper()], AclPermissionType[permission.upper()]
    found = AclBindingFilter(*parts)
    if add:
        all_of(admin.create_acls([AclBinding(*parts)]))
    else:
        all_of(admin.delete_acls([found]))
    wait_until(lambda: (len(admin.describe_acls(found).result(PATIENCE)) > 0) == add, 'the ACL is as it should be')


def to_bytes(value):
    if isinstance(value, dict):
        return bytes.fromhex(value['hex'])
    return value if value is None else value.encode()


def from_bytes(value):
    try:
        return value if value is None else value.decode()
    except UnicodeDecodeError:
        return {'hex': value.hex()}


def produce(topic, records, transaction=None):
    """Records have key, value, headers, partition and timestamp, all of which may
    be missing. In a transaction, if "commit", "abort" or "open" says how it ends.
    Returns [PARTITION, OFFSET] of each."""
    written = [None] * len(records)

    def report(i):
        def on_delivery(error, message):
            if error is not None:
                raise KafkaException(error)
            written[i] = [message.partition(), message.offset()]
        return on_delivery

    config = {'bootstrap.servers': BROKERS, 'enable.idempotence': True, 'message.max.bytes': 100_000_000,
              **NETWORK}
    if transaction is not None:
        config['transactional.id'] = 'test'
    producer = Producer(config)
    if transaction is not None:
        producer.init_transactions(PATIENCE)
        producer.begin_transaction()
    for i, record in enumerate(records):
        place = {name: record[name] for name in ('partition', 'timestamp') if record.get(name) is not None}
        headers = [(name, to_bytes(value)) for name, value in (record.get('headers') or {}).items()]
        producer.produce(topic, key=to_bytes(record.get('key')), value=to_bytes(record.get('value')), headers=headers,
                         on_delivery=report(i), **place)
    producer.flush(PATIENCE)
    if transaction is not None:
        globals()['transaction'] = producer
        if transaction != 'open':
            end_transaction(transaction)
    return written


def end_transaction(how):
    """"commit" or "abort" the one that produce() has left open."""
    global transaction
    (transaction.commit_transaction if how == 'commit' else transaction.abort_transaction)(PATIENCE)
    transaction = None


def records(topics, isolation='read_uncommitted'):
    """All records that are there, each partition's in order. Kafka shows what is
    committed a moment after it has said so: who reads that, waits for it, but not for
    ever, as a transaction may be open."""
    consumer = Consumer({'bootstrap.servers': BROKERS, 'group.id': 'test', 'enable.auto.commit': False,
                         'isolation.level': isolation, 'enable.partition.eof': True, 'auto.offset.reset': 'earliest',
                         'fetch.wait.max.ms': 50, **NETWORK})
    left = {(topic, number) for topic in topics for number in partitions(topic)}
    ends = {}
    if isolation == 'read_committed':
        other = Consumer({'bootstrap.servers': BROKERS, 'group.id': 'test', 'isolation.level': 'read_uncommitted', **NETWORK})
        ends = {place: other.get_watermark_offsets(TopicPartition(*place), PATIENCE)[1] for place in left}
        other.close()
    found = []
    held = set()
    consumer.assign([TopicPartition(topic, number, 0) for topic, number in sorted(left)])
    start = time.monotonic()
    while left and time.monotonic() < start + (OPEN if left <= held else PATIENCE):
        for message in consumer.consume(1000, 0.2 if found else 0.05):
            if message.error() is None:
                found.append(message)
            elif message.error().code() == KafkaError._PARTITION_EOF:
                place = (message.topic(), message.partition())
                held.add(place)
                if message.offset() >= ends.get(place, 0):
                    left.discard(place)
            elif not message.error().retriable():
                raise KafkaException(message.error())
    consumer.close()
    if not left <= held:
        raise Exception(f'could not read {left}')
    return [{'topic': m.topic(), 'partition': m.partition(), 'offset': m.offset(), 'timestamp': m.timestamp()[1],
             'key': from_bytes(m.key()), 'value': from_bytes(m.value()),
             'headers': {name: from_bytes(value) for name, value in m.headers() or []}} for m in found]


FUNCTIONS = {f.__name__: f for f in (answers, create_topic, wait_in_sync, delete_topic, add_partitions, delete_records,
                                     committed, set_config, leader, acl, produce, end_transaction, records)}

for line in sys.stdin:
    name, arguments = json.loads(line)
    try:
        answer = {'result': FUNCTIONS[name](**arguments)}
    except Exception as error:
        answer = {'error': f'{name}: {error!r}'}
    print(json.dumps(answer), flush=True)
