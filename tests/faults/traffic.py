"""
Clients that move money and write notes, and retry as the documentation says.

Each write has a token of its own, which the database counts afterwards.
"""

from __future__ import annotations

import random
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from autobahn.twisted.rawsocket import WampRawSocketClientFactory
from autobahn.wamp.exception import ApplicationError, TransportLost
from autobahn.wamp.serializer import CBORSerializer
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint

from tests.conftest import execute
from tests.deferreds import pause
from tests.faults.house import ACCOUNTS, BALANCE, House
from tests.wamp.callers import Caller

HANG = 60.0
"""Seconds after which a call that has no answer, or a connection that does not come, hangs."""
GONE = ConnectionError("not joined")
LOST = "connection lost"
UNKNOWN = {LOST, "wamp.error.canceled", "rowcast.error.outcome_unknown"}
"""What is not known of a write that ends so: documented in docs/errors.md."""
NOTHING_KEPT = {"rowcast.error.timeout"}
"""Errors without `retry` after which a client may still call again: they say that nothing is."""
EXPECTED = {"rowcast.error.unavailable", "rowcast.error.conflict", *NOTHING_KEPT, *UNKNOWN}


@dataclass
class Tally:
    """
    What became of calls.

    Args:
        calls: How many were sent, each try for itself.
        errors: By URI, each try for itself.
        ends: Of each write, by its token: "answered", "unknown", or the URI of a refusal.
        hangs: Calls and connections that took longer than `HANG`.
        odd: Answers that no state of the bank gives, and errors that no fault explains.
        back: Seconds from the end of the fault to the first answer of each client to a call that
            it began after that.
    """

    calls: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    ends: dict[str, str] = field(default_factory=dict)
    hangs: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    back: dict[int, float] = field(default_factory=dict)


class Client:
    """
    A session that is joined again when it was lost.

    Args:
        house: Where.
        tally: Counts connections that hang.
    """

    def __init__(self, house: House, tally: Tally) -> None:
        self._house = house
        self._tally = tally
        self._session: Caller | None = None

    async def session(self) -> Caller:
        """Return the session, once there is one."""
        while self._session is None or not self._session.is_attached():
            self._session = await self._join()
            if self._session is None:
                await pause(random.uniform(0.05, 0.15))
        return self._session

    async def _join(self) -> Caller | None:
        session = Caller(self._house.router.realm, {})
        factory: Any = WampRawSocketClientFactory(lambda: session, serializer=CBORSerializer())
        there = TCP4ClientEndpoint(reactor, "127.0.0.1", self._house.router.port)
        try:
            protocol: Any = await there.connect(factory)
        except Exception:
            return None
        # Of a connection that ends before RawSocket's handshake the session hears nothing.
        protocol.is_closed.addBoth(lambda _: session.here.called or session.here.errback(GONE))
        late = reactor.callLater(HANG, self._give_up, protocol)
        try:
            return await session.here
        except ConnectionError:
            return None
        finally:
            if late.active():
                late.cancel()

    def _give_up(self, protocol: Any) -> None:
        self._tally.hangs.append(f"not joined: {protocol._session}, {protocol.transport.connected}")
        protocol.transport.abortConnection()

    def drop(self) -> None:
        """Cut the connection: a call on it hangs."""
        if self._session is not None and self._session._transport is not None:
            self._session._transport.abort()

    async def close(self) -> None:
        """Leave."""
        if self._session is not None and self._session.is_attached():
            await self._session.close()


