"""
What transactions cost a caller: `python -m bench.transactions [--rounds 200] [--delay 10]`.

Prints the median time of a batch of 5 operations, of 5 calls, and of 5 calls in a transaction that is
held open, waited for one by one and sent ahead; each in turn in every round, once beside the router
and once behind a line with a delay (milliseconds each way). × is the ratio to one call of that line.
What the same messages cost without a database is measured, too: echoes, of which as many are sent ahead
as there are calls in the transaction, behind one that is waited for as its `begin` is.

`--direct` measures most of them in the process of the service instead, without a router: by the
clock and of CPU, one at a time and 16 at once, the medians of 5 rounds.

Then 8 callers move money between the same 4 accounts, serializable, by a procedure, by one whose
attempts take no turns, and by a batch: how many transfers were refused at last, how often PostgreSQL rolled one back, and whether the sum is what it was.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from autobahn.wamp.exception import ApplicationError
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater

from bench.calls import echoing
from bench.stage import SMALL, Stage, staged
from bench.stream import Guest, Held, join
from schema.database_url import Place
from service.api.dispatcher import Dispatcher
from service.api.interactive import Interactive, TransactionLimits
from service.api.leases import new_process
from service.app import settle
from service.procedures.registry import ProcedureCall, procedure
from service.request.arguments import Caller
from service.wamp.client import WampClient, WampConfig
from tests.conftest import execute
from tests.db.dispatchers import serving

CALLERS, ACCOUNTS = 8, 4
KINDS: tuple[tuple[str, str, Callable[[int], list[Any]]], ...] = (
    ("reads", "small.get", lambda n: [n]),
    ("writes", "small.update", lambda n: [n, {"name": "x"}]),
)
"""What the five calls are: in words, the procedure, and the arguments of each."""
AT_ONCE = 16
"""How many pieces of work `--direct` does at a time."""
DIRECT = 160
"""How often a piece of work is done in a round of `--direct`."""
ROUTED = "alone", "echo", "6 ahead"
"""How the ways end that `--direct` leaves out."""
SCHEMA = f"""
CREATE TABLE accounts AS SELECT i AS id, 1000 AS balance FROM generate_series(1, {ACCOUNTS}) i;
ALTER TABLE accounts ADD PRIMARY KEY (id);
CREATE FUNCTION add(a int, b int) RETURNS int LANGUAGE sql AS 'SELECT a + b';
ANALYZE;
"""


@procedure("bench.transfer")
async def transfer(call: ProcedureCall, source: int, target: int, turns: bool = True) -> None:
    """Move 1 from one account to another: read both, and write both; perhaps without turns."""
    run = call.database.statement

    async def move() -> None:
        for account, more in ((source, -1), (target, 1)):
            found = await run("SELECT balance FROM accounts WHERE id = %s", [account])
            balance = found[0][0] + more
            await run("UPDATE accounts SET balance = %s WHERE id = %s", [balance, account])

    kind = None if turns else object()
    await call.database.transact(move, isolation="serializable", kind=kind)


def transfer_batch(source: int, target: int) -> list[dict[str, Any]]:
    """Return the same as operations."""
    operations: list[dict[str, Any]] = []
    for account, more in ((source, -1), (target, 1)):
        first = len(operations)
        operations += [
            {"call": "accounts.get", "args": [account]},
            {"call": "fn.add", "kwargs": {"a": {"$ref": f"{first}.balance"}, "b": more}},
            {"call": "accounts.update", "args": [account, {"balance": {"$ref": f"{first + 1}"}}]},
        ]
    return operations


class Line(Protocol):
    """One end of a line that hands on what it gets after a delay, in its order."""

    def __init__(self, delay: float, other: Line | None = None) -> None:
        self.delay = delay
        self.other = other
        self.early: list[bytes] = []

    def connectionMade(self) -> None:
        """Send each message at once, however small: the delay is all that counts."""
        self.transport.setTcpNoDelay(True)  # type: ignore[attr-defined, union-attr]

    def dataReceived(self, data: bytes) -> None:
        """Hand on later."""
        reactor.callLater(self.delay, self.hand_on, data)  # type: ignore[attr-defined]

    def hand_on(self, data: bytes) -> None:
        """Hand on, once the other end is there."""
        if self.other is None or self.other.transport is None:
            self.early.append(data)
        else:
            self.other.transport.write(data)


class Lines(Factory):
    """Lines to a port of this machine."""

    def __init__(self, port: int, delay: float) -> None:
        self.port = port
        self.delay = delay

    def buildProtocol(self, address: Any) -> Line:
        """Connect a line's other end."""
        near = Line(self.delay)
        near.other = far = Line(self.delay, near)
        made = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port).connect(
            Factory.forProtocol(lambda: far)
        )
        made.addCallback(lambda _: [near.hand_on(each) for each in near.early])
        return near


