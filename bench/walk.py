"""
What a warm call walks through: the functions of the service, and the files they stand in.

    python -m bench.walk [name ...]
    python -m bench.walk --rounds 5 [--before ../rowcast-before]

Prints for `get`, `find` and `create` how many calls of functions of `service/` they take, in all
threads: from the bytes of an INVOCATION to those of its YIELD. A coroutine that goes on is not called
again, and a comprehension is no function. With a name of those, each function in the order in
which it was first called. Runs over an
embedded database and a router that is played here.

With `--rounds` the microseconds of CPU that a call takes the process, one of each of 16 sessions in flight, the
played router included; with `--before` by turns in another checkout of the code, too: the quietest turns of both,
and the ratio.
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
"""Calls of a turn, and how many of them are under way at once."""


class Walk:
    """Counts what is entered while it is on; `profile` is set in every thread."""

    def __init__(self) -> None:
        self.on = False
        self.entered: list[tuple[str, str]] = []
        self.frames: set[Any] = set()

    def profile(self, frame: Any, event: str, _: Any) -> None:
        """Count a call of a function of the service."""
        if self.on and event == "call" and frame not in self.frames:
            file, name = frame.f_code.co_filename, frame.f_code.co_qualname
            if file.startswith(f"{ROOT}/service/") and not name.endswith(("comp>", "genexpr>")):
                self.frames.add(frame)
                self.entered.append((file[len(f"{ROOT}/service/") :], name))


class PlayedRouter:
    """
    The far side of a session's connection.

    Args:
        session: Whose transport this is.
    """

    def __init__(self, session: SafeSession) -> None:
        self._serializer = SafeSerializer(application_error, 8 << 20)
        session.sizes = self._serializer.sizes
        self.session = session
        self.asked: dict[int, Deferred[Any]] = {}
        self.transport = self
        self.transport_details = None

    def send(self, msg: Any) -> None:
        """Take a message of the session, as bytes, and answer it."""
        payload, _ = self._serializer.serialize(msg)
        if isinstance(msg, message.Hello):
            roles = {"broker": role.RoleBrokerFeatures(), "dealer": role.RoleDealerFeatures()}
            self.tell(message.Welcome(1, roles, realm="realm1"))
        elif isinstance(msg, message.Register):
            reactor.callLater(0, self.tell, message.Registered(msg.request, 1))
        elif isinstance(msg, message.Call):  # how much it holds for a caller
            reactor.callLater(0, self.tell, message.Result(msg.request, args=[0]))
        else:
            self.asked.pop(msg.request).callback((msg, payload))

    def tell(self, msg: Any) -> None:
        """Hand the session a message, as bytes."""
        for each in self._serializer.unserialize(msg.serialize(self._serializer._serializer)):
            self.session.onMessage(each)

    def isOpen(self) -> bool:
        """Return that it is open, as autobahn asks."""
        return True

    async def call(
        self, request: int, name: str, args: list[Any], kwargs: dict[str, Any], caller: int = 7
    ) -> None:
        """Make a session's call as the router would hand it on, and wait for the answer."""
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
    """Serve a database to a router that is played; returns what `work` does with that."""
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
    Make each call until it is warm, then some more; returns what the shortest of those entered.

    On a busy machine one may come so late that the session is looked at again.
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
    """Return the microseconds of CPU that each call takes."""
    found: dict[str, float] = {}
    requests = count(1)

    async def some(
        name: str, args: list[Any], kwargs: dict[str, Any], many: int, caller: int
    ) -> None:
        for _ in range(many):
            await router.call(next(requests), f"actions.{name}", args, kwargs, caller)

    for name, (args, kwargs) in CALLS.items():
        for many in (10, TIMED // AT_ONCE):  # the first ones are to warm up
            began = time.process_time()
            every = (some(name, args, kwargs, many, caller) for caller in range(1, 1 + AT_ONCE))
            await gatherResults([Deferred.fromCoroutine(each) for each in every])
            found[name] = (time.process_time() - began) / many / AT_ONCE * 1e6
    return found


def run(dsn: str, work: Callable[[PlayedRouter], Awaitable[Any]]) -> Any:
    """Run the reactor until the work is done; returns what it found."""
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
    """Walk, and print it."""
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
    """Measure checkouts in turns, each turn a process of its own, and print the quietest."""
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
    """Walk or measure, or be one turn."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("names", nargs="*")
    options.add_argument("--before", type=Path, help="another checkout, to compare with")
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
