"""
A supervised child process, which runs as long as its service; the embedded PostgreSQL is one.

The database's revision is read and upgraded by a child process as well, so that Alembic and SQLAlchemy are
not loaded into the memory of the service.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.threads import deferToThreadPool
from twisted.internet.utils import getProcessOutputAndValue
from twisted.logger import Logger
from twisted.python.failure import Failure

from schema.database_url import PROJECT, Cluster, EmbeddedFailed, Place
from service.waiting import Pause, cancel_timer

FIRST_PAUSE, MAX_PAUSE = 0.1, 10.0
"""Seconds before a child is started again: exponential back-off, from the first to the maximum."""
STEADY = 10.0
"""Seconds that a child has to run for the back-off to start again from the first pause."""
PATIENCE = 60.0
"""Seconds within which a child has to be ready."""
GRACE = 4.0
"""Seconds within which a child has to end before it is killed."""
POLL_INTERVAL = 0.05
"""Seconds between two checks whether a child is ready."""
TAIL = 4096
"""Bytes at the end of a log that are searched for the last line."""
MAX_LOG = 1024 * 1024
"""Maximum size of a log in bytes; a larger one is renamed when it is opened."""

COMMAND = [sys.executable, "-m", "schema.revision"]
"""Reads a request as JSON from its standard input, and prints a `DatabaseReport` as JSON."""


class NotReady(Exception):
    """The service cannot start; the message says in one sentence why, and what to do."""


class Supervised(Service, ABC):
    """
    Starts a child, waits until it is ready, restarts it when it ends, and stops it.

    A child that ends before it was ready for the first time is not restarted; `started` fails instead.

    Args:
        reactor: Spawns the process; its thread has to be the main thread.
        title: The name of the child in messages.
        log: The file that receives its output.
    """

    logger = Logger()

    def __init__(self, reactor: Any, title: str, log: Path) -> None:
        self.reactor = reactor
        self.title = title
        self.log = log
        self.child: ChildExit | None = None
        self._transport: Any = None
        self.pause = Pause(reactor)
        self._supervision: Deferred[None] | None = None
        self._ready: Deferred[None] = Deferred()

    @abstractmethod
    async def prepare(self) -> list[str]:
        """Prepare to start the child; return its command."""

    @abstractmethod
    async def ready(self, pid: int) -> bool:
        """Return whether the child is ready to serve."""

    @abstractmethod
    def shutdown_signal(self) -> str:
        """Return the name of the signal that shuts the child down cleanly."""

    def sweep(self, pid: int) -> None:
        """End the processes that a child has left running at its end."""

    def release(self) -> None:
        """Release the resources held for the child, which is not started again."""

    def started(self) -> Deferred[None]:
        """Return a Deferred that fires when the child is ready for the first time, or has failed."""
        return self._ready

    def startService(self) -> None:
        """Start the child."""
        super().startService()
        self._ready = Deferred()
        self._supervision = Deferred.fromCoroutine(self._supervise())

    def stopService(self) -> Deferred[None] | None:
        """Stop the child; the Deferred fires when it has ended, after `GRACE` at the latest."""
        super().stopService()
        self.pause.end()
        self._signal(self.shutdown_signal())
        # A child that ignores the signal would keep the service, and the process that runs it, from ending.
        killer = self.reactor.callLater(GRACE, self._signal, "KILL")

        def ended(_: object) -> None:
            cancel_timer(killer)
            self.release()

        supervision, self._supervision = self._supervision, None
        return supervision.addBoth(ended) if supervision is not None else None

    def last_output_line(self) -> str:
        """Return the last line of the child's output."""
        lines = tail(self.log).decode(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")

    async def _supervise(self) -> None:
        pause = FIRST_PAUSE
        while self.running:
            began = self.reactor.seconds()
            try:
                await self._run_child()
            except NotReady as refusal:
                if not self._ready.called:
                    self._ready.errback(Failure(refusal))
                    return
                self.logger.warn("{refusal}", refusal=refusal)
            except Exception:
                if not self._ready.called:
                    self._ready.errback(Failure())
                    return
                self.logger.failure("{title} cannot be started", title=self.title)
            if self.reactor.seconds() - began >= STEADY:
                pause = FIRST_PAUSE
            if self.running:
                self.logger.warn("{title} again in {pause} s", title=self.title, pause=pause)
                await self.pause.wait(pause)
                pause = min(2 * pause, MAX_PAUSE)

    async def _run_child(self) -> None:
        try:
            command = await self.prepare()
            if not self.running:
                return
            child = self._spawn(command)
        except (
            OSError
        ) as error:  # under `twistd --uid`, files of the user who has started it, perhaps
            if error.filename is None:
                raise
            raise NotReady(
                f"{self.title} cannot use {error.filename} as user {os.geteuid()}: {error.strerror}"
                " → give it to this user, or name another directory in ROWCAST_STATE"
            ) from error
        pid = self._transport.pid
        child.ended.addCallback(self._swept, pid)
        end = self.reactor.seconds() + PATIENCE
        while child.running and not await self.ready(pid):
            if self.reactor.seconds() > end:
                self._signal("KILL")
                await child.ended
                raise NotReady(f"{self.title} is not ready after {PATIENCE:.0f} s: see {self.log}")
            await self.pause.wait(POLL_INTERVAL)
        if child.running and not self._ready.called:
            self._ready.callback(None)
        how = await child.ended
        if self.running:
            raise NotReady(f"{self.title} ended: {how} ({self.last_output_line()})")

    def _swept(self, how: str, pid: int) -> str:
        self.sweep(pid)
        return how

    def _spawn(self, command: list[str]) -> ChildExit:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.child = ChildExit()
        rotate(self.log)
        with self.log.open("ab") as log, open(os.devnull, "rb") as nothing:
            files = {0: nothing.fileno(), 1: log.fileno(), 2: log.fileno()}
            # env=None passes on the environment; the default of spawnProcess is an empty one.
            self._transport = self.reactor.spawnProcess(
                self.child, command[0], command, env=None, childFDs=files
            )
        return self.child

    def _signal(self, name: str) -> None:
        if self.child is not None and self.child.running:
            try:
                self._transport.signalProcess(name)
            except ProcessExitedAlready:
                self.logger.debug("{title} has ended already", title=self.title)


class ChildExit(ProcessProtocol):
    """Fires `ended` with a description of how the child has ended."""

    def __init__(self) -> None:
        self.ended: Deferred[str] = Deferred()
        self.running = True

    def processEnded(self, reason: Failure) -> None:
        """Fire `ended`."""
        self.running = False
        done = reason.check(ProcessDone) is not None
        self.ended.callback("it ended" if done else reason.getErrorMessage())


def tail(log: Path) -> bytes:
    """Read the end of a log."""
    if not log.exists():
        return b""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL))
        return file.read()


