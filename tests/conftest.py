"""
Shared fixtures: a real PostgreSQL, a database for each test module, a real Crossbar.
"""

from __future__ import annotations

import faulthandler
import functools
import gc
import inspect
import json
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NoReturn

import psutil
import psycopg2
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from hypothesis import HealthCheck, settings
from pytest_rerunfailures import suspended_finalizers
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.python.failure import Failure

from schema.database_url import Place
from service.embedded.crossbar import node, node_command
from tests.amounts import THOROUGH, amount

ROOT = Path(__file__).parent.parent
HEAD = ScriptDirectory(str(ROOT / "migrations")).get_current_head()
"""The revision to which `alembic upgrade head` brings a database."""
BRIDGE = "call-for-tests"
TIERS = ("unit", "db", "wamp", "oracle", "faults", "examples", "libraries")
"""Directories of tests, by what they need; a run in CI fails if one of them ran no test."""
WORKER_MEMORY = 900 << 20
"""Bytes that one xdist worker takes with its PostgreSQL, its router and what its tests start."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """
    Return how many workers `-n auto` starts: two per processor, because tests mostly wait.
    """
    wanted = 2 * len(os.sched_getaffinity(0))
    return max(1, min(wanted, psutil.virtual_memory().available // WORKER_MEMORY))


# how long a generated example takes depends on the load of the machine, so no deadline
settings.register_profile(
    "untimed",
    max_examples=amount(20, 100),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("untimed")


def pytest_report_header() -> str:
    """Return a line that says how many examples the random tests draw."""
    return f"random tests: {'all examples' if THOROUGH else 'few examples (all: THOROUGH=1)'}"


def pytest_configure(config: pytest.Config) -> None:
    """Register the scheduler of `tests.distribution` if xdist runs the tests."""
    if hasattr(config, "workerinput") or config.getoption("numprocesses", None):
        from tests import distribution

        config.pluginmanager.register(distribution)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Switch off reruns of hypothesis tests, and give each async test a time limit of its own.

    pytest-twisted would wrap a hypothesis test a second time when it is run again. The limit of an
    async test ends 20 s before pytest-timeout would end the entire process.
    """
    for item in items:
        test = getattr(item, "obj", None)
        if hasattr(test, "hypothesis"):
            item.add_marker(pytest.mark.flaky(reruns=0))
        elif inspect.iscoroutinefunction(test):
            mark = item.get_closest_marker("timeout")
            seconds = mark.args[0] if mark else float(item.config.getoption("timeout"))
            item.obj = _with_time_limit(test, seconds - 20)


