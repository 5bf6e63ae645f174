"""
PostgreSQL, a router and two services, as processes that are restarted when they end.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg2
from alembic import command
from alembic.config import Config
from autobahn.wamp.exception import ApplicationError
from twisted.internet import reactor
from twisted.internet.defer import TimeoutError, ensureDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint
from twisted.internet.error import ConnectError
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThread

from schema.child import bound_to_parent
from schema.database_url import Place
from schema.embedded import Cluster
from service.embedded.crossbar import node, node_command
from tests.conftest import ROOT, Router, crossbar, execute, free_port
from tests.deferreds import pause
from tests.faults.proxy import Proxy
from tests.wamp.callers import join
from tests.wamp.programs import tool

ACCOUNTS, BALANCE = 20, 1000
CLIENTS = 12
ITEMS = 1100
KNOWN = {"authid": "ada", "authmethods": ["ticket"]}
"""HELLO details of a client that authenticates; anonymous clients cannot use idempotency keys."""
TICKET = "of-the-faults"
SCHEMA = f"""
CREATE TABLE accounts (id int PRIMARY KEY, balance int NOT NULL);
INSERT INTO accounts SELECT i, {BALANCE} FROM generate_series(1, {ACCOUNTS}) i;
CREATE TABLE moves (id serial PRIMARY KEY, token text NOT NULL, source int NOT NULL,
    target int NOT NULL, amount int NOT NULL);
CREATE TABLE notes (id serial PRIMARY KEY, token text NOT NULL);
CREATE TABLE slots (id int PRIMARY KEY, token text);
INSERT INTO slots SELECT i FROM generate_series(0, {CLIENTS - 1}) i;
CREATE TABLE pledges (token text PRIMARY KEY);
CREATE TABLE items (id int PRIMARY KEY, n int NOT NULL DEFAULT 0);
INSERT INTO items SELECT i FROM generate_series(1, {ITEMS}) i;
CREATE TABLE writes (token text NOT NULL);
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO writes VALUES (CASE TG_OP WHEN 'DELETE' THEN OLD.token ELSE NEW.token END);
    RETURN NULL; END $$;
CREATE TRIGGER tell AFTER INSERT OR UPDATE ON slots FOR EACH ROW EXECUTE FUNCTION tell();
CREATE TRIGGER tell AFTER DELETE ON pledges FOR EACH ROW EXECUTE FUNCTION tell();
CREATE FUNCTION same(value text) RETURNS text LANGUAGE sql RETURN value;
CREATE FUNCTION nap(seconds float) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(seconds)';
CREATE FUNCTION pay(account int, amount int) RETURNS void LANGUAGE sql
    BEGIN ATOMIC UPDATE accounts SET balance = balance + amount WHERE id = account; END;
CREATE FUNCTION move(token text, source int, target int, amount int) RETURNS int LANGUAGE sql
    BEGIN ATOMIC
        UPDATE accounts SET balance = balance - amount WHERE id = source;
        UPDATE accounts SET balance = balance + amount WHERE id = target;
        INSERT INTO moves (token, source, target, amount)
            VALUES (token, source, target, amount) RETURNING id;
    END;
SELECT rowcast.track(name::regclass)
  FROM unnest('{{accounts, moves, notes, slots, pledges, items}}'::text[]) AS name;
"""
PATIENCE = 120.0
"""Seconds in which everything must be ready again, even on a loaded machine."""
SESSIONS = 2 * 11
"""Maximum number of PostgreSQL sessions of both services with pools of five (service/app.py: `connections`)."""
LEFT = f"""
WITH others AS (SELECT * FROM pg_stat_activity
                 WHERE backend_type = 'client backend' AND pid <> pg_backend_pid())
