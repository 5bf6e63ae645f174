"""
What each session has under way, and how much of that there may be; how calls ended, and how fast.

A caller who sends without end, or reads nothing of what it is sent, would otherwise have the
service and the router hold all of it. What is beyond a bound is refused before any work; what
is within it waits until the session has room: its own calls, in their order.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Container, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from service.errors import Unavailable
from service.request.names import FN
from service.wamp.backpressure import FIRST_PAUSE, HELD

log = Logger()

SWEEP = 0.25
"""Seconds between two looks for calls that have waited too long."""

SLICE = 0.005
"""Seconds in which calls of a session begin one after another, until others have their turn."""

LONGEST_PAUSE = 0.5
"""Seconds between two questions to the router for a session that takes nothing."""

IDLE = 10_000
"""Sessions without a call that are remembered, if the router does not publish who leaves."""


@dataclass(frozen=True)
class Bounds:
    """
    How much may be under way.

    A session may have as much as is left for all, besides: one alone half of it, two a third
    each, so that there is always something left for another one.

    Args:
        session_calls: Calls of one session.
        total_calls: Calls of all.
        session_bytes: Bytes of arguments, and as many of answers not taken yet, of one session.
        total_bytes: The same of all; the second half is for those who take what they are sent.
        running: Calls of one session that run at once; the others wait.
        wait: Seconds that a call may.
        expected: What the first answer to a session is taken to weigh, in bytes.
    """

    session_calls: int = 10_000
    total_calls: int = 50_000
    session_bytes: int = 32 * 2**20
    total_bytes: int = 256 * 2**20
    running: int = 64
    wait: float = 5.0
    expected: int = 4 * 2**20


class Account:
    """
    What one session has under way.

    Attributes:
        calls: Those that were not answered yet.
        running: Those of them that have begun.
        arguments: What their arguments weigh.
        given: Jobs of its calls that workers have.
        untaken: What answers weigh that it has not taken, for all that is known.
        expected: What its next answer may weigh, going by the last ones.
        weigh: Counts an answer that leaves, by its size.
        unasked: What was sent to it since the router was asked how much of that it holds.
        room: Done when another part of an answer may follow.
    """

    def __init__(self, accounts: Accounts, session: int | None) -> None:
        self.session = session
        self.calls = self.running = self.arguments = self.given = self.untaken = self.unasked = 0
        self.room: Awaitable[None] | None = None
        self.expected = accounts.bounds.expected
        self.waiting: dict[Deferred[None], float] = {}
        self.asking = self.going = False
        self.weigh = partial(accounts.sent, self)
        self._accounts = accounts

    @property
    def blocked(self) -> str:
        """
        Why none of its calls may begin now: answers that lie, or are being made.

        Empty if they may.
        """
        accounts, bounds = self._accounts, self._accounts.bounds
        # Of so little the router is not asked, so that it may have been taken long ago.
        untaken = self.untaken if self.untaken > HELD else 0
        room = min(bounds.session_bytes, bounds.total_bytes // 2 - accounts.untaken)
        if untaken + self.given * self.expected < room:
            return ""
        if untaken or room > 0:
            return f"this session has {self.untaken} bytes of answers to take before it gets more"
        # The other half is for those who take what they are sent, one call at a time.
        if not self.given and accounts.untaken < bounds.total_bytes:
            return ""
        return "answers that callers have not taken yet weigh as much as may be"

    @property
    def light(self) -> bool:
        """Whether its answers weigh little, going by the last ones."""
        return self.expected <= HELD

    def given_up(self, turn: Deferred[None]) -> None:
        """Remove a call that waits: it was cancelled."""
        self.waiting.pop(turn, None)


class Accounts:
    """
    The accounts of all sessions.

    Args:
        reactor: Measures the times.
        bounds: How much may be under way.
        ask: Asks the router how much it holds for a session, once it has dealt with what it
            was sent before.
        freed: Called when a session has taken something.

    Attributes:
        calls: Those that were not answered yet.
        untaken: What answers weigh that lie at the router, for all that is known.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        bounds: Bounds,
        ask: Callable[[int | None], Awaitable[int]],
        freed: Callable[[], None],
    ) -> None:
        self.bounds = bounds
        self._reactor = reactor
        self._ask = ask
        self._freed = freed
        self._of: dict[int | None, Account] = {}
        self.untaken = 0
        self.calls = self._arguments = 0
        self._sweeping = False

    def of(self, session: int | None) -> Account:
        """Return the account of a session."""
        account = self._of.get(session)
        if account is None:
            # What its answers weigh is not lost: `_follow` has the account until they are taken.
            if len(self._of) >= IDLE:
                self._of = {key: each for key, each in self._of.items() if each.calls}
            account = self._of[session] = Account(self, session)
        return account

    def forget(self, session: int) -> None:
        """Forget a session that is gone."""
        account = self._of.pop(session, None)
        if account is not None:
            self._set(account, 0)

    def clear(self) -> None:
        """Forget what the answers weigh: there is no router any more that holds them."""
        for account in self._of.values():
            self._set(account, 0)
        self._of = {}

    def full(self, session: int | None, size: int) -> Unavailable | None:
        """Return a refusal if there is no room for one more call, with arguments of that size."""
        bounds, account = self.bounds, self._of.get(session) or self.of(session)
        if account.calls >= min(bounds.session_calls, bounds.total_calls - self.calls):
            return Unavailable(
                f"as many calls are under way as may be ({account.calls} of this session)"
            )
        room = bounds.total_bytes - self._arguments
        more = account.arguments + size
        # With nothing else under way any size comes in, or it would be refused for ever.
        if self._arguments and (
            size > room or (account.arguments and more > min(bounds.session_bytes, room))
        ):
            return Unavailable("the arguments of calls under way weigh as much as may be")
        return None

    def enter(self, session: int | None, size: int) -> Account:
        """Count a call that came, and its arguments; returns the account of its session."""
        account = self._of.get(session) or self.of(session)
        account.calls += 1
        account.arguments += size
        self.calls += 1
        self._arguments += size
        return account

    def begin(self, account: Account) -> Deferred[None] | None:
        """
        Let a call run: now, or once the Deferred fires that is returned.

        It fails with Unavailable where the call has waited too long.
        """
        if account.waiting or account.running >= self.bounds.running or account.blocked:
            turn: Deferred[None] = Deferred(account.given_up)
            account.waiting[turn] = self._reactor.seconds() + self.bounds.wait
            self._sweep_later()
            return turn
        account.running += 1
        return None

    def end(self, account: Account) -> None:
        """Count a call that has run; the next one follows when this one's answer has left."""
        account.running -= 1
        if account.waiting:
            self._go_later(account)

    def leave(self, account: Account, size: int) -> None:
        """Count a call that ended, whether it had its turn or not."""
        account.calls -= 1
        account.arguments -= size
        self.calls -= 1
        self._arguments -= size

    def sent(self, account: Account, size: int) -> None:
        """Count an answer that leaves."""
        # Halved, not replaced: after one small answer among large ones not many may begin at once.
        account.expected = max(size, account.expected // 2)
        account.unasked += size
        untaken = account.untaken + size
        if untaken <= HELD:
            account.untaken = untaken
            return
        self._set(account, untaken)
        if not account.asking:
            account.asking = True
            asking = Deferred.fromCoroutine(self._follow(account))
            asking.addErrback(lambda why: log.failure("cannot ask the router", why))

    async def _follow(self, account: Account) -> None:
        """Ask what a session has taken, as long as there is more than a little."""
        pause = FIRST_PAUSE
        try:
            while account.untaken > HELD:
                before = account.untaken
                held = await self._ask(account.session)
                # What was sent since then comes on top.
                self._set(account, held + max(0, account.untaken - before))
                if account.untaken < before:
                    pause = FIRST_PAUSE
                    self._freed()
                    self._go(account)
                if account.untaken > HELD:
                    await deferLater(self._reactor, pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
        finally:
            account.asking = False

    def _set(self, account: Account, untaken: int) -> None:
        # A little is not followed, and so is not known to lie anywhere.
        if untaken > HELD:
            self.untaken += untaken
        if account.untaken > HELD:
            self.untaken -= account.untaken
        account.untaken = untaken

    def _go_later(self, account: Account) -> None:
        if account.waiting and not account.going:
            account.going = True
            deferLater(self._reactor, 0, self._go, account)

    def _go(self, account: Account) -> None:
        """Start calls that wait, as many as may run, for `SLICE` at most."""
        account.going = False
        end = self._reactor.seconds() + SLICE
        bounds = self.bounds
        while account.waiting and account.running < bounds.running and not account.blocked:
            if self._reactor.seconds() > end:
                self._go_later(account)
                return
            # Taken out and counted first: what `callback` starts may end, or wait, at once.
            turn = next(iter(account.waiting))
            del account.waiting[turn]
            account.running += 1
            turn.callback(None)

    def _sweep_later(self, pause: float = SWEEP) -> None:
        if not self._sweeping:
            self._sweeping = True
            deferLater(self._reactor, pause, self._sweep)

    def _sweep(self) -> None:
        """Refuse the calls that have waited too long, for `SLICE` at most."""
        self._sweeping = False
        now = self._reactor.seconds()
        for account in [each for each in self._of.values() if each.waiting]:
            self._go(account)
            why = account.blocked or f"{account.running} calls of this session are running"
            while account.waiting:
                turn, end = next(iter(account.waiting.items()))  # they wait equally long
                if end > now:
                    self._sweep_later()
                    break
                # Thousands that came at once are late at once: refused in one go, they would keep
                # the reactor for seconds.
                if self._reactor.seconds() > now + SLICE:
                    self._sweep_later(0)
                    return
                del account.waiting[turn]
                turn.errback(Unavailable(f"{why}; this one has waited too long"))


_BOUNDS = [0.0001 * 2 ** (step / 4) for step in range(81)]
"""Seconds, four buckets to a doubling, from 0.1 ms to 105 s: a quantile is within 19 %."""

QUANTILES = (0.5, 0.9, 0.95, 0.99)

UNKNOWN = "unknown"
"""The verb of names that are none of ours: a caller may think of any, so they share one."""

TX = "tx"
"""The verb of calls in transactions, whose URIs are their own."""

FORWARDED = "forwarded"
"""The verb of calls that another process has passed on, which has counted them for theirs."""


class Meter:
    """
    Counts the calls of one service since its start.

    Attributes:
        verbs: Of relations.
        procedures: Names of the procedures of the service and of its application.
    """

    verbs: Container[str] = ()
    procedures: Container[str] = ()

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self._buckets: dict[str, list[int]] = {}
        self._errors: dict[str, Counter[str]] = {}

    def end(self, name: str, outcome: str, seconds: float, error: str = "") -> None:
        """
        Count a call that has ended.

        Args:
            name: Of the procedure, less the prefix.
            outcome: How it ended: "answered", "refused" and so on.
            seconds: What it took.
            error: The URI of its error.
        """
        self.outcomes[outcome] += 1
        verb = name.rpartition(".")[2]
        if name in self.procedures:
            verb = name
        elif f".{FN}." in f".{name}":
            verb = FN
        elif name.startswith(f"{TX}."):
            verb = TX if name.count(".") > 1 else FORWARDED
        elif verb not in self.verbs:
            verb = UNKNOWN
        buckets = self._buckets.get(verb)
        if buckets is None:
            # One more than bounds, for what took longer than the last.
            buckets = self._buckets[verb] = [0] * (len(_BOUNDS) + 1)
            self._errors[verb] = Counter()
        buckets[bisect_left(_BOUNDS, seconds)] += 1
        if error:
            self._errors[verb][error] += 1

    def refused(self) -> None:
        """Count a call that was refused before it began."""
        self.outcomes["refused"] += 1

    def snapshot(self) -> dict[str, Any]:
        """Return the figures, latencies in seconds."""
        every = [sum(counts) for counts in zip(*self._buckets.values(), strict=True)]
        return {
            "outcomes": dict(self.outcomes),
            "latency": _latency(every),
            "verbs": {
                verb: {
                    "calls": sum(buckets),
                    "errors": dict(self._errors[verb]),
                    "latency": _latency(buckets),
                }
                for verb, buckets in sorted(self._buckets.items())
            },
        }


def _latency(buckets: Sequence[int]) -> dict[str, float | None]:
    return {f"p{part * 100:g}": quantile(buckets, part) for part in QUANTILES}


def quantile(buckets: Sequence[int], part: float) -> float | None:
    """Return the seconds within which this part of the calls ended; None without any."""
    wanted = part * sum(buckets)
    if not wanted:
        return None
    # The last bucket has no upper bound: what lies in it is told as the longest that there is.
    return _BOUNDS[min(bisect_left(list(accumulate(buckets)), wanted), len(_BOUNDS) - 1)]
