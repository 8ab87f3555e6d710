"""What python-cqrs expects of an outbox, of the repository in docs/python-cqrs.md.

Tells of each test whether it is ok. The driver is the argument, the database $DATABASE_URL, and the repository the
module topics_repository. Each test has topics of its own, with subscriptions that try again at once, as often as
python-cqrs does.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import sys
import traceback
import warnings

warnings.simplefilter("ignore", DeprecationWarning)

import cqrs
import pydantic
from cqrs.message_brokers.protocol import MessageBroker
from cqrs.outbox.repository import EventStatus
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from topics_repository import TopicsRepository

ATTEMPTS = 5        # of python-cqrs


class Joined(pydantic.BaseModel):
    user_id: str
    meeting_id: str = "1"


class Left(pydantic.BaseModel):
    reason: str


@dataclasses.dataclass
class Renamed:
    new_name: str


JoinedEvent = cqrs.PydanticNotificationEvent[Joined]
TYPES = {
    "joined": JoinedEvent,
    "renamed": cqrs.DCNotificationEvent[Renamed],
    "anything": cqrs.PydanticNotificationEvent[dict],
}
for event_name, event_type in TYPES.items():
    cqrs.OutboxedEventMap.register(event_name, event_type)
cqrs.OutboxedEventMap.register("user_joined_meeting", JoinedEvent)


class Repository(TopicsRepository):
    """What is committed is announced at once. That is the worker's work, but a reader waits for it 100 ms at most."""

    async def commit(self):
        await super().commit()
        async with self.session.bind.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            await connection.execute(text("SELECT cqrs_tick()"))


class Outbox:
    """Topics of one test, and sessions with a repository each."""

    numbers = itertools.count(1)

    def __init__(self, engine):
        self.engine = engine

    async def create(self, count=1):
        self.topics = [f"topic_{next(self.numbers)}" for _ in range(count)]
        for topic in self.topics:
            await self.run("SELECT cqrs_create_topic(:topic)", topic=topic)
            await self.run("SELECT cqrs_subscribe(:topic, ARRAY[:topic], max_attempts => :n, retry_delay => '0')",
                           topic=topic, n=ATTEMPTS)

    async def run(self, sql, **arguments):
        """The rows of a statement in a transaction of its own."""
        async with self.engine.begin() as connection:
            result = await connection.execute(text(sql), arguments)
            return result.all() if result.returns_rows else None

    @contextlib.asynccontextmanager
    async def repository(self, **options):
        async with AsyncSession(self.engine, expire_on_commit=False) as session:
            yield Repository(session, self.topics, **options)

    def joined(self, user_id, topic=None):
        return JoinedEvent(event_name="joined", topic=topic or self.topics[0], payload=Joined(user_id=str(user_id)))

    async def add(self, count):
        """Add so many events, committed, and return their ids."""
        events = [self.joined(number) for number in range(count)]
        async with self.repository() as repository:
            for event in events:
                repository.add(event)
            await repository.commit()
        return [event.event_id for event in events]

    async def dead_letters(self):
        return await self.run("SELECT event_id, attempts, error FROM cqrs_dead_letters WHERE subscription = :topic"
                              " ORDER BY position", topic=self.topics[0])


def ids(outboxed):
    return [one.event.event_id for one in outboxed]


async def take(repository, topic=None):
    """All that there is, which is produced then. What several transactions have added may come in several batches."""
    taken = []
    while batch := await repository.get_many(topic=topic):
        for one in batch:
            await repository.update_status(one.id, EventStatus.PRODUCED)
        await repository.commit()
        taken += batch
    return taken


async def test_what_was_added_is_read(outbox):
    added = [outbox.joined(name) for name in ("a", "b", "ü")]
    async with outbox.repository() as repository:
        for event in added:
            repository.add(event)
        await repository.commit()
        read = await repository.get_many(3)
        await repository.commit()
    assert ids(read) == [event.event_id for event in added]
    assert [one.event.payload for one in read] == [event.payload for event in added]
    assert {type(one.event) for one in read} == {JoinedEvent}
    assert {(one.event.event_name, one.event.topic, one.topic) for one in read} == {("joined", *outbox.topics * 2)}
    assert {one.status for one in read} == {EventStatus.NEW}
    assert [one.event.event_timestamp.timestamp() for one in read] == [
        event.event_timestamp.timestamp() for event in added]


async def test_the_session_may_commit(outbox):
    async with outbox.repository() as repository:
        repository.add(outbox.joined("a"))
        await repository.session.commit()
        while len(await repository.get_many()) < 1:     # the worker is yet to announce it
            await repository.session.rollback()


async def test_what_is_rolled_back_was_not_added(outbox):
    async with outbox.repository() as repository:
        repository.add(outbox.joined("a"))
        await repository.session.flush()
        await repository.rollback()
        assert await repository.get_many() == []


