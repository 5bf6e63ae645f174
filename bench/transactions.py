"""
The latency of transactions for a caller: `python -m bench.transactions [--rounds 200] [--delay 10]`.

Prints the median times of a batch of 5 operations, of 5 calls, and of 5 calls in an interactive
transaction, awaited one by one or pipelined. All are measured alternately in each round, once next to the
router and once behind a connection with a delay (milliseconds each way). × is the ratio to one call over
that connection. Echoes show what the same messages cost without a database: one awaited like `begin`, then
as many pipelined as the transaction has further calls.

`--direct` measures most of them inside the service's process instead, without a router: wall-clock and
CPU time, one at a time and 16 at once, the quietest of 5 rounds.

Then 8 callers move money between the same 4 accounts, serializable, with a procedure, with one whose
retries do not take turns, and with a batch. Printed are the number of transfers refused in the end, the
number of rollbacks by PostgreSQL, and whether the total is unchanged.
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
from service.api.interactive import TransactionLimits
from service.app import freeze_memory
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
"""The kinds of the five calls: a label, the procedure, and the arguments of each call."""
AT_ONCE = 16
"""Concurrent runs with `--direct`."""
DIRECT = 160
"""Runs per round with `--direct`."""
ROUTED = "alone", "echo", "6 ahead"
"""Suffixes of the labels that `--direct` omits."""
SCHEMA = f"""
CREATE TABLE accounts AS SELECT i AS id, 1000 AS balance FROM generate_series(1, {ACCOUNTS}) i;
ALTER TABLE accounts ADD PRIMARY KEY (id);
CREATE FUNCTION add(a int, b int) RETURNS int LANGUAGE sql AS 'SELECT a + b';
ANALYZE;
"""


@procedure("bench.transfer")
async def transfer(call: ProcedureCall, source: int, target: int, turns: bool = True) -> None:
    """Move 1 from one account to another: read and write both; `turns` says whether retries take turns."""
    run = call.database.statement

    async def move() -> None:
        for account, more in ((source, -1), (target, 1)):
            found = await run("SELECT balance FROM accounts WHERE id = %s", [account])
            balance = found[0][0] + more
            await run("UPDATE accounts SET balance = %s WHERE id = %s", [balance, account])

    kind = None if turns else object()
    await call.database.transact(move, isolation="serializable", kind=kind)


def transfer_batch(source: int, target: int) -> list[dict[str, Any]]:
    """Return the operations of a batch that makes the same transfer."""
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
    """One end of a connection that forwards data in order, after a delay."""

    def __init__(self, delay: float, other: Line | None = None) -> None:
        self.delay = delay
        self.other = other
        self.early: list[bytes] = []

    def connectionMade(self) -> None:
        """Disable Nagle's algorithm, so that the configured delay is the only one."""
        self.transport.setTcpNoDelay(True)  # type: ignore[attr-defined, union-attr]

    def dataReceived(self, data: bytes) -> None:
        """Forward data after the delay."""
        reactor.callLater(self.delay, self.hand_on, data)  # type: ignore[attr-defined]

    def hand_on(self, data: bytes) -> None:
        """Forward data to the other end, when that is connected."""
        if self.other is None or self.other.transport is None:
            self.early.append(data)
        else:
            self.other.transport.write(data)


class Lines(Factory):
    """A factory of delayed connections to a local port."""

    def __init__(self, port: int, delay: float) -> None:
        self.port = port
        self.delay = delay

    def buildProtocol(self, address: Any) -> Line:
        """Return the accepted end, and connect the other end to the port."""
        near = Line(self.delay)
        near.other = far = Line(self.delay, near)
        made = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port).connect(
            Factory.forProtocol(lambda: far)
        )
        made.addCallback(lambda _: [near.hand_on(each) for each in near.early])
        return near


class Bench(Guest):
    """The caller that measures."""

    def __init__(self, given: Any, stage: Stage) -> None:
        super().__init__(given)
        self.stage = stage

    async def go(self, session: Any) -> None:
        """Measure with and without the delay, then measure contention."""
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
        """Return a new session."""
        here: Deferred[Any] = Deferred()
        WampClient(reactor, WampConfig([url], "realm1"), [Held(here)]).startService()
        return await here

    async def compare(self, where: str, session: Any, rounds: int) -> None:
        """Measure each way alternately, and print the medians."""
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
        """Run transfers in all sessions concurrently, and print how they ended."""
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
        """Return the number of rollbacks so far, after PostgreSQL has flushed its statistics."""
        await deferLater(reactor, 2)
        query = "SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()"
        return int(execute(self.stage.dsn, query)[0][0])  # type: ignore[call-overload]


