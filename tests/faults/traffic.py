"""
Clients that write, and retry as the documentation describes.

Every second client uses idempotency keys and repeats a write until it is answered. The others give up
when the outcome of a write is unknown.
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
from tests.faults.deployment import ACCOUNTS, BALANCE, CLIENTS, KNOWN, TICKET, Deployment
from tests.faults.writes import WITH_KEY, WITHOUT_KEY, Kind, Options, Write
from tests.wamp.callers import Caller

HANG = 60.0
"""Seconds after which an unanswered call or an unfinished join counts as hanging."""
GONE = ConnectionError("not joined")
LOST = "connection lost"
UNKNOWN = {LOST, "wamp.error.canceled", "rowcast.error.outcome_unknown"}
"""Ends after which a write may or may not have been committed: documented in docs/errors.md."""
NOTHING_KEPT = {"rowcast.error.timeout"}
"""Errors without `retry` after which a client may still repeat a write: nothing was committed."""
EXPECTED = {"rowcast.error.unavailable", "rowcast.error.conflict", *NOTHING_KEPT, *UNKNOWN}


@dataclass
class Tally:
    """
    The results of all calls.

    Args:
        calls: Number of attempts.
        errors: Number of failed attempts, by URI.
        ends: How each write ended, by its token: "answered", "connection lost", or the URI of an error.
        hangs: Calls and joins that took longer than `HANG`.
        odd: Results that no committed state gives, or that differ from the first call's with the same
            key, and errors that no fault explains.
        again: Tokens of writes repeated with their key although they may have been committed.
        back: By client, seconds from the end of the fault to its first answer to a later call.
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
    A client that joins a new session when it has lost its session.

    Args:
        deployment: The deployment to connect to.
        tally: Collects the joins that hang.
        known: Whether the client authenticates.
    """

    def __init__(self, deployment: Deployment, tally: Tally, known: bool) -> None:
        self._deployment = deployment
        self._tally = tally
        self._known = known
        self._session: Caller | None = None

    async def session(self) -> Caller:
        """Return the session, after joining again if necessary."""
        while self._session is None or not self._session.is_attached():
            self._session = await self._join()
            if self._session is None:
                await pause(random.uniform(0.05, 0.15))
        return self._session

    async def _join(self) -> Caller | None:
        session = Caller(self._deployment.router.realm, KNOWN if self._known else {}, TICKET)
        factory: Any = WampRawSocketClientFactory(lambda: session, serializer=CBORSerializer())
        there = TCP4ClientEndpoint(reactor, "127.0.0.1", self._deployment.router.port)
        try:
            protocol: Any = await there.connect(factory)
        except Exception:
            return None
        # autobahn does not notify the session if the connection ends before the RawSocket handshake.
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
        """Abort the connection, because a call on it hangs."""
        if self._session is not None and self._session._transport is not None:
            self._session._transport.abort()

    async def close(self) -> None:
        """Leave the realm."""
        if self._session is not None and self._session.is_attached():
            await self._session.close()


class Traffic:
    """
    Clients that each make one call after another.

    Args:
        deployment: The deployment to connect to.
        seed: Seed of the random choices.
        with_key: Kinds of writes of the clients with idempotency keys.
    """

    def __init__(
        self, deployment: Deployment, seed: int, with_key: Sequence[Kind] = WITH_KEY
    ) -> None:
        self.tally = Tally()
        self._deployment = deployment
        self._seed = seed
        self._name = uuid.uuid4().hex[
            :12
        ]  # distinguishes the tokens of this round from earlier ones
        self._over: float | None = None
        self._running = True
        self._with_key = with_key
        self._ended = gatherResults(
            [ensureDeferred(self._run_client(number)) for number in range(CLIENTS)],
            consumeErrors=True,
        )

    def over(self) -> None:
        """Record that the fault is over, and measure the time until each client is answered again."""
        self._over = reactor.seconds()

    @property
    def recovered(self) -> bool:
        """Whether each client was answered after the fault, or a client has failed."""
        return self._ended.called or len(self.tally.back) == CLIENTS

    def stop(self) -> None:
        """Start no further calls."""
        self._running = False

    async def end(self) -> Tally:
        """Wait until the last calls have ended, and return the results."""
        await self._ended
        return self.tally

    async def _run_client(self, number: int) -> None:
        known = number % 2 == 0
        client = Client(self._deployment, self.tally, known)
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
        """Read the total of all balances, which must be constant."""
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
        """Write, and repeat the write while the error or the idempotency key allows it."""
        key: Options = {"idempotency_key": token} if keyed else {}
        while True:
            end, answer = await self._try(client, number, lambda session: write.call(session, key))
            if end == "answered":
                break
            details = getattr(answer, "kwargs", {})
            if end in UNKNOWN and keyed:
                self.tally.again.add(token)
            # The commit of an interactive transaction that failed earlier has only a `reason`: the
            # error that says whether to retry was raised by the call before it.
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
        """Call once; return how the call ended, and its result or error."""
        session = await client.session()
        began = reactor.seconds()
        late = reactor.callLater(HANG, self._hang, client, began)
        self.tally.calls += 1
        try:
            answer = await call(session)
        except ApplicationError as error:
            end = str(error.error)
            # autobahn fails the pending calls of a lost connection with this URI
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
    The comparison of the writes' results with the database.

    Args:
        lost: Tokens of answered writes that are missing.
        doubled: Tokens that exist more than once.
        kept: Tokens that exist although their writes were refused.
        balanced: Whether each balance equals the sum of the moves of its account.
        unknown: Number of committed writes whose outcome was unknown to the client.
    """

    lost: list[str]
    doubled: list[str]
    kept: list[str]
    balanced: bool
    unknown: int


def check(deployment: Deployment, tally: Tally) -> Found:
    """Compare the callers' results with the database."""
    tables = "moves", "notes", "writes"
    rows = execute(
        deployment.dsn, " UNION ALL ".join(f"SELECT token FROM {table}" for table in tables)
    )
    there = Counter(str(token) for (token,) in rows)
    ends = tally.ends
    wrong = execute(
        deployment.dsn,
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