async def test_it_is_in_the_transaction_of_the_session(outbox):
    async with outbox.repository() as repository:
        await repository.session.execute(text(f"CREATE TABLE {outbox.topics[0]} ()"))
        repository.add(outbox.joined("a"))
        await repository.session.flush()
        assert await repository.get_many() == []        # what is not committed is not read
        await repository.rollback()
    assert await outbox.run("SELECT to_regclass(:topic)::text", topic=outbox.topics[0]) == [(None,)]
    assert await outbox.run("SELECT event_id FROM cqrs_events(:topic)", topic=outbox.topics[0]) == []


async def test_no_more_than_asked_for(outbox):
    added = await outbox.add(5)
    async with outbox.repository() as repository:
        assert ids(await repository.get_many(2)) == added[:2]
        assert ids(await repository.get_many(4)) == added[:4]
        assert ids(await repository.get_many(1)) == added[:1]
        assert ids(await repository.get_many()) == added


async def test_read_again_the_same(outbox):
    await outbox.add(1)
    async with outbox.repository() as repository:
        [first] = await repository.get_many(1)
        [second] = await repository.get_many(1)
        await repository.commit()
        [third] = await repository.get_many(1)
        await repository.rollback()
        [fourth] = await repository.get_many(1)
    assert first.id == second.id == third.id == fourth.id


async def test_produced_is_gone(outbox):
    added = await outbox.add(3)
    async with outbox.repository() as repository:
        read = await repository.get_many(3)
        await repository.update_status(read[-1].id, EventStatus.PRODUCED)
        assert ids(await repository.get_many(3)) == added[:2]
        await repository.commit()
        left = await repository.get_many(3)
        assert ids(left) == added[:2]
        for one in left:
            await repository.update_status(one.id, EventStatus.PRODUCED)
        await repository.commit()
        assert await repository.get_many(3) == []


async def test_not_produced_after_all_if_rolled_back(outbox):
    added = await outbox.add(2)
    async with outbox.repository() as repository:
        for one in await repository.get_many():
            await repository.update_status(one.id, EventStatus.PRODUCED)
        await repository.rollback()
        assert ids(await repository.get_many()) == added


async def test_status_in_a_later_transaction(outbox):
    added = await outbox.add(3)
    async with outbox.repository() as repository:
        read = await repository.get_many()
        await repository.commit()
        await repository.update_status(read[1].id, EventStatus.PRODUCED)
        await repository.commit()
        assert ids(await repository.get_many()) == [added[0], added[2]]
        await repository.update_status(read[1].id, EventStatus.PRODUCED)        # known no more
        await repository.update_status(2**62, EventStatus.NOT_PRODUCED)         # never was
        assert ids(await repository.get_many()) == [added[0], added[2]]


async def test_what_failed_comes_after_what_is_new(outbox):
    await outbox.add(2)
    async with outbox.repository() as repository:
        failed, other = await repository.get_many(2)
        await repository.update_status(failed.id, EventStatus.NOT_PRODUCED)
        await repository.commit()
        again = await repository.get_many(2)
    assert [one.id for one in again] == [other.id, failed.id]
    assert [one.status for one in again] == [EventStatus.NEW, EventStatus.NOT_PRODUCED]


async def test_failed_too_often_at_once(outbox):
    added = await outbox.add(1)
    async with outbox.repository() as repository:
        [one] = await repository.get_many(1)
        for _ in range(ATTEMPTS):
            await repository.update_status(one.id, EventStatus.NOT_PRODUCED)
        await repository.commit()
        assert await repository.get_many(1) == []
    assert await outbox.dead_letters() == [(added[0], ATTEMPTS, "not produced")]


async def test_failed_too_often_batch_by_batch(outbox):
    added = await outbox.add(2)
    async with outbox.repository() as repository:
        for _ in range(ATTEMPTS):
            read = {one.event.event_id: one for one in await repository.get_many()}
            assert set(read) == set(added)
            await repository.update_status(read[added[0]].id, EventStatus.NOT_PRODUCED)
            await repository.commit()
        assert ids(await repository.get_many()) == added[1:]
    assert [dead.attempts for dead in await outbox.dead_letters()] == [ATTEMPTS]
    await outbox.run("SELECT cqrs_redrive_all(:topic)", topic=outbox.topics[0])
    async with outbox.repository() as repository:
        assert set(ids(await repository.get_many())) == set(added)


async def test_what_cannot_be_added(outbox):
    async with outbox.repository() as repository:
        for name, payload, message in (("unheard_of", Joined(user_id="1"), "Unknown event name for unheard_of"),
                                       ("joined", Left(reason="late"), "joined is registered as")):
            event = cqrs.PydanticNotificationEvent[type(payload)](
                event_name=name, topic=outbox.topics[0], payload=payload)
            try:
                repository.add(event)
            except TypeError as error:
                assert message in str(error), error
            else:
                raise AssertionError(f"{name} was added")
        await repository.commit()
        assert await repository.get_many() == []


