"""
The functions of the service that a warm call runs through, with their files.

    python -m bench.walk [name ...]
    python -m bench.walk --rounds 5 [--before ../rowcast-before]

Prints for `get`, `find` and `create` the number of function calls in `service/`, in all threads, from the
bytes of an INVOCATION to those of its YIELD. Resuming a coroutine does not count as a call, nor does a
comprehension. With one of these names, prints each function in the order of its first call. Runs on an
embedded database and a simulated router.

With `--rounds`, prints the CPU microseconds per call of the process, including the simulated router, with
16 sessions of one call in flight each. With `--before`, also measures another checkout, alternately, and
prints the minimums of both and their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from autobahn.wamp import message, role
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from schema.database_url import Place
from service.api.dispatcher import Dispatcher
from service.api.reload import Catalogs
from service.db.database import Database
from service.db.pool import PgPool
from service.db.session_settings import SessionSettings
from service.models.served import Models
from service.request.read_request import Limits
from service.wamp.application_errors import application_error
from service.wamp.auth import Anonymous
from service.wamp.callee import Callee
from service.wamp.session import SafeSerializer, SafeSession
from tests.conftest import ROOT, execute

TABLE = """
CREATE TABLE actions (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    action varchar(80) NOT NULL, path varchar(200) NOT NULL, status boolean NOT NULL);
INSERT INTO actions (action, path, status)
    SELECT 'deploy ' || i, '/srv/app/' || i, i % 2 = 0 FROM generate_series(1, 1000) i;
"""
CALLS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "get": ([7], {}),
    "find": ([], {"where": {"status": True, "id": {"gt": 7}}, "order": ["-id"], "limit": 10}),
    "create": ([{"action": "deploy", "path": "/srv/app", "status": False}], {}),
}
TIMED, AT_ONCE = 3000, 16
"""Calls per measurement, and calls in flight."""


class Walk:
    """A recorder of the functions entered while it is on; `profile` is installed in each thread."""

    def __init__(self) -> None:
        self.on = False
        self.entered: list[tuple[str, str]] = []
        self.frames: set[Any] = set()

    def profile(self, frame: Any, event: str, _: Any) -> None:
        """Record a call of a function of the service."""
        if self.on and event == "call" and frame not in self.frames:
            file, name = frame.f_code.co_filename, frame.f_code.co_qualname
            if file.startswith(f"{ROOT}/service/") and not name.endswith(("comp>", "genexpr>")):
                self.frames.add(frame)
                self.entered.append((file[len(f"{ROOT}/service/") :], name))


class PlayedRouter:
    """
    A simulated router: the transport of a session.

    Args:
        session: The session.
    """

    def __init__(self, session: SafeSession) -> None:
        self._serializer = SafeSerializer(application_error, 8 << 20)
        session.sizes = self._serializer.sizes
        self.session = session
        self.asked: dict[int, Deferred[Any]] = {}
        self.transport = self
        self.transport_details = None

    def send(self, msg: Any) -> None:
        """Receive a message from the session, as bytes, and answer it."""
        payload, _ = self._serializer.serialize(msg)
        if isinstance(msg, message.Hello):
            roles = {"broker": role.RoleBrokerFeatures(), "dealer": role.RoleDealerFeatures()}
            self.tell(message.Welcome(1, roles, realm="realm1"))
        elif isinstance(msg, message.Register):
            reactor.callLater(0, self.tell, message.Registered(msg.request, 1))
        elif isinstance(msg, message.Call):
            # Of the procedure that returns how much the router buffers for a caller.
            reactor.callLater(0, self.tell, message.Result(msg.request, args=[0]))
        else:
            self.asked.pop(msg.request).callback((msg, payload))

    def tell(self, msg: Any) -> None:
        """Send a message to the session, as bytes."""
        for each in self._serializer.unserialize(msg.serialize(self._serializer._serializer)):
            self.session.onMessage(each)

    def isOpen(self) -> bool:
        """Return True; autobahn asks."""
        return True

    async def call(
        self, request: int, name: str, args: list[Any], kwargs: dict[str, Any], caller: int = 7
    ) -> None:
        """Send an INVOCATION for a caller, and wait for its result."""
        answered = self.asked[request] = Deferred()
        self.tell(
            message.Invocation(
                request,
                1,
                args=args,
                kwargs=kwargs,
                caller=caller,
                caller_authid="ada",
                caller_authrole="anonymous",
                procedure=f"rowcast.{name}",
            )
        )
        answer, _ = await answered
        assert not isinstance(answer, message.Error), answer


async def served(dsn: str, work: Callable[[PlayedRouter], Awaitable[Any]]) -> Any:
    """Serve a database through a simulated router; return the result of `work`."""
    pool = PgPool(dsn, reactor, SessionSettings(schemas=("public",)))
    pool.start()
    database = Database(pool, reactor)
    dispatcher = Dispatcher(database, Limits(), 8 << 20)
    catalogs = Catalogs(reactor, database, ("public",), dispatcher, Models(database), every=None)
    dispatcher.refresh = catalogs.refresh
    catalogs.startService()
    await catalogs.loaded()
    callee = Callee(reactor, dispatcher.answer, "rowcast")
    session = SafeSession("realm1", Anonymous(), callee.joined, lambda _: None)
    router = PlayedRouter(session)
    session.onOpen(router)
    while not callee.serving:
        await deferLater(reactor, 0.01)
    found = await work(router)
    await catalogs.stopService()
    await pool.close()
    return found


async def walked(walk: Walk, router: PlayedRouter) -> dict[str, list[tuple[str, str]]]:
    """
    Make each call until the caches are warm, then ten more; return the functions of the shortest one.

    On a loaded machine a call may be late enough that the worker checks its session again, which adds calls.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for name, (args, kwargs) in CALLS.items():
        walks = []
        for at in range(15):
            await deferLater(reactor, 0.01)
            walk.entered, walk.frames = [], set()
            walk.on = at >= 5
            await router.call(100 + at, f"actions.{name}", args, kwargs)
            walk.on = False
            walks.append(walk.entered)
        found[name] = min(walks[5:], key=len)
    return found


