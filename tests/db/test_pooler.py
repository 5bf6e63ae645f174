"""
The service behind a transaction pooler: its settings apply in each of its transactions only.
"""

from __future__ import annotations

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
import pytest_twisted
from twisted.internet import reactor

from schema.changes import install
from service.db.connection import PgConnection
from service.db.listener import Listener
from service.db.session_settings import SessionSettings, identity_of
from service.db.transaction import statement_txn
from tests.conftest import execute, missing, wait_until
from tests.db.dispatchers import serving
from tests.db.feeds import clear_log, feeding
from tests.db.readers import delivered, readers
from tests.db.served import database_at
from tests.db.test_shared_runs import outcome, together, warm, widen
from tests.deferreds import failure_of, pause, until

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@pytest.fixture(scope="module", autouse=True)
def needed() -> None:
    """Skip the tests if pgbouncer is not installed (in CI, fail)."""
    if PGBOUNCER is None:
        missing("the tests behind a pooler need it → apt-get install pgbouncer")


@pytest.fixture(params=["", "options"], ids=["refuses options", "drops options"])
def pooler(dsn: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a pgbouncer in front of the test's database; yield its DSN."""
    given = psycopg2.extensions.parse_dsn(dsn)
    home = Path(tempfile.mkdtemp(prefix="rowcast-pooler-"))
    home.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (home / "pgbouncer.ini").write_text(
        f"[databases]\npooled = host={given['host']} dbname={given['dbname']} user={given['user']}"
        f" pool_size=2\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
        "unix_socket_dir =\nauth_type = any\npool_mode = transaction\n"
        f"ignore_startup_parameters = extra_float_digits,{request.param}\n"
    )
    command = [str(PGBOUNCER), "-q", str(home / "pgbouncer.ini")]
    if os.geteuid() == 0:  # it refuses to run as root
        command[1:1] = ["-u", pwd.getpwnam("nobody").pw_name]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    made = f"host=127.0.0.1 port={port} dbname=pooled user=anyone sslmode=disable"
    end = time.monotonic() + 5
    while True:
        try:
            psycopg2.connect(made).close()
            break
        except psycopg2.OperationalError:
            assert time.monotonic() < end, "pgbouncer does not answer"
            time.sleep(0.05)
    yield made
    process.send_signal(signal.SIGKILL)
    process.wait()
    shutil.rmtree(home)


@pytest_twisted.ensureDeferred
async def test_settings_hold_in_every_transaction(dsn: str, pooler: str) -> None:
    """Limits and formats are set for statements, functions and transactions, and do not leak."""
    names = ("statement_timeout", "TimeZone", "IntervalStyle", "bytea_output", "search_path")
    sql = "SELECT " + ", ".join(f"current_setting('{name}')" for name in names)
    wanted = [("3s", "UTC", "iso_8601", "hex", '"o\'dd ""%s", "$user", public')]
    session = SessionSettings(statement_timeout=3, schemas=("o'dd \"%s",))
    async with database_at(pooler, session, most=2) as database:
        assert await database.statement(sql) == wanted
        assert await database.run(lambda connection: connection.pooled)

        def several_txn(connection: PgConnection) -> list[tuple[str, ...]]:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchall()

        assert await database.atomic(several_txn) == wanted
        async with database.transaction():
            assert await database.statement(sql) == wanted
            async with database.transaction():
                assert await database.statement(sql) == wanted
        other = psycopg2.connect(pooler)
        other.autocommit = True
        with other.cursor() as cursor:
            cursor.execute("SELECT current_setting('statement_timeout')")
            assert cursor.fetchone() == ("0",)
            cursor.execute("SHOW search_path")
            assert cursor.fetchone() == ('"$user", public',)
        other.close()


@pytest_twisted.ensureDeferred
async def test_procedure_behind_a_pooler_runs_as_its_caller_and_may_not_commit(
    dsn: str, pooler: str
) -> None:
    """A procedure runs as the caller; one that commits is refused; no session keeps a caller's role."""
    execute(
        dsn,
        "CREATE OR REPLACE PROCEDURE ends(INOUT who text) LANGUAGE plpgsql AS"
        " $$BEGIN IF who = 'commit' THEN COMMIT; END IF; who := current_user; END$$",
    )
    someone = identity_of("pg_monitor", {"authid": "p1"})
    async with database_at(pooler, most=2) as database:
        with database.identity(someone):
            called = database.statement("CALL ends('')")
            assert await called == [("pg_monitor",)]
            words = ("CALL ends('')", None, True)
            assert await database.run(statement_txn, *words, ending=True) == [("pg_monitor",)]
            words = ("CALL ends('commit')", None, True)
            error = await failure_of(database.run(statement_txn, *words, ending=True))
            assert isinstance(error, psycopg2.errors.InvalidTransactionTermination)
        assert await database.statement(
            "SELECT current_user = session_user, current_setting('rowcast.authid', true)"
        ) in ([(True, "")], [(True, None)])


@pytest_twisted.ensureDeferred
async def test_changes_behind_a_pooler_are_published_by_one_of_two(dsn: str, pooler: str) -> None:
    """Without notifications and session locks: the feed that made the newest tick leads."""
    execute(
        dsn,
        f"CREATE TABLE IF NOT EXISTS items (id int PRIMARY KEY); TRUNCATE items; {install()}"
        "SELECT rowcast.track('items')",
    )
    clear_log(dsn)
    execute(dsn, f"ALTER DATABASE {name_of(dsn)} SET datestyle = 'German'")
    one = feeding(pooler, leads=False, lease=1.0)
    async with one as first, feeding(pooler, leads=False, lease=1.0) as second:
        await until(lambda: first.feed.leading or second.feed.leading)
        # On a log without ticks both may start to lead; the first tick decides.
        execute(dsn, "INSERT INTO items VALUES (-1)")
        await until(lambda: first.changes or second.changes)
        leader, other = (first, second) if first.changes else (second, first)
        await until(lambda: other.feed.well and not other.feed.leading)
        for number in range(40):
            execute(dsn, f"INSERT INTO items VALUES ({number})")
            await until(lambda many=number + 2: len(leader.changes) == many)  # type: ignore[misc]
        assert leader.feed.polling
        assert other.batches == []
        await pause(1.5)
        assert other.batches == []
        assert not other.feed.leading
        await leader.stop()
        execute(dsn, "INSERT INTO items VALUES (100)")
        await until(lambda: other.batches)
        assert other.changes[0].key == (100,)
        assert other.changes[0].position > leader.changes[-1].position


def test_readers_behind_a_pooler_that_end_lose_and_repeat_nothing(
    dsn: str, pooler: str, tmp_path: Path
) -> None:
    """The leader is killed, or suspended and resumed."""
    execute(dsn, f"CREATE TABLE IF NOT EXISTS events (id serial PRIMARY KEY); {install()}")
    execute(dsn, "TRUNCATE events; SELECT rowcast.track('events')")
    clear_log(dsn)
    dice, stopping = random.Random(5), threading.Event()

    def write() -> None:
        while not stopping.wait(0.02):
            execute(dsn, "INSERT INTO events DEFAULT VALUES")

    writer = threading.Thread(target=write)
    with readers(pooler, tmp_path / "lines", "a", "b", lease=1.0) as found:
        writer.start()
        try:
            wait_until(lambda: bool(found.lines()), 60)
            for turn in range(6):
                leader, began = found.last.name, time.time()
                found.kill(leader) if turn % 2 else found.suspend(leader)
                found.wait_for_other(began, leader)
                found.start(leader) if turn % 2 else found.resume(leader)
                time.sleep(dice.uniform(0.1, 0.6))
        finally:
            stopping.set()
            writer.join()
        there = [key for (key,) in execute(dsn, "SELECT id FROM events ORDER BY id")]
        wait_until(lambda: len(delivered(found.lines())) >= len(there), 60)
        assert [line.key[0] for line in delivered(found.lines())] == there


def name_of(dsn: str) -> str:
    """Return the name of a database."""
    return str(psycopg2.extensions.parse_dsn(dsn)["dbname"])


@pytest_twisted.ensureDeferred
async def test_write_behind_a_pooler_is_committed(dsn: str, pooler: str) -> None:
    """A single statement is committed; after a failing one the connection remains usable."""
    execute(dsn, "DROP TABLE IF EXISTS pooled; CREATE TABLE pooled (id int PRIMARY KEY)")
    async with database_at(pooler, most=2) as database:
        await database.statement("INSERT INTO pooled VALUES (1)")
        error = await failure_of(database.statement("INSERT INTO pooled VALUES (1)"))
        assert isinstance(error, psycopg2.errors.UniqueViolation)
        error = await failure_of(database.statement("SELEKT"))
        assert isinstance(error, psycopg2.errors.SyntaxError)
        await database.statement("INSERT INTO pooled VALUES (2)")
        assert execute(dsn, "SELECT id FROM pooled ORDER BY id") == [(1,), (2,)]
        call = database.statement("SELECT pg_sleep(21)")
        await until(
            lambda: execute(
                dsn,
                "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%pg_sleep(21)'"
                " AND state = 'active' AND pid <> pg_backend_pid()",
            )
        )
        call.cancel()
        await failure_of(call)
        await until(lambda: database.pool.stats().busy == 0)


@pytest_twisted.ensureDeferred
async def test_listen_behind_a_pooler_is_detected(dsn: str, pooler: str) -> None:
    """The pooler accepts LISTEN but never delivers notifications; the listener detects and reports it."""
    heard: list[str] = []
    listener = Listener(reactor, pooler)
    listener.subscribe("c", heard.append)
    listener.startService()
    await until(lambda: listener.pooled)
    assert not listener.listening
    listener.stopService()


LEFT = """
SET statement_timeout = '7s'; SET app.tenant = 'red'; SET datestyle = 'German';
SET default_transaction_read_only = on; SET row_security = off;
CREATE TEMPORARY TABLE IF NOT EXISTS lasting (id int); SELECT nextval('pooled_numbers');
SET ROLE pg_monitor;
"""
FOUND = """
SELECT current_setting('app.tenant', true) IN ('', NULL), current_setting('DateStyle'),
       current_setting('transaction_read_only'), current_setting('row_security'),
       current_user = session_user, to_regclass('pg_temp.lasting') IS NULL,
       (SELECT count(*) FROM pg_prepared_statements),
       (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())
"""


@pytest_twisted.ensureDeferred
async def test_settings_left_by_others_behind_a_pooler_are_not_found(dsn: str, pooler: str) -> None:
    """Session state left by other clients of the pooler does not affect calls of the service."""
    execute(dsn, "CREATE SEQUENCE IF NOT EXISTS pooled_numbers")
    others = [psycopg2.connect(pooler) for _ in range(2)]
    async with database_at(pooler, most=2) as database:
        for other in others:  # concurrently, so that each has another server connection
            with other.cursor() as cursor:
                cursor.execute(LEFT)
        for other in others:
            other.commit()
        for _ in range(4):
            ((_, *found),) = await database.statement(FOUND)
            assert found == ["ISO, MDY", "off", "on", True, True, 0, 0]
            refused = await failure_of(database.statement("SELECT lastval()"))
            assert isinstance(refused, psycopg2.errors.ObjectNotInPrerequisiteState)
        await database.statement(LEFT)
        await database.statement("PREPARE lasting AS SELECT 1")
        await database.statement("SELECT pg_advisory_lock(9)")
        assert await failure_of(database.statement("SELECT pg_advisory_lock(9), 1 / 0"))
        assert execute(dsn, "SELECT pg_try_advisory_lock(9)") == [(True,)]
    for other in others:
        other.autocommit = True
        with other.cursor() as cursor:
            cursor.execute(FOUND)
            assert cursor.fetchall()[0][2:] == ("off", "on", True, True, 0, 0)
        other.close()


@pytest_twisted.ensureDeferred
async def test_deferred_triggers_leave_nothing_behind_a_pooler(dsn: str, pooler: str) -> None:
    """Deferred triggers run at COMMIT, before the session is reset."""
    execute(
        dsn,
        "DROP TABLE IF EXISTS late; CREATE TABLE late (id int);"
        "CREATE OR REPLACE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN PERFORM pg_advisory_lock(8); SET work_mem = '7MB'; RETURN NEW; END$$;"
        "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION late()",
    )
    async with database_at(pooler, most=2) as database:
        await database.statement("INSERT INTO late VALUES (1)")
        assert execute(dsn, "SELECT pg_try_advisory_lock(8), (SELECT count(*) FROM late)") == [
            (True, 1)
        ]
        assert await database.statement("SHOW work_mem") != [("7MB",)]


@pytest_twisted.ensureDeferred
async def test_transaction_that_is_held_has_each_operations_identity(dsn: str, pooler: str) -> None:
    """It is set again for each server session of the pooler; afterwards search_path is restored."""
    who = (
        "SELECT current_user::text, current_setting('rowcast.authid', true),"
        " current_setting('search_path'), current_setting('idle_in_transaction_session_timeout')"
    )
    first = identity_of("pg_monitor", {"authid": "p1"})
    second = identity_of("pg_read_all_data", {"authid": "p2"}, "pg_temp")
    session = SessionSettings(schemas=("public",), grace=3.0)
    async with database_at(pooler, session, most=2) as database:
        held = database.hold(7.0)
        for identity, found in (
            (first, ("pg_monitor", "p1", "\"public\", \"$user\", public")),
            (second, ("pg_read_all_data", "p2", "\"pg_temp\", \"public\", \"$user\", public")),
            (first, ("pg_monitor", "p1", "\"public\", \"$user\", public")),
        ):  # fmt: skip
            with database.identity(identity), database.inside(held):
                assert await database.statement(who) == [(*found, "10s")]
        await held.commit()


@pytest_twisted.ensureDeferred
async def test_reads_by_key_share_a_run_behind_a_pooler(dsn: str, pooler: str) -> None:
    """No statement is prepared behind a pooler; the shared statement runs in a transaction."""
    execute(dsn, "DROP TABLE IF EXISTS lands")
    execute(dsn, "CREATE TABLE lands AS SELECT i AS id, i * 10 AS n FROM generate_series(1, 9) i")
    execute(dsn, "ALTER TABLE lands ADD PRIMARY KEY (id)")
    async with serving(pooler, most=1) as db:
        asked: list[tuple[str, dict[str, object]]] = [
            ("lands.get", {"key": at}) for at in (3, 99, 4)
        ]
        alone = [await outcome(db.call(name, **kwargs)) for name, kwargs in asked]
        await warm(db, asked[0])
        for _ in range(5):
            widen(db)
            assert await together(db, asked) == (alone, [3])