async def test_what_the_database_does_not_know(outbox):
    event_map = cqrs.OutboxedEventMap()
    event_map.register("not_in_database", JoinedEvent)
    event = JoinedEvent(event_name="not_in_database", topic=outbox.topics[0], payload=Joined(user_id="1"))
    async with outbox.repository(event_map=event_map) as repository:
        repository.add(event)
        try:
            await repository.commit()
        except DBAPIError as error:
            assert error.orig.sqlstate == "42704", error
        else:
            raise AssertionError("it was added")


async def test_what_cannot_be_decoded_blocks_nobody(outbox):
    await outbox.run(f"""INSERT INTO cqrs_topics.{outbox.topics[0]} (event_name, key, payload)
        VALUES ('joined', 'a', :wrong), ('only_in_database', 'b', :right)""",
                     wrong=json.dumps({"user": 1}), right=json.dumps({"user_id": "1"}))
    [added] = await outbox.add(1)
    async with outbox.repository() as repository:
        for _ in range(ATTEMPTS):
            assert added in ids(await repository.get_many()) + ids(await repository.get_many())
            await repository.commit()
        for _ in range(2 * ATTEMPTS):
            assert set(ids(await repository.get_many())) <= {added}
            await repository.commit()
    assert sorted((dead.attempts, dead.event_id == added) for dead in await outbox.dead_letters()) == [
        (ATTEMPTS, False)] * 2


async def test_payloads_of_other_kinds(outbox):
    events = [TYPES["anything"](event_name="anything", topic=outbox.topics[0], payload={"foo": "bar", "n": [1, None]}),
              TYPES["renamed"](event_name="renamed", topic=outbox.topics[0], payload=Renamed(new_name="ä"))]
    async with outbox.repository() as repository:
        for event in events:
            repository.add(event)
        await repository.commit()
        read = await repository.get_many()
    assert ids(read) == [event.event_id for event in events]
    assert read[0].event.payload == {"foo": "bar", "n": [1, None]}
    assert json.loads(cqrs.JsonEventSerializer().serialize(read[1].event))["payload"] == {"newName": "ä"}


@dataclasses.dataclass
class JoinMeeting(cqrs.DCRequest):
    user_id: str


class JoinMeetingHandler(cqrs.RequestHandler[JoinMeeting, None]):
    def __init__(self, outbox, repository):
        self.outbox, self.repository = outbox, repository

    @property
    def events(self):
        return []

    async def handle(self, request):
        for topic in self.outbox.topics:
            self.repository.add(self.outbox.joined(request.user_id, topic))
        await self.repository.commit()


class Container:
    def __init__(self, handler):
        self.handler = handler

    async def resolve(self, _):
        return self.handler


async def test_four_join_and_two_topics_are_told(outbox):
    await outbox.create(2)
    requests = cqrs.RequestMap()
    requests.bind(JoinMeeting, JoinMeetingHandler)
    async with outbox.repository() as repository:
        handler = JoinMeetingHandler(outbox, repository)
        mediator = cqrs.RequestMediator(request_map=requests, container=Container(handler))
        for number in range(4):
            await mediator.send(JoinMeeting(user_id=str(number)))
        assert len(await repository.get_many(1)) == 1
        assert await repository.get_many(topic="another") == []
        async with outbox.repository() as other:        # whoever has one topic does not have the other
            assert {one.topic for one in await repository.get_many(topic=outbox.topics[0])} == {outbox.topics[0]}
            assert {one.topic for one in await other.get_many(topic=outbox.topics[1])} == {outbox.topics[1]}
            await other.rollback()
            await repository.rollback()
        for topic in outbox.topics:
            read = await take(repository, topic)
            assert {one.topic for one in read} == {topic}
            assert [one.event.payload.user_id for one in read] == ["0", "1", "2", "3"]
        assert await take(repository) == []


class Broker(MessageBroker):
    """Has the first attempts of some users fail."""

    def __init__(self, failures=()):
        self.failures = dict(failures)
        self.sent = []

    async def send_message(self, message):
        user_id = json.loads(json.dumps(message.payload, default=str))["payload"]["user_id"]
        if self.failures.get(user_id, 0) > 0:
            self.failures[user_id] -= 1
            raise ConnectionError("no broker")
        self.sent.append((message.message_id, message.message_name, message.topic))


async def produce(producer, done):
    """Batches of the producer until done()."""
    async for batch in producer.event_batch_generator(10):
        for one in batch:
            await producer.send_message(one)
        await producer.repository.commit()
        if done():
            return