async def timed(router: PlayedRouter) -> dict[str, float]:
    """Return the CPU microseconds per call, by name."""
    found: dict[str, float] = {}
    requests = count(1)

    async def some(
        name: str, args: list[Any], kwargs: dict[str, Any], many: int, caller: int
    ) -> None:
        for _ in range(many):
            await router.call(next(requests), f"actions.{name}", args, kwargs, caller)

    for name, (args, kwargs) in CALLS.items():
        for many in (10, TIMED // AT_ONCE):  # the first ones warm up the caches
            began = time.process_time()
            every = (some(name, args, kwargs, many, caller) for caller in range(1, 1 + AT_ONCE))
            await gatherResults([Deferred.fromCoroutine(each) for each in every])
            found[name] = (time.process_time() - began) / many / AT_ONCE * 1e6
    return found


def run(dsn: str, work: Callable[[PlayedRouter], Awaitable[Any]]) -> Any:
    """Run the reactor until `work` is done; return its result."""
    found: list[Any] = []

    def end(outcome: Any) -> None:
        found.append(outcome)
        reactor.stop()

    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(served(dsn, work)).addBoth(end))
    reactor.run()
    if isinstance(found[0], Failure):
        found[0].raiseException()
    return found[0]


def print_walk(dsn: str, names: Sequence[str]) -> None:
    """Record the calls, and print them."""
    walk = Walk()
    threading.setprofile(walk.profile)
    sys.setprofile(walk.profile)
    walks = run(dsn, partial(walked, walk))
    sys.setprofile(None)
    for name, entered in walks.items():
        edge = sum(file.startswith("wamp/") for file, _ in entered)
        files = {file for file, _ in entered}
        print(
            f"{name:8}{len(entered):4} calls ({edge} of them in wamp/) of"
            f" {len(set(entered))} functions in {len(files)} files"
        )
        for (file, function), many in Counter(entered).items() if name in names else ():
            print(f"{many:12} {file:26} {function}")


def print_times(dsn: str, checkouts: Sequence[Path], rounds: int) -> None:
    """Measure checkouts alternately, each time in a new process, and print the minimums."""
    turns: list[list[dict[str, float]]] = [[] for _ in checkouts]
    for round in range(rounds):
        for at in sorted(range(len(checkouts)), reverse=bool(round % 2)):
            done = subprocess.run(
                [sys.executable, str(Path(__file__).resolve()), "--of", dsn],
                env=os.environ | {"PYTHONPATH": str(checkouts[at])},
                cwd=checkouts[at],
                check=True,
                stdout=subprocess.PIPE,
            )
            turns[at].append(json.loads(done.stdout.splitlines()[-1]))
    for name in CALLS:
        *before, now = (min(turn[name] for turn in each) for each in turns)
        compared = f"{before[0]:8.0f} → {now:.0f} µs, × {now / before[0]:.2f}" if before else ""
        print(f"{name:10} {compared or f'{now:8.0f} µs'}")


def main() -> None:
    """Print the calls or the times, or run one measurement."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("names", nargs="*")
    options.add_argument("--before", type=Path, help="another checkout to compare with")
    options.add_argument("--rounds", type=int, default=0)
    options.add_argument("--of", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.of:
        print(json.dumps(run(given.of, timed)))
        return
    with tempfile.TemporaryDirectory() as home, Place(state=Path(home)).running() as dsn:
        execute(dsn, TABLE)
        if given.rounds:
            before = [given.before.resolve()] if given.before else []
            print_times(dsn, [*before, ROOT], given.rounds)
        else:
            print_walk(dsn, given.names)


if __name__ == "__main__":
    main()