def pytest_collection() -> None:
    """Collect no garbage meanwhile: it would take a sixth of the CPU, and what is made then stays."""
    gc.disable()


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Exclude the collected tests, which live until the end, from garbage collection."""
    gc.collect()
    gc.freeze()
    gc.enable()


def _with_time_limit(
    test: Callable[..., Coroutine[Deferred[object], object, None]], seconds: float
) -> Callable[..., Deferred[None]]:
    """
    Return the test with a time limit in seconds; at the limit, what the test awaits is cancelled.

    pytest-timeout raises from a signal handler. In a test that waits, the exception reaches the
    reactor, which only logs it, so the test would block the run for ever.
    """

    @functools.wraps(test)
    def run(**fixtures: object) -> Deferred[None]:
        from twisted.internet import reactor

        def where(failure: Failure, _seconds: float) -> Failure:
            return (
                failure  # the traceback names the awaiting line; addTimeout's TimeoutError does not
            )

        return ensureDeferred(test(**fixtures)).addTimeout(seconds, reactor, where)

    return run


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """
    Tear down the fixtures of the module before a test of it is run a second time.

    Rows that the first attempt left in the module's database would fail the second one as well.
    pytest-rerunfailures keeps the fixtures, and their finalizers in `suspended_finalizers`.
    """
    if getattr(item, "execution_count", 1) > 1:
        state = item.session._setupstate
        state.stack.update(suspended_finalizers)
        suspended_finalizers.clear()
        state.teardown_exact(item.session)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, None, None]:
    """
    End the process if the teardown of a fixture waits for ever.

    After a failed test, pytest-timeout has already cancelled its timer, for the sake of debuggers.
    """
    faulthandler.dump_traceback_later(200, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run in CI that skipped or deselected a test, or in which a tier ran none."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not os.environ.get("CI") or hasattr(session.config, "workerinput") or session.testsfailed:
        return
    ran = {Path(report.nodeid).parts[1] for report in reporter.stats.get("passed", [])}
    absent = [tier for tier in TIERS if tier not in ran]
    if absent or reporter.stats.get("skipped") or reporter.stats.get("deselected"):
        reporter.write_line(f"\nCI runs every test; left out: {', '.join(absent) or 'some'}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="module", autouse=True)
def collect_garbage() -> Iterator[None]:
    """
    Collect garbage at the end of each module.

    A socket left open or a coroutine never awaited then fails the module's last test, instead of
    whichever test of another module runs when Python happens to collect.
    """
    yield
    gc.collect()


POSTGRES = """
# No test crashes this server, and without fsync a commit takes 0.4 ms instead of 4 to 8.
fsync = off
full_page_writes = off
# Its sessions come at any time, and have transactions, locks and snapshots as those of clients.
autovacuum = off
# Each DROP DATABASE searches all of them.
shared_buffers = 32MB
# It is in memory.
wal_init_zero = off
min_wal_size = 32MB
max_wal_size = 64MB
"""
"""Settings of the PostgreSQL that all tests of a process share."""
MEMORY = Path("/dev/shm")
"""A file system in memory: a database of a test module then takes 30 % less CPU, and no time to write."""
MEMORY_LEFT = 4 << 30
"""Bytes that have to be free there. The server of a process took 47 MB of them, besides up to 64 MB of WAL."""


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Run the embedded PostgreSQL for the session; yield the DSN of its maintenance database."""
    memory = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_LEFT
    for left in MEMORY.glob("rowcast-pg-*"):  # by a run that was killed
        with suppress(OSError):  # another user's, or one that another process removes
            old = time.time() - left.stat().st_mtime > 600
            if old and not Place(state=left).cluster.claim.held():
                shutil.rmtree(left, ignore_errors=True)
    home = Path(tempfile.mkdtemp(prefix="rowcast-pg-", dir=MEMORY if memory else None))
    place = Place(state=home)
    place.cluster.prepare()
    with (place.cluster.data / "postgresql.auto.conf").open("a") as settings:
        settings.write(POSTGRES)
    with place.running() as dsn:
        yield dsn
    shutil.rmtree(home)


@pytest.fixture(scope="module")
def dsn(request: pytest.FixtureRequest, postgres: str) -> Iterator[str]:
    """
    Create a database for one test module and run the module's SCHEMA in it; yield its DSN.

    Roles belong to the server, so roles that the module creates are dropped with the database.
    """
    name = f"t_{uuid.uuid4().hex[:12]}"
    before = execute(postgres, "SELECT rolname FROM pg_roles")
    # Copying the files takes less than writing every page to the WAL.
    execute(postgres, f"CREATE DATABASE {name} STRATEGY file_copy")
    made = psycopg2.extensions.make_dsn(postgres, dbname=name)
    if schema := getattr(request.module, "SCHEMA", ""):
        execute(made, schema)
    yield made
    execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")
    for (role,) in execute(postgres, "SELECT rolname FROM pg_roles"):
        if (role,) not in before:
            execute(postgres, f'DROP ROLE "{role}"')


@pytest.fixture(scope="module")
def migrated(dsn: str) -> str:
    """Migrate the module's database to the newest revision; return its DSN."""
    alembic = Config(
        ROOT / "alembic.ini", attributes={"place": Place(url=dsn), "configure_logging": False}
    )
    command.upgrade(alembic, "head")
    return dsn