class Traffic:
    """
    Clients that call, each one call after the other.

    Args:
        house: Where.
        seed: Of all that is left to chance.
        clients: How many.
    """

    def __init__(self, house: House, seed: int, clients: int = 12) -> None:
        self.tally = Tally()
        self._house = house
        self._seed = seed
        self._name = uuid.uuid4().hex[:12]  # tokens of other rounds are there too
        self._over: float | None = None
        self._running = True
        self._ended = gatherResults(
            [ensureDeferred(self._go_on(number)) for number in range(clients)], consumeErrors=True
        )
        self._clients = clients

    def over(self) -> None:
        """Measure from now on how long it takes until each client has an answer."""
        self._over = reactor.seconds()

    @property
    def recovered(self) -> bool:
        """Whether each client has had an answer since, or one has failed."""
        return self._ended.called or len(self.tally.back) == self._clients

    def stop(self) -> None:
        """Begin no other call."""
        self._running = False

    async def end(self) -> Tally:
        """Wait until the last calls have ended."""
        await self._ended
        return self.tally

    async def _go_on(self, number: int) -> None:
        client = Client(self._house, self.tally)
        chance, count = random.Random(f"{self._seed} {number}"), 0
        while self._running:
            count += 1
            if chance.random() < 0.25:
                await self._read(client, number)
            else:
                await self._write(client, number, f"{self._name}-{number}-{count}", chance)
        await client.close()

    async def _read(self, client: Client, number: int) -> None:
        """Ask what all accounts have together."""
        call = lambda session: session.call(  # noqa: E731
            "rowcast.accounts.aggregate", {"total": {"sum": "balance"}}
        )
        end, answer = await self._try(client, number, call)
        if end == "answered" and answer != [{"total": ACCOUNTS * BALANCE}]:
            self.tally.odd.append(str(answer))

    async def _write(self, client: Client, number: int, token: str, chance: random.Random) -> None:
        """Write once, and again while the answer allows it."""
        call = chance.choice(WRITES)(token, chance)
        while True:
            end, error = await self._try(client, number, call)
            if end == "answered" or end in UNKNOWN:
                break
            if not (error.kwargs.get("retry") or end in NOTHING_KEPT):
                break
            await pause(chance.uniform(0.5, 1) * error.kwargs.get("retry_after", 0.1))
        self.tally.ends[token] = end

    async def _try(
        self, client: Client, number: int, call: Callable[[Caller], Deferred[Any]]
    ) -> tuple[str, Any]:
        """Call once; return how it ended, and the answer or the error."""
        session = await client.session()
        began = reactor.seconds()
        late = reactor.callLater(HANG, self._hang, client, began)
        self.tally.calls += 1
        try:
            answer = await call(session)
        except ApplicationError as error:
            end = str(error.error)
            # autobahn's own word for the calls of a connection that is gone
            end = LOST if end == "wamp.close.transport_lost" else end
            self.tally.errors[end] += 1
            if end not in EXPECTED:
                self.tally.odd.append(f"{end}: {error.args} {error.kwargs}")
            return end, error
        except TransportLost:
            self.tally.errors[LOST] += 1
            return LOST, None
        finally:
            if late.active():
                late.cancel()
        if self._over is not None and began >= self._over:
            self.tally.back.setdefault(number, reactor.seconds() - self._over)
        return "answered", answer

    def _hang(self, client: Client, began: float) -> None:
        since = reactor.seconds() - (self._over or began)
        self.tally.hangs.append(f"a call, {since:.1f} s after the fault")
        client.drop()


def move(token: str, chance: random.Random) -> Callable[[Caller], Deferred[Any]]:
    """Move money by a function."""
    source, target = sorted(chance.sample(range(1, ACCOUNTS + 1), 2))
    args = {"token": token, "source": source, "target": target, "amount": chance.randint(1, 9)}
    return lambda session: session.call("rowcast.fn.move", args=args)


def transfer(token: str, chance: random.Random) -> Callable[[Caller], Deferred[Any]]:
    """Move money by a batch."""
    source, target = sorted(chance.sample(range(1, ACCOUNTS + 1), 2))
    amount = chance.randint(1, 9)
    row = {"token": token, "source": source, "target": target, "amount": amount}
    operations = [
        {"call": "fn.pay", "kwargs": {"args": {"account": source, "amount": -amount}}},
        {"call": "fn.pay", "kwargs": {"args": {"account": target, "amount": amount}}},
        {"call": "moves.create", "args": [row]},
    ]
    return lambda session: session.call("rowcast.transaction", operations)


def note(token: str, chance: random.Random) -> Callable[[Caller], Deferred[Any]]:
    """Write one row."""
    return lambda session: session.call("rowcast.notes.create", {"token": token})


WRITES = (move, transfer, note)


@dataclass(frozen=True)
class Found:
    """
    What the database has of the writes.

    Args:
        lost: Tokens that were answered and are not there.
        doubled: Tokens that are there twice.
        kept: Tokens that are there, although their writes were refused.
        balanced: Whether every account has what the moves say.
        unknown: How many writes ended so that nobody knew, and were there.
    """

    lost: list[str]
    doubled: list[str]
    kept: list[str]
    balanced: bool
    unknown: int


def check(house: House, tally: Tally) -> Found:
    """Compare what callers were answered with what is there."""
    rows = execute(house.dsn, "SELECT token FROM moves UNION ALL SELECT token FROM notes")
    there = Counter(str(token) for (token,) in rows)
    ends = tally.ends
    wrong = execute(
        house.dsn,
        f"""SELECT id FROM accounts WHERE balance <> {BALANCE}
            + (SELECT coalesce(sum(amount), 0) FROM moves WHERE target = accounts.id)
            - (SELECT coalesce(sum(amount), 0) FROM moves WHERE source = accounts.id)""",
    )
    return Found(
        lost=[token for token, end in ends.items() if end == "answered" and not there[token]],
        doubled=[token for token in ends if there[token] > 1],
        kept=[t for t, end in ends.items() if end not in {"answered", *UNKNOWN} and there[t]],
        balanced=not wrong,
        unknown=sum(end in UNKNOWN and there[token] > 0 for token, end in ends.items()),
    )