SELECT 'a transaction: ' || state || ', ' || query FROM others WHERE xact_start IS NOT NULL
UNION ALL SELECT 'a lock: ' || mode || ' on ' || locktype FROM pg_locks WHERE NOT granted
UNION ALL SELECT count(*) || ' sessions' FROM others HAVING count(*) > {SESSIONS}
"""
"""Query for what must not remain in PostgreSQL: transactions, lock waits, too many sessions."""
SETTLE = 10.0
"""Seconds until these have ended, by the timeouts of the services and the ticks of the feed."""
GROWTH = (32, 10)
"""MiB and file descriptors by which a service may exceed its usage after its second round."""
DRAIN = 10


class Part:
    """
    A process and its children.

    Args:
        name: The name in messages.
        log: The file that receives its output.
        command: Returns the command that starts it.
        environ: Its environment variables.
    """

    def __init__(
        self,
        name: str,
        log: Path,
        command: Callable[[], Sequence[str]],
        environ: dict[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._environ = environ
        self._child: subprocess.Popen[bytes] | None = None

    def ensure_running(self) -> None:
        """Start the process unless it runs."""
        if self._child is None or self._child.poll() is not None:
            with self.log.open("ab") as log:
                self._child = subprocess.Popen(
                    self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    env=self._environ, cwd=ROOT,
                )  # fmt: skip

    @property
    def pid(self) -> int:
        """The process id of the process started last."""
        assert self._child is not None
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether the process runs."""
        return self._child is not None and self._child.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal to the process, not to its children."""
        if self.running:
            os.kill(self.pid, number)

    def processes(self) -> list[psutil.Process]:
        """Return the process and its descendants."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            return [*process.children(recursive=True), process]
        return []

    def signal_all(self, number: int) -> None:
        """Send a signal to the process and its descendants."""
        send(self.processes(), number)

    def end(self) -> None:
        """Kill the process and its descendants, and wait for it."""
        if self._child is None:
            return
        self.signal_all(signal.SIGCONT)
        self.signal_all(signal.SIGKILL)
        self._child.wait()


def send(processes: Sequence[psutil.Process], number: int) -> None:
    """Send a signal to those processes that still exist."""
    for each in processes:
        with suppress(psutil.NoSuchProcess):
            each.send_signal(number)