@dataclass(frozen=True)
class Router:
    """
    The addresses of a running Crossbar.

    Args:
        websocket: WebSocket URL for clients (CBOR, MessagePack, JSON); role `anonymous`.
        rawsocket: RawSocket URL for clients, on the same port.
        http: URL of the HTTP bridge.
        port: The TCP port of all three.
        socket: Unix socket of the service: RawSocket with CBOR; role `service`.
        realm: Its only realm.
        prefix: First part of each URI that clients may call or subscribe to, without the dot.
    """

    websocket: str
    rawsocket: str
    http: str
    port: int
    socket: Path
    realm: str = "realm1"
    prefix: str = "rowcast"


@pytest.fixture(scope="session")
def router() -> Iterator[Router]:
    """Run a Crossbar for the session, configured like the embedded one."""
    with crossbar_running() as found:
        yield found


@contextmanager
def crossbar_running(change: Callable[[dict[str, Any]], object] | None = None) -> Iterator[Router]:
    """
    Run a Crossbar, configured like the embedded one.

    Args:
        change: Called with each permission of a role, which it may change in place.
    """
    home = Path(tempfile.mkdtemp(prefix="rowcast-router-"))
    port = free_port()
    found = Router(
        websocket=f"ws://127.0.0.1:{port}/ws",
        rawsocket=f"rs://127.0.0.1:{port}",
        http=f"http://127.0.0.1:{port}/{BRIDGE}",
        port=port,
        socket=home / "service.sock",
    )
    config = node(found.realm, found.prefix, port, found.socket, BRIDGE, str(ROOT / "router"))
    [worker] = config["workers"]
    for role in worker["realms"][0]["roles"] if change else ():
        for permission in role["permissions"]:
            change(permission)
    (home / "config.json").write_text(json.dumps(config))
    with (home / "log").open("wb") as log:
        child = subprocess.Popen(
            node_command(crossbar(), home), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        wait_until(lambda: answers(port), 180, lambda: (home / "log").read_text()[-2000:])
        yield found
    finally:
        child.terminate()
        child.wait(timeout=20)
        shutil.rmtree(home, ignore_errors=True)


def crossbar() -> str:
    """Return the path of the Crossbar executable; without one, skip the test (in CI, fail it)."""
    named = os.environ.get("ROWCAST_CROSSBAR")
    found = named or shutil.which(ROOT / ".venv-router" / "bin" / "crossbar")
    if found:
        return found
    missing(
        "the tests through a router need Crossbar in .venv-router → make test"
        " (or ROWCAST_CROSSBAR=/path/to/crossbar)"
    )


def missing(what: str) -> NoReturn:
    """Skip the test because a requirement is missing; in CI, fail it."""
    if os.environ.get("CI"):
        pytest.fail(what, pytrace=False)
    pytest.skip(what)


def free_port() -> int:
    """
    Return a TCP port on 127.0.0.1 that is free now.

    It is below the ephemeral ports of Linux (from 32768 on): an outgoing connection may take an
    ephemeral port before the test binds it.
    """
    while True:
        port = random.SystemRandom().randint(10_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


def answers(port: int) -> bool:
    """Return whether a router is ready: its HTTP bridge, which starts last, refuses a GET with 405."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        try:
            connection.request("GET", f"/{BRIDGE}")
            with connection.getresponse() as response:
                return response.status == HTTPStatus.METHOD_NOT_ALLOWED
        except OSError:
            return False


def wait_until(true: Callable[[], bool], seconds: float, why: Callable[[], str] = str) -> None:
    """Poll a condition outside this process until it holds; block the thread meanwhile."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            pytest.fail(f"not within {seconds} s: {why()}", pytrace=False)
        time.sleep(0.02)


def execute(dsn: str, sql: str) -> list[tuple[object, ...]]:
    """Run SQL outside the service, in autocommit; return the rows of the last statement."""
    connection = psycopg2.connect(dsn)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def wait_for_lock(dsn: str) -> None:
    """Block until a session of the database waits for a lock. Never call it in the reactor thread."""
    waiting = (
        "SELECT pg_sleep(0.02), count(*) FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    while not execute(dsn, waiting)[0][1]:
        pass
