"""
Clients that write, and retry as the documentation says.

Every second one has idempotency keys, and calls again until it is answered; the others stop where nobody knows
what became of a write.
"""

from __future__ import annotations

import random
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from autobahn.twisted.rawsocket import WampRawSocketClientFactory
from autobahn.wamp.exception import ApplicationError, TransportLost
from autobahn.wamp.serializer import CBORSerializer
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint

from tests.conftest import execute
from tests.deferreds import pause
from tests.faults.house import ACCOUNTS, BALANCE, CLIENTS, KNOWN, TICKET, House
from tests.faults.writes import WITH_KEY, WITHOUT_KEY, Kind, Options, Write
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
        odd: Answers that no state of the bank gives, that are not those of a first call, and errors
            that no fault explains.
        again: Writes with a key that were called again although they may have been kept.
        back: Seconds from the end of the fault to the first answer of each client to a call that
            it began after that.
    """

    calls: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    ends: dict[str, str] = field(default_factory=dict)
    hangs: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    again: set[str] = field(default_factory=set)
    back: dict[int, float] = field(default_factory=dict)


class Client:
    """
    A session that is joined again when it was lost.

    Args:
        house: Where.
        tally: Counts connections that hang.
        known: Whether it logs in.
    """

    def __init__(self, house: House, tally: Tally, known: bool) -> None:
        self._house = house
        self._tally = tally
        self._known = known
        self._session: Caller | None = None

    async def session(self) -> Caller:
        """Return the session, once there is one."""
        while self._session is None or not self._session.is_attached():
            self._session = await self._join()
            if self._session is None:
                await pause(random.uniform(0.05, 0.15))
        return self._session

    async def _join(self) -> Caller | None:
        session = Caller(self._house.router.realm, KNOWN if self._known else {}, TICKET)
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
        with_key: What those write that have keys.
    """

    def __init__(self, house: House, seed: int, with_key: Sequence[Kind] = WITH_KEY) -> None:
        self.tally = Tally()
        self._house = house
        self._seed = seed
        self._name = uuid.uuid4().hex[:12]  # tokens of other rounds are there too
        self._over: float | None = None
        self._running = True
        self._with_key = with_key
        self._ended = gatherResults(
            [ensureDeferred(self._go_on(number)) for number in range(CLIENTS)], consumeErrors=True
        )

    def over(self) -> None:
        """Measure from now on how long it takes until each client has an answer."""
        self._over = reactor.seconds()

    @property
    def recovered(self) -> bool:
        """Whether each client has had an answer since, or one has failed."""
        return self._ended.called or len(self.tally.back) == CLIENTS

    def stop(self) -> None:
        """Begin no other call."""
        self._running = False

    async def end(self) -> Tally:
        """Wait until the last calls have ended."""
        await self._ended
        return self.tally

    async def _go_on(self, number: int) -> None:
        known = number % 2 == 0
        client = Client(self._house, self.tally, known)
        kinds = self._with_key if known else WITHOUT_KEY
        chance, count = random.Random(f"{self._seed} {number}"), 0
        while self._running:
            count += 1
            if chance.random() < 0.25:
                await self._read(client, number)
            else:
                token = f"{self._name}-{number}-{count}"
                write = chance.choice(kinds)(token, number, chance)
                await self._write(client, number, token, write, known, chance)
        await client.close()

    async def _read(self, client: Client, number: int) -> None:
        """Ask what all accounts have together."""
        call = lambda session: session.call(  # noqa: E731
            "rowcast.accounts.aggregate", {"total": {"sum": "balance"}}
        )
        end, answer = await self._try(client, number, call)
        if end == "answered" and answer != [{"total": ACCOUNTS * BALANCE}]:
            self.tally.odd.append(str(answer))

    async def _write(
        self,
        client: Client,
        number: int,
        token: str,
        write: Write,
        keyed: bool,
        chance: random.Random,
    ) -> None:
        """Write once, and again while the answer allows it, or the key."""
        key: Options = {"idempotency_key": token} if keyed else {}
        while True:
            end, answer = await self._try(client, number, lambda session: write.call(session, key))
            if end == "answered":
                break
            details = getattr(answer, "kwargs", {})
            if end in UNKNOWN and keyed:
                self.tally.again.add(token)
            # What a transaction held open has failed of is in the call before its commit.
            elif not (
                details.get("retry") or end in NOTHING_KEPT or (keyed and "reason" in details)
            ):
                break
            await pause(chance.uniform(0.5, 1) * details.get("retry_after", 0.1))
        if end == "answered" and not write.right(answer):
            self.tally.odd.append(f"{write.kind}: {answer}")
        self.tally.ends[token] = end

    async def _try(
        self, client: Client, number: int, call: Callable[[Caller], Awaitable[Any]]
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
    tables = "moves", "notes", "writes"
    rows = execute(house.dsn, " UNION ALL ".join(f"SELECT token FROM {table}" for table in tables))
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