class Ways:
    """
    Ways to make five calls.

    Args:
        session: The calling session.
        name: The procedure, without the prefix.
        args: Returns the arguments of the n-th call.
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
        """Make the n-th call."""
        return self.session.call(f"rowcast.{self.name}", *self.args(n))  # type: ignore[no-any-return]

    async def one(self) -> None:
        """Make one call."""
        await self.call(1)

    async def five(self) -> None:
        """Await five calls one by one."""
        for n in range(1, 6):
            await self.call(n)

    async def five_at_once(self) -> None:
        """Await five concurrent calls."""
        await gatherResults([self.call(n) for n in range(1, 6)])

    async def batch(self) -> None:
        """Make the five calls as one batch."""
        operations = [{"call": self.name, "args": self.args(n)} for n in range(1, 6)]
        await self.session.call("rowcast.transaction", operations)

    async def begin(self) -> str:
        """Begin a transaction; return its URI."""
        return str((await self.session.call("rowcast.transaction.begin"))["tx"])

    async def held(self) -> None:
        """Await each call of an interactive transaction."""
        tx = await self.begin()
        for n in range(1, 6):
            await self.session.call(tx, self.name, self.args(n))
        await self.session.call(f"{tx}.commit")

    async def ahead(self) -> None:
        """Pipeline the calls of an interactive transaction after its `begin`."""
        tx = await self.begin()
        sent = [self.session.call(tx, self.name, self.args(n)) for n in range(1, 6)]
        await gatherResults([*sent, self.session.call(f"{tx}.commit")])

    async def ahead_less_ends(self) -> float:
        """Pipeline five calls in a transaction; return their time without that of begin and commit."""
        tx = await self.begin()
        began = time.monotonic()
        await gatherResults([self.session.call(tx, self.name, self.args(n)) for n in range(1, 6)])
        taken = time.monotonic() - began
        await self.session.call(f"{tx}.commit")
        return taken

    async def echo(self) -> None:
        """Call a procedure that does not use the database."""
        await self.session.call("rowcast.bench.echo", key=1)

    async def echoes_ahead(self) -> None:
        """Await one echo, then as many concurrent ones as a transaction of five calls has after `begin`."""
        await self.echo()
        await gatherResults([ensureDeferred(self.echo()) for _ in range(6)])


class Direct:
    """
    A stand-in for a session that calls the dispatcher directly.

    Args:
        dispatcher: The dispatcher that answers.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher

    def call(self, uri: str, *args: Any) -> Deferred[Any]:
        """Call a procedure."""
        name, nobody = uri.removeprefix("rowcast."), Caller(None, None, None, "realm1")
        return ensureDeferred(self.dispatcher.answer(name, args, {}, nobody))


async def costs(work: Callable[[], Awaitable[Any]], at_once: int) -> tuple[float, float]:
    """Return the milliseconds of wall-clock and CPU time per run of `work`."""
    each = DIRECT // at_once

    async def some() -> None:
        for _ in range(each):
            await work()

    began, cpu = time.perf_counter(), time.process_time()
    await gatherResults([ensureDeferred(some()) for _ in range(at_once)])
    spent = time.perf_counter() - began, time.process_time() - cpu
    return spent[0] / (each * at_once) * 1000, spent[1] / (each * at_once) * 1000


async def direct(dsn: str, rounds: int = 5) -> None:
    """Measure five calls and a batch alternately in this process, and print the medians."""
    async with serving(dsn, most=AT_ONCE + 2) as callee:
        dispatcher, limits = callee.dispatcher, TransactionLimits(AT_ONCE, AT_ONCE)
        dispatcher.hold(limits)
        freeze_memory()  # the service does this when it is ready
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
                    clock, cpu = (min(column) for column in zip(*each, strict=True))
                    print(f"  {kind:38} {clock:8.2f} ms  {cpu:6.2f} ms CPU", flush=True)


def measure_direct() -> None:
    """Run `direct` on a temporary PostgreSQL."""
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
    options.add_argument("--transfers", type=int, default=40, help="per caller")
    given = options.parse_args()
    if given.direct:
        return measure_direct()
    os.environ |= {"ROWCAST_APP": "bench.transactions", "ROWCAST_POOL_MAX": f"{CALLERS + 2}"}
    with staged(given.crossbar, SCHEMA) as stage, echoing(stage):
        join(stage.websocket, Bench(given, stage))


if __name__ == "__main__":
    sys.exit(main())