def rotate(log: Path) -> None:
    """Rename a log that is larger than `MAX_LOG`, over the one that was renamed before."""
    if log.exists() and log.stat().st_size > MAX_LOG:
        log.replace(log.with_name(f"{log.name}.1"))


@dataclass(frozen=True)
class DatabaseReport:
    """
    The state of a database before it is served.

    Args:
        problem: Why the database cannot be served, in a sentence; else None.
        server: The version of PostgreSQL.
        limit: Number of connections that the role may open.
        revision: The database's Alembic revision; None if its revisions are not this project's.
        title: The title of that revision.
    """

    problem: str | None
    server: str
    limit: int
    revision: str | None
    title: str

    @property
    def schema(self) -> str:
        """The revision, in a line."""
        if self.revision is None:
            return "not this project's: served as it is"
        return f'{self.revision} "{self.title}" = head'


def inspect_database(place: Place, connections: int) -> DatabaseReport:
    """
    Return the state of a database; blocks, so it is for the time before the reactor runs.

    Raises:
        NotReady: The database cannot be served.
    """
    request = _request(place, connections, upgrade=False)
    # `-m` finds the module through the working directory, and the service may be started in any.
    child = subprocess.run(COMMAND, input=request, capture_output=True, cwd=PROJECT, check=False)
    return _report(child.stdout, child.stderr, child.returncode)


