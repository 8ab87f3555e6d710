# The same three steps by DBOS and by Absurd, each step's UPDATE and what is kept of
# it in one transaction.
#
#   saga_peer.py dbos|absurd drain SAGAS PROCESSES ROWS     prints milliseconds
#   saga_peer.py dbos|absurd start ROUNDS ROWS              prints, for each, milliseconds
#                                                           to the first step and to the third
#
# The cluster is that of PGHOST and its likes.

import json
import multiprocessing
import os
import sys
import threading
import time

import psycopg

URL = "postgresql://postgres@/%s?host=%s&port=%s" % (
    os.environ.get("PGDATABASE", "postgres"), os.environ["PGHOST"], os.environ["PGPORT"])
UPDATE = "UPDATE account SET n = n + 1 WHERE id = "
STEPS = ("one", "two", "three")


class Dbos:
    """One process with DBOS. Workflows are called directly, which is faster than its
    queues; what it records of the steps is in the transaction of their data source."""

    def __init__(self, number=0):
        import dbos
        import sqlalchemy

        self.dbos = dbos
        dbos.DBOS(config={"name": "bench", "system_database_url": URL, "log_level": "CRITICAL",
                          "executor_id": "e%d" % number, "application_version": "1",
                          "run_admin_server": False})
        source = dbos.SQLAlchemyDatasource.create(URL)
        update = sqlalchemy.text(UPDATE + ":id")
        self.done = []

        def make(name):
            @source.transaction(name=name, isolation_level="READ COMMITTED")
            def step(id):
                source.sql_session().execute(update, {"id": id})
            return step

        steps = [make(name) for name in STEPS]

        @dbos.DBOS.workflow()
        def three(id):
            for step in steps:
                step(id)
                self.done.append(time.time())

        self.workflow = three
        dbos.DBOS.launch()

    def run(self, ids, progress):
        for id in ids:
            self.workflow(id)
            self.done.clear()

    def start(self, id):
        self.done.clear()
        began = time.time()
        self.workflow(id)
        return [(at - began) * 1000 for at in self.done]

    def close(self):
        self.dbos.DBOS.destroy()


class Absurd:
    """One worker of Absurd. A transaction around a step has its UPDATE and its
    checkpoint."""

    def __init__(self, number=0):
        import absurd_sdk

        self.app = absurd_sdk.Absurd(URL, queue_name="bench")
        self.progress = None
        self.done = []

        @self.app.register_task(name="three")
        def three(params, ctx):
            connection = self.app._conn

            for name in STEPS:
                with connection.transaction():
                    ctx.step(name, lambda: connection.execute(UPDATE + "%s", (params["id"],)) and None)
                self.done.append(time.time())
            if self.progress is not None:
                with self.progress.get_lock():
                    self.progress.value += 1

    def run(self, ids, progress):
        self.progress = progress
        threading.Thread(target=self.stop_at, args=(len(ids),), daemon=True).start()
        self.app.start_worker(batch_size=20, poll_interval=0.01)

    def stop_at(self, sagas):
        while self.progress.value < sagas:
            time.sleep(0.002)
        self.app.stop_worker()

    def start(self, id):
        client = psycopg.connect(URL, autocommit=True)
        self.done.clear()
        began = time.time()
        client.execute("SELECT absurd.spawn_task('bench', 'three', %s)", (json.dumps({"id": id}),))
        while len(self.done) < len(STEPS):
            time.sleep(0.001)
        client.close()
        return [(at - began) * 1000 for at in self.done]

    def close(self):
        self.app.close()


def worker(kind, number, ids, ready, go, progress):
    peer = kind(number)
    ready.release()
    go.wait()
    peer.run(ids, progress)


def drain(kind, sagas, processes, rows):
    ids = [n % rows + 1 for n in range(sagas)]
    ready = multiprocessing.Semaphore(0)
    go = multiprocessing.Event()
    progress = multiprocessing.Value("i", 0)
    if kind is Absurd:
        with psycopg.connect(URL, autocommit=True) as connection:
            connection.execute("SELECT absurd.create_queue('bench')")
            connection.execute("SELECT count(*) FROM generate_series(0, %s - 1) n,"
                               " absurd.spawn_task('bench', 'three', jsonb_build_object('id', n %% %s + 1))", (sagas, rows))
            connection.execute("ANALYZE")
    running = [multiprocessing.Process(target=worker, args=(
        kind, number, ids if kind is Absurd else ids[number::processes], ready, go, progress)) for number in range(processes)]
    for process in running:
        process.start()
        # They create their tables one after the other.
        ready.acquire()
    began = time.time()
    go.set()
    for process in running:
        process.join()
        if process.exitcode != 0:
            sys.exit("a worker failed")
    print((time.time() - began) * 1000)


def start(kind, rounds, rows):
    if kind is Absurd:
        with psycopg.connect(URL, autocommit=True) as connection:
            connection.execute("SELECT absurd.create_queue('bench')")
    peer = kind()
    if kind is Absurd:
        threading.Thread(target=peer.app.start_worker, kwargs={"poll_interval": 0.01}, daemon=True).start()
    for n in range(rounds + 5):
        time.sleep(0.02)
        times = peer.start(n % rows + 1)
        if n >= 5:
            print("%.3f %.3f" % (times[0], times[2]))
    peer.close()


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    kind = {"dbos": Dbos, "absurd": Absurd}[sys.argv[1]]
    if sys.argv[2] == "drain":
        drain(kind, *map(int, sys.argv[3:]))
    else:
        start(kind, *map(int, sys.argv[3:]))