class Deployment:
    """
    All processes, and the proxies between them. Use `deployment`.

    Args:
        home: A directory for the files of the deployment alone.

    Attributes:
        client_proxy: The proxy between clients and the router.
        service_proxy: The proxy between the services and the router.
        database_proxy: The proxy between the services and PostgreSQL.
        router: The addresses for clients, which lead through `client_proxy`.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self._cluster = Cluster(home)
        self._cluster.prepare()
        sockets = self._cluster.sockets / ".s.PGSQL.5432"
        port, private = free_port(), home / "service.sock"
        self.client_proxy = Proxy(lambda: TCP4ClientEndpoint(reactor, "127.0.0.1", port))
        self.service_proxy = Proxy(lambda: UNIXClientEndpoint(reactor, str(private)))
        self.database_proxy = Proxy(lambda: UNIXClientEndpoint(reactor, str(sockets)))
        self.dsn = psycopg2.extensions.make_dsn(**self._cluster.parameters)
        config = node("realm1", "rowcast", port, private, code=str(ROOT / "router"))
        _add_ticket_role(config)
        (home / "config.json").write_text(json.dumps(config))
        self._crossbar = crossbar()
        front = self.client_proxy.port
        self.router = Router(
            f"ws://127.0.0.1:{front}/ws", f"rs://127.0.0.1:{front}", "", front, private
        )
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "DATABASE_URL": f"postgresql://postgres@127.0.0.1:{self.database_proxy.port}/postgres"
            "?sslmode=disable&gssencmode=disable",
            "ROWCAST_ROUTER_URL": f"rs://127.0.0.1:{self.service_proxy.port}",
            "ROWCAST_SHARED": "true",
            "ROWCAST_STATE": str(home / "state"),
            "ROWCAST_DRAIN_TIMEOUT": str(DRAIN),
            "ROWCAST_STATEMENT_TIMEOUT": "5",
            "ROWCAST_LOCK_TIMEOUT": "3",
        }
        twistd = [tool("twistd"), "--nodaemon", "--pidfile=", "-y", "twistd.tac"]
        twistd = bound_to_parent(twistd, signal.SIGTERM)
        self.postgres = Part("postgres", home / "postgres.log", self._cluster.command)
        self.crossbar = Part("router", home / "router.log", self._start_router)
        self.services = [
            Part(name, home / f"{name}.log", lambda: twistd, environ) for name in ("one", "two")
        ]
        self.parts = [self.postgres, self.crossbar, *self.services]
        self._keeping = LoopingCall(self._start_ended)
        self._usage: dict[int, list[tuple[int, int]]] = {}

    def _start_router(self) -> Sequence[str]:
        # Crossbar refuses to start if the process id in this file now belongs to another process.
        (self.home / "node.pid").unlink(missing_ok=True)
        return node_command(self._crossbar, self.home)

    def _start_ended(self) -> None:
        for part in self.parts:
            part.ensure_running()

    async def start(self) -> None:
        """Start all processes, and create the tables of the traffic."""
        self.postgres.ensure_running()
        await self.until(self._database_answers)
        attributes = {"place": Place(url=self.dsn), "configure_logging": False}
        await deferToThread(
            command.upgrade, Config(ROOT / "alembic.ini", attributes=attributes), "head"
        )
        execute(self.dsn, SCHEMA)
        self._keeping.start(0.05)
        await self.wait_until_ready()

    async def wait_until_ready(self, within: float = PATIENCE) -> None:
        """Wait until the database accepts connections and both services are registered."""
        await self.until(self._database_answers, within)
        end = reactor.seconds() + within
        while (found := await self._callees()) != len(self.services):
            assert reactor.seconds() < end, f"{found} services\n{self.log_tails()}"
            await pause(0.1)

    async def leftovers(self) -> list[str]:
        """Return what ended calls and callers have left in PostgreSQL (`LEFT`)."""
        end = reactor.seconds() + SETTLE
        while (found := execute(self.dsn, LEFT)) and reactor.seconds() < end:
            await pause(0.2)
        return [str(what) for (what,) in found]

    def leaks(self) -> list[str]:
        """Return the services whose memory or file descriptors keep growing. Called after each round."""
        found = []
        for part in self.services:
            process = psutil.Process(part.pid)
            seen = self._usage.setdefault(part.pid, [])
            seen.append((process.memory_info().rss >> 20, process.num_fds()))
            for what, most, figures in zip(
                ("MiB", "files"), GROWTH, zip(*seen, strict=True), strict=True
            ):
                if len(figures) > 4 and min(figures[-3:]) > figures[1] + most:
                    found.append(f"{part.name} has {figures[-1]} {what}, and had {figures[1]}")
        return found

    async def until(self, true: Callable[[], bool], within: float = PATIENCE) -> None:
        """Poll a condition until it holds."""
        end = reactor.seconds() + within
        while not true():
            assert reactor.seconds() < end, self.log_tails()
            await pause(0.05)

    def _database_answers(self) -> bool:
        try:
            psycopg2.connect(self.dsn, connect_timeout=2).close()
        except psycopg2.OperationalError:
            return False
        return True

    async def _callees(self) -> int:
        """Return how many services are registered at the router."""
        try:
            joining = ensureDeferred(join(self.router, "service cbor"))
            asker = await joining.addTimeout(5, reactor)
        except (ConnectError, ConnectionError, TimeoutError):
            return 0
        try:
            id = await asker.call("wamp.registration.lookup", "rowcast.", {"match": "prefix"})
            count: int = await asker.call("wamp.registration.count_callees", id) if id else 0
            return count
        except ApplicationError:
            return 0
        finally:
            await asker.close()

    def leader(self) -> Part:
        """Return the service that was the last to log that it leads."""
        return max(self.services, key=lambda each: _last_time(each.log, "changes: leading"))

    def log_tails(self) -> str:
        """Return the end of each part's log."""
        ends = (f"{each.name}: {each.log.read_text()[-1500:]}" for each in self.parts)
        return "\n".join(ends)

    def failures(self) -> list[str]:
        """Return the tracebacks in the services' logs, each as one string."""
        lines = [line for each in self.services for line in each.log.read_text().splitlines()]
        return [
            "\n".join(lines[at : at + 30])
            for at, line in enumerate(lines)
            if "Traceback" in line or "Unhandled" in line
        ]

    async def stop(self) -> None:
        """Stop all processes and proxies."""
        if self._keeping.running:
            self._keeping.stop()
        for part in reversed(self.parts):
            part.end()
        for proxy in (self.client_proxy, self.service_proxy, self.database_proxy):
            await proxy.close()


def _last_time(log: Path, words: str) -> str:
    """Return the time of the last line of a log that contains some words; empty without such a line."""
    times = [line.split()[0] for line in log.read_text().splitlines() if words in line]
    return times[-1] if times else ""


def _add_ticket_role(config: dict[str, Any]) -> None:
    """Add ticket authentication, with a role for it, to the development configuration of the router."""
    (router,) = config["workers"]
    roles = router["realms"][0]["roles"]
    (anyone,) = [each for each in roles if each["name"] == "anonymous"]
    roles.append({**anyone, "name": "known"})
    principals = {KNOWN["authid"]: {"ticket": TICKET, "role": "known"}}
    (public,) = [each for each in router["transports"] if each["type"] == "universal"]
    public["rawsocket"]["auth"] = {
        **public["rawsocket"]["auth"],
        "ticket": {"type": "static", "principals": principals},
    }


@asynccontextmanager
async def deployment(within: Path | None = None) -> AsyncIterator[Deployment]:
    """Run a deployment for the length of the body, in a new directory below `within`."""
    home = Path(tempfile.mkdtemp(prefix="rowcast-faults-", dir=within))
    running = Deployment(home)
    try:
        await running.start()
        yield running
    finally:
        await running.stop()
        shutil.rmtree(home, ignore_errors=True)