async def upgrade_database(
    reactor: Any, place: Place, connections: int, demo: bool | None = None
) -> DatabaseReport:
    """
    Upgrade a database of this project's schema to the code's revision; return its state.

    Args:
        reactor: Runs the child process.
        place: The address of the database.
        connections: Number of connections that the service needs.
        demo: Whether an empty database that is not the embedded one gets the demo tables; None refuses
            such a database.

    Raises:
        NotReady: The database cannot be served.
    """
    request = _request(place, connections, upgrade=True, demo=demo)
    # env=None passes on the environment; the default is an empty one, without PATH and HOME.
    output, errors, code = await getProcessOutputAndValue(
        COMMAND[0], COMMAND[1:], env=None, path=str(PROJECT), reactor=reactor, stdinBytes=request
    )
    return _report(output, errors, code)


def _request(place: Place, connections: int, upgrade: bool, demo: bool | None = None) -> bytes:
    request = {
        "url": place.url,
        "file": place.file and str(place.file),
        "direct": place.direct,
        "state": str(place.state),
        "connections": connections,
        "upgrade": upgrade,
        "demo": demo,
    }
    return json.dumps(request).encode()


def _report(output: bytes, errors: bytes, code: int) -> DatabaseReport:
    if code:
        # The last line of a traceback has the exception.
        last = errors.decode(errors="replace").strip().splitlines()[-1:]
        raise NotReady(f"the database's revision cannot be found: {' '.join(last)}")
    report = DatabaseReport(**json.loads(output))
    if report.problem:
        raise NotReady(report.problem)
    return report


HOLDER = "the service"


class Postgres(Supervised):
    """
    Claims the data directory, initializes it if it is empty, and runs the server.

    Args:
        reactor: Spawns the process.
        cluster: The data directory and its server.
    """

    def __init__(self, reactor: Any, cluster: Cluster) -> None:
        super().__init__(reactor, "the embedded PostgreSQL", cluster.log)
        self._cluster = cluster

    async def prepare(self) -> list[str]:
        """Claim and initialize the data directory."""
        end = self.reactor.seconds() + PATIENCE
        while self.running and not self._cluster.claim.take(HOLDER):
            holder = self._cluster.claim.holder()
            # Another holder, such as a command, ends soon; a service does not.
            if holder.startswith(HOLDER):
                raise NotReady(already_runs(holder))
            if self.reactor.seconds() > end:
                raise NotReady(f"the embedded PostgreSQL is held by {holder} → wait for it to end")
            await self.pause.wait(POLL_INTERVAL)
        threads = self.reactor.getThreadPool()
        try:
            await deferToThreadPool(self.reactor, threads, self._cluster.prepare)
        except EmbeddedFailed as error:
            raise NotReady(str(error)) from error
        return self._cluster.command()

    async def ready(self, pid: int) -> bool:
        """Return whether the server accepts connections."""
        return self._cluster.ready(pid)

    def shutdown_signal(self) -> str:
        """Return the signal of PostgreSQL's fast shutdown, which rolls open transactions back."""
        return "INT"

    def release(self) -> None:
        """Release the claim."""
        self._cluster.claim.release()


def already_runs(holder: str) -> str:
    """Return the message that another service holds the embedded database."""
    pid = holder.partition("(pid ")[2].rstrip(")")
    return (
        f"Rowcast runs here already, as pid {pid} → Ctrl-C where it runs, or kill {pid};"
        " beside it, with a ROWCAST_STATE of its own"
    )