async def test_the_producer_sends_each(outbox):
    added = await outbox.add(25)
    broker = Broker({"3": 2, "7": ATTEMPTS})
    async with outbox.repository() as repository:
        await produce(cqrs.EventProducer(broker, repository),
                      lambda: len(broker.sent) == 24 and not any(broker.failures.values()))
    assert sorted(broker.sent) == sorted((event_id, "joined", outbox.topics[0])
                                         for event_id in added if event_id != added[7])
    assert [dead.event_id for dead in await outbox.dead_letters()] == [added[7]]


async def test_two_producers_send_once(outbox):
    added = await outbox.add(100)
    broker = Broker()
    async with outbox.repository() as one, outbox.repository() as other:
        await one.get_many(10)
        assert await other.get_many(10) == []           # one at a time
        await one.rollback()
        await other.rollback()
        await asyncio.gather(*(produce(cqrs.EventProducer(broker, each), lambda: len(broker.sent) >= len(added))
                               for each in (one, other)))
    assert sorted(event_id for event_id, _, _ in broker.sent) == sorted(added)


async def test_with_keys_each_comes_in_order(outbox):
    async with outbox.repository(key=lambda event: event.payload.meeting_id) as repository:
        for number in range(4):
            repository.add(outbox.joined(number))
        await repository.commit()
        read = await repository.get_many()
        for one in read[1], read[3]:
            await repository.update_status(one.id, EventStatus.NOT_PRODUCED)
        await repository.commit()
        again = await take(repository)
    assert [one.event.payload.user_id for one in again] == ["0", "1", "2", "3"]
    assert [one.status for one in again] == [EventStatus.NEW, EventStatus.NOT_PRODUCED] * 2


async def test_an_id_that_is_there_comes_again(outbox):
    event = outbox.joined("a")
    async with outbox.repository() as repository:
        for _ in range(2):
            repository.add(event)
            await repository.commit()
            repository.session.expunge_all()
        assert ids(await take(repository)) == [event.event_id] * 2


async def test_repeatable_read_finds_it_later(outbox):
    """A transaction that keeps its snapshot finds what the worker had announced before it."""
    added = [outbox.joined(number) for number in range(3)]
    async with AsyncSession(outbox.engine) as session:
        repository = TopicsRepository(session, outbox.topics)
        for event in added:
            repository.add(event)
        await repository.commit()
    async with AsyncSession(outbox.engine.execution_options(isolation_level="REPEATABLE READ")) as session:
        repository = TopicsRepository(session, outbox.topics)
        while ids(await repository.get_many()) != [event.event_id for event in added]:
            await repository.rollback()
        for one in await repository.get_many():
            await repository.update_status(one.id, EventStatus.PRODUCED)
        await repository.commit()
        assert await repository.get_many() == []


async def test_the_worker_has_it_as_well(outbox):
    [added] = await outbox.add(1)
    handled = f"handled_by_{outbox.topics[0]}"
    await outbox.run(f"CREATE TABLE {handled} (event_id uuid, occurred_at text)")
    await outbox.run(f"""CREATE FUNCTION {handled}(event cqrs_event) RETURNS void LANGUAGE sql SET search_path = public
        AS 'INSERT INTO {handled} VALUES (event.event_id, event.headers->>''occurred_at'')'""")
    await outbox.run("SELECT cqrs_subscribe(:name, ARRAY[:topic], CAST(:name AS text))",
                     name=handled, topic=outbox.topics[0])
    assert await outbox.run("SELECT cqrs_wait(:name, '3 min')", name=handled) == [(True,)]
    assert await outbox.run(f"SELECT event_id, occurred_at IS NOT NULL FROM {handled}") == [(added, True)]
    async with outbox.repository() as repository:
        assert ids(await repository.get_many()) == [added]


async def test_the_topic_in_the_manual(outbox):
    outbox.topics = ["meeting_events"]
    event = JoinedEvent(event_name="user_joined_meeting", topic="meeting_events", payload=Joined(user_id="1"))
    async with outbox.repository() as repository:
        repository.add(event)
        await repository.commit()
        assert ids(await take(repository)) == [event.event_id]


async def main():
    url = make_url(os.environ["DATABASE_URL"]).set(drivername=f"postgresql+{sys.argv[1]}")
    engine = create_async_engine(url)
    outbox = Outbox(engine)
    for name in TYPES.keys() | {"only_in_database"}:
        await outbox.run("SELECT cqrs_register_event(:name)", name=name)
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            try:
                outbox = Outbox(engine)
                await outbox.create()
                async with asyncio.timeout(180):
                    await test(outbox)
                print("ok", name, flush=True)
            except Exception:
                print("not ok", name, flush=True)
                traceback.print_exc(file=sys.stdout)
    await engine.dispose()
    print("done")


asyncio.run(main())