class Bench(Guest):
    """Measures everything."""

    def __init__(self, given: Any, stage: Stage) -> None:
        super().__init__(given)
        self.stage = stage

    async def go(self, session: Any) -> None:
        """Measure over both lines, then contend."""
        await self.compare("beside the router", session, self.given.rounds)
        lines = Lines(urlsplit(self.stage.websocket).port or 0, self.given.delay / 1000)
        port = reactor.listenTCP(0, lines, interface="127.0.0.1")  # type: ignore[attr-defined]
        far = await self.session(f"ws://127.0.0.1:{port.getHost().port}/ws")
        what = f"behind a line of {2 * self.given.delay:g} ms there and back"
        await self.compare(what, far, self.given.rounds // 5)
        sessions = [await self.session(self.stage.websocket) for _ in range(CALLERS)]
        for turns in (True, False) * 3:
            await self.contend("bench.transfer", sessions, lambda *pair: [*pair], turns=turns)
        batch = lambda *pair: [transfer_batch(*pair)]  # noqa: E731
        await self.contend("transaction", sessions, batch, isolation="serializable")

    async def session(self, url: str) -> Any:
        """Return one more session."""
        here: Deferred[Any] = Deferred()
        WampClient(reactor, WampConfig([url], "realm1"), [Held(here)]).startService()
        return await here

    async def compare(self, where: str, session: Any, rounds: int) -> None:
        """Print what each way takes, in turns."""
        for what, name, args in KINDS:
            kinds = Ways(session, name, args).kinds
            taken: dict[str, list[float]] = {kind: [] for kind in kinds}
            for _ in range(rounds):
                for kind, way in kinds.items():
                    began = time.monotonic()
                    taken[kind] += [await way() or time.monotonic() - began]
            print(f"5 {what} {where}, {rounds} rounds, load {os.getloadavg()[0]:.0f}:")
            one = median(taken["one call"])
            for kind, times in taken.items():
                print(f"  {kind:38} {median(times) * 1000:8.2f} ms  × {median(times) / one:.2f}")

    async def contend(
        self,
        what: str,
        sessions: list[Any],
        args: Callable[[int, int], list[Any]],
        **options: Any,
    ) -> None:
        """Print how transfers of all sessions at once have ended."""
        ended: Counter[str] = Counter()
        before = await self.rolled_back()
        began = time.monotonic()

        async def loop(at: int, session: Any) -> None:
            for n in range(self.given.transfers):
                source, way = 1 + (at + n) % ACCOUNTS, 1 + n % (ACCOUNTS - 1)
                pair = source, 1 + (source - 1 + way) % ACCOUNTS
                try:
                    await session.call(f"rowcast.{what}", *args(*pair), **options)
                    ended["done"] += 1
                except ApplicationError as error:
                    ended[f"{error.error} after {error.kwargs.get('attempts')} attempts"] += 1

        await gatherResults([Deferred.fromCoroutine(loop(*each)) for each in enumerate(sessions)])
        seconds = time.monotonic() - began
        again = await self.rolled_back() - before
        (total,) = execute(self.stage.dsn, "SELECT sum(balance) FROM accounts")[0]
        print(
            f"{CALLERS} callers of {what} {options or ''}: {dict(ended)}, {again} rolled back,"
            f" {sum(ended.values()) / seconds:.0f}/s, sum {total}"
        )

    async def rolled_back(self) -> int:
        """Count rollbacks so far, once PostgreSQL has written them down."""
        await deferLater(reactor, 2)
        query = "SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()"
        return int(execute(self.stage.dsn, query)[0][0])  # type: ignore[call-overload]


class Ways:
    """
    Ways to make five calls.

    Args:
        session: Calls.
        name: What it calls, less the prefix.
        args: Returns the arguments of each of the five.
    """

    def __init__(self, session: Any, name: str, args: Callable[[int], list[Any]]) -> None:
        self.session = session
        self.name = name
        self.args = args
        self.kinds: dict[str, Callable[[], Awaitable[float | None]]] = {
            "one call": self.one,
            "5 calls, each waited for": self.five,
            "5 calls at once": self.five_at_once,
            "a batch of 5": self.batch,
            "begin, 5, commit, each waited for": self.held,
            "begin, then 5 and commit ahead": self.ahead,
            "of these the 5 alone": self.ahead_less_ends,
            "one echo": self.echo,
            "an echo, then 6 ahead": self.echoes_ahead,
        }

    def call(self, n: int) -> Deferred[Any]:
        """Make one of the calls."""
        return self.session.call(f"rowcast.{self.name}", *self.args(n))  # type: ignore[no-any-return]

    async def one(self) -> None:
        """Make one call."""
        await self.call(1)

    async def five(self) -> None:
        """Wait for each."""
        for n in range(1, 6):
            await self.call(n)

    async def five_at_once(self) -> None:
        """Wait for all."""
        await gatherResults([self.call(n) for n in range(1, 6)])

    async def batch(self) -> None:
        """Make them one transaction."""
        operations = [{"call": self.name, "args": self.args(n)} for n in range(1, 6)]
        await self.session.call("rowcast.transaction", operations)

    async def begin(self) -> str:
        """Begin a transaction; return its URI."""
        return str((await self.session.call("rowcast.transaction.begin"))["tx"])

    async def held(self) -> None:
        """Wait for each call of a transaction."""
        tx = await self.begin()
        for n in range(1, 6):
            await self.session.call(tx, self.name, self.args(n))
        await self.session.call(f"{tx}.commit")

    async def ahead(self) -> None:
        """Wait for all calls of a transaction."""
        tx = await self.begin()
        sent = [self.session.call(tx, self.name, self.args(n)) for n in range(1, 6)]
        await gatherResults([*sent, self.session.call(f"{tx}.commit")])

    async def ahead_less_ends(self) -> float:
        """Wait for all five, and return how long that took."""
        tx = await self.begin()
        began = time.monotonic()
        await gatherResults([self.session.call(tx, self.name, self.args(n)) for n in range(1, 6)])
        taken = time.monotonic() - began
        await self.session.call(f"{tx}.commit")
        return taken

    async def echo(self) -> None:
        """Be answered by what has no database."""
        await self.session.call("rowcast.bench.echo", key=1)

    async def echoes_ahead(self) -> None:
        """Wait for one echo, then for as many as a transaction of five calls has behind its begin."""
        await self.echo()
        await gatherResults([ensureDeferred(self.echo()) for _ in range(6)])


class Direct:
    """
    A session of this process: it calls without a router.

    Args:
        dispatcher: Answers.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher

    def call(self, uri: str, *args: Any) -> Deferred[Any]:
        """Call a procedure."""
        name, nobody = uri.removeprefix("rowcast."), Caller(None, None, None, "realm1")
        return ensureDeferred(self.dispatcher.answer(name, args, {}, nobody))


async def costs(work: Callable[[], Awaitable[Any]], at_once: int) -> tuple[float, float]:
    """Return the milliseconds, by the clock and of CPU, that a piece of work takes."""
    each = DIRECT // at_once

    async def some() -> None:
        for _ in range(each):
            await work()

    began, cpu = time.perf_counter(), time.process_time()
    await gatherResults([ensureDeferred(some()) for _ in range(at_once)])
    spent = time.perf_counter() - began, time.process_time() - cpu
    return spent[0] / (each * at_once) * 1000, spent[1] / (each * at_once) * 1000


async def direct(dsn: str, rounds: int = 5) -> None:
    """Print what five calls and a batch cost in this process, in turns."""
    async with serving(dsn, most=AT_ONCE + 2) as callee:
        dispatcher, limits = callee.dispatcher, TransactionLimits(AT_ONCE, AT_ONCE)
        how = new_process(), "rowcast", dispatcher.answer, dispatcher.keyed
        dispatcher.hold(Interactive(callee.database, limits, *how))
        settle()  # as a service does that is ready
        for what, name, args in KINDS:
            ways = Ways(Direct(dispatcher), name, args).kinds
            kinds = {kind: way for kind, way in ways.items() if not kind.endswith(ROUTED)}
            for at_once in (1, AT_ONCE):
                found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
                for _ in range(rounds):
                    for kind, way in kinds.items():
                        found[kind].append(await costs(way, at_once))
                print(f"5 {what} in the service, {at_once} at once, {rounds} rounds:")
                for kind, each in found.items():
                    clock, cpu = (median(column) for column in zip(*each, strict=True))
                    print(f"  {kind:38} {clock:8.2f} ms  {cpu:6.2f} ms CPU", flush=True)


def measure_direct() -> None:
    """Run `direct` over a database of its own."""
    with tempfile.TemporaryDirectory() as home, Place(state=Path(home)).running() as dsn:
        execute(dsn, SMALL)
        measured = Deferred.fromCoroutine(direct(dsn))
        measured.addErrback(lambda failure: failure.printTraceback())
        measured.addBoth(lambda _: reactor.callLater(0, reactor.stop))  # type: ignore[attr-defined]
        reactor.run()  # type: ignore[attr-defined]


def main() -> None:
    """Measure."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--crossbar", default=".venv-router/bin/crossbar")
    options.add_argument("--direct", action="store_true", help="without a router")
    options.add_argument("--rounds", type=int, default=200)
    options.add_argument("--delay", type=float, default=10.0)
    options.add_argument("--transfers", type=int, default=40, help="of each caller")
    given = options.parse_args()
    if given.direct:
        return measure_direct()
    os.environ |= {"ROWCAST_APP": "bench.transactions", "ROWCAST_POOL_MAX": f"{CALLERS + 2}"}
    with staged(given.crossbar, SCHEMA) as stage, echoing(stage):
        join(stage.websocket, Bench(given, stage))


if __name__ == "__main__":
    sys.exit(main())
