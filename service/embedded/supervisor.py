"""
A child process that runs for as long as its service does; the embedded PostgreSQL is one.

The state of the database's migrations is asked of a child too, which has Alembic and SQLAlchemy
in its memory: the service does not.
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
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.internet.utils import getProcessOutputAndValue
from twisted.logger import Logger
from twisted.python.failure import Failure

from schema.database_url import PROJECT, Cluster, EmbeddedFailed, Place

# A router that is killed now and then is back at once; one that cannot live is tried ever more rarely.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0
STEADY = 10.0
"""Seconds that a child has lived when its end says nothing about the next one's."""
PATIENCE = 60.0
"""Seconds that a child gets to be ready."""
GRACE = 4.0
"""Seconds that it gets to end, before it is killed."""
GLANCE = 0.05
"""Seconds between two looks at whether it is ready."""
TAIL = 4096
"""Bytes at the end of a log in which we look for what was said last."""
LARGEST_LOG = 1024 * 1024
"""Bytes; a larger one is put aside when it is opened."""

COMMAND = [sys.executable, "-m", "schema.revision"]
"""Takes a question as JSON on its input, and prints a `DatabaseReport` as JSON."""


class NotReady(Exception):
    """The service cannot start; the message is one sentence: why, and what to do."""


class Supervised(Service, ABC):
    """
    Starts a child, waits until it is ready, starts it again when it ends, stops it.

    A child that ends before it was ready for the first time is not started again: its
    service says why instead.

    Args:
        reactor: For processes and pauses; its thread is the main one.
        title: What the child is called.
        log: The file its output goes to.
    """

    logger = Logger()

    def __init__(self, reactor: Any, title: str, log: Path) -> None:
        self.reactor = reactor
        self.title = title
        self.log = log
        self.child: Ended | None = None
        self._transport: Any = None
        self._pause: Deferred[None] | None = None
        self._life: Deferred[None] | None = None
        self._ready: Deferred[None] = Deferred()

    @abstractmethod
    async def prepare(self) -> list[str]:
        """Prepare for a child; return its command."""

    @abstractmethod
    async def ready(self, pid: int) -> bool:
        """Return whether the child does its work."""

    @abstractmethod
    def ask_to_end(self) -> str:
        """Return the name of the signal that ends the child in order."""

    def sweep(self, pid: int) -> None:
        """End what a child that has ended left running."""

    def release(self) -> None:
        """Release what was held for the child; it has ended for good."""

    def started(self) -> Deferred[None]:
        """Return a Deferred that fires when the child is ready for the first time, or fails."""
        return self._ready

    def startService(self) -> None:
        """Start the child."""
        super().startService()
        self._ready = Deferred()
        self._life = Deferred.fromCoroutine(self._live())

    def stopService(self) -> Deferred[None] | None:
        """Stop the child; done when it has ended, which takes no longer than `GRACE`."""
        super().stopService()
        if self._pause is not None:
            self._pause.cancel()
        self._signal(self.ask_to_end())
        # A child that holds out would keep the service from stopping, and whoever runs that from ending.
        killer = self.reactor.callLater(GRACE, self._signal, "KILL")

        def ended(result: object) -> None:
            if killer.active():
                killer.cancel()
            self.release()

        life, self._life = self._life, None
        return life.addBoth(ended) if life is not None else None

    async def sleep(self, seconds: float) -> None:
        """Wait; stopping the service ends the wait."""
        self._pause = deferLater(self.reactor, seconds)
        try:
            await self._pause
        except CancelledError:
            pass
        finally:
            self._pause = None

    def last_words(self) -> str:
        """Quote what the child said last."""
        lines = tail(self.log).decode(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")

    async def _live(self) -> None:
        pause = FIRST_PAUSE
        while self.running:
            began = self.reactor.seconds()
            try:
                await self._once()
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
                await self.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    async def _once(self) -> None:
        command = await self.prepare()
        if not self.running:
            return
        child = self._spawn(command)
        pid = self._transport.pid
        child.ended.addCallback(self._swept, pid)
        end = self.reactor.seconds() + PATIENCE
        while child.running and not await self.ready(pid):
            if self.reactor.seconds() > end:
                self._signal("KILL")
                await child.ended
                raise NotReady(f"{self.title} is not ready after {PATIENCE:.0f} s: see {self.log}")
            await self.sleep(GLANCE)
        if child.running and not self._ready.called:
            self._ready.callback(None)
        how = await child.ended
        if self.running:
            raise NotReady(f"{self.title} ended: {how} ({self.last_words()})")

    def _swept(self, how: str, pid: int) -> str:
        self.sweep(pid)
        return how

    def _spawn(self, command: list[str]) -> Ended:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.child = Ended()
        rotate(self.log)
        with self.log.open("ab") as log, open(os.devnull, "rb") as nothing:
            files = {0: nothing.fileno(), 1: log.fileno(), 2: log.fileno()}
            # env: None hands our environment on; what is left out would be an empty one
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


class Ended(ProcessProtocol):
    """Fires `ended` with how a child has ended."""

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
    """Rename a log that has become large; the one renamed before is overwritten."""
    if log.exists() and log.stat().st_size > LARGEST_LOG:
        log.replace(log.with_name(f"{log.name}.1"))


@dataclass(frozen=True)
class DatabaseReport:
    """
    What the child found.

    Args:
        problem: Why the database cannot be served, in a sentence; else None.
        server: The version of PostgreSQL.
        limit: Connections that our role may open.
        revision: Where the database is; None if its revisions are not this project's.
        title: What that revision does.
        relations: How many it holds.
    """

    problem: str | None
    server: str
    limit: int
    revision: str | None
    title: str
    relations: int


def inspect_database(place: Place, connections: int) -> DatabaseReport:
    """
    Return the database's revision and capacity; blocks, for the time before the reactor runs.

    Raises:
        NotReady: The database cannot be served.
    """
    question = _question(place, connections, upgrade=False)
    # `-m` finds the module by the working directory, and the service may be started in any.
    child = subprocess.run(COMMAND, input=question, capture_output=True, cwd=PROJECT, check=False)
    return _answer(child.stdout, child.stderr, child.returncode)


async def upgrade_database(
    reactor: Any, place: Place, connections: int, demo: bool | None = None
) -> DatabaseReport:
    """
    Upgrade a database of ours to the code's revision; return its revision and capacity.

    Args:
        reactor: Runs the child.
        place: Where the database is.
        connections: How many the service wants.
        demo: Whether an empty one that is not the embedded one gets the demo tables; None refuses
            it.

    Raises:
        NotReady: The database cannot be served.
    """
    question = _question(place, connections, upgrade=True, demo=demo)
    # env: what is left out would be an empty environment, with neither PATH nor HOME.
    output, errors, code = await getProcessOutputAndValue(
        COMMAND[0], COMMAND[1:], env=None, path=str(PROJECT), reactor=reactor, stdinBytes=question
    )
    return _answer(output, errors, code)


def _question(place: Place, connections: int, upgrade: bool, demo: bool | None = None) -> bytes:
    question = {
        "url": place.url,
        "file": place.file and str(place.file),
        "direct": place.direct,
        "state": str(place.state),
        "connections": connections,
        "upgrade": upgrade,
        "demo": demo,
    }
    return json.dumps(question).encode()


def _answer(output: bytes, errors: bytes, code: int) -> DatabaseReport:
    if code:
        # The last line of a traceback is what was raised.
        last = errors.decode(errors="replace").strip().splitlines()[-1:]
        raise NotReady(f"the database's revision cannot be found: {' '.join(last)}")
    report = DatabaseReport(**json.loads(output))
    if report.problem:
        raise NotReady(report.problem)
    return report


HOLDER = "the service"


class Postgres(Supervised):
    """
    Claims the cluster, makes its data if there are none, and runs its server.

    Args:
        reactor: For processes, threads and pauses.
        cluster: The data directory and the server over it.
    """

    def __init__(self, reactor: Any, cluster: Cluster) -> None:
        super().__init__(reactor, "the embedded PostgreSQL", cluster.log)
        self._cluster = cluster

    async def prepare(self) -> list[str]:
        """Claim the cluster and make its data."""
        end = self.reactor.seconds() + PATIENCE
        while self.running and not self._cluster.claim.take(HOLDER):
            holder = self._cluster.claim.holder()
            # Any other holder, a command for one, is done soon; a service is not.
            if holder.startswith(HOLDER):
                raise NotReady(already_runs(holder))
            if self.reactor.seconds() > end:
                raise NotReady(f"the embedded PostgreSQL is held by {holder} → wait for it to end")
            await self.sleep(GLANCE)
        threads = self.reactor.getThreadPool()
        try:
            await deferToThreadPool(self.reactor, threads, self._cluster.prepare)
        except EmbeddedFailed as error:
            raise NotReady(str(error)) from error
        return self._cluster.command()

    async def ready(self, pid: int) -> bool:
        """Return whether the server takes connections."""
        return self._cluster.ready(pid)

    def ask_to_end(self) -> str:
        """Return the signal of a fast shutdown: open transactions are rolled back."""
        return "INT"

    def release(self) -> None:
        """Release the claim."""
        self._cluster.claim.release()


def already_runs(holder: str) -> str:
    """Return the sentence that another service has the embedded database."""
    pid = holder.partition("(pid ")[2].rstrip(")")
    return f"Rowcast runs here already, as pid {pid} → Ctrl-C where it runs, or kill {pid}"
