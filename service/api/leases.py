"""
Leases: what a session holds in this process between its calls.

An upload, say, has a connection and an open transaction. A lease ends it when its calls stay out
for too long, when its owner's session leaves, when the router is lost, or when the service stops,
and bounds how many there are, of one session and of all. Why it ended stays known for a minute.

An id begins with the process that has what is held: any replica behind shared registrations sees
from the id alone whom to call.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic, Literal, Protocol, TypeVar

from twisted.internet.interfaces import IDelayedCall

from service.errors import NotAuthorized, Unavailable
from service.request.arguments import Caller

Reason = Literal[
    "idle_timeout", "timeout", "session_left", "stopped", "failed", "committed", "rolled_back"
]
"""Why a lease has ended."""

REMEMBERED = 60.0
"""Seconds for which it is known why a lease ended."""

BRIDGE = "callers of an HTTP bridge are one session together"

MOST_REMEMBERED = 10_000
"""Ended leases that are remembered; a client that opens and ends them in a loop has no more."""

_ID = re.compile(r"([0-9a-f]{16})\.[\w-]{24}", re.ASCII)


def new_process() -> str:
    """Return an id for this process, different from that of every other one."""
    return secrets.token_hex(8)


def process_of(id: str) -> str | None:
    """Return the process that has a lease, by its id; None if it is no id at all."""
    found = _ID.fullmatch(id)
    return found[1] if found else None


class Held(Protocol):
    """What a lease ends."""

    def drop(self, reason: Reason) -> None:
        """Undo what was begun, without waiting for it."""


Thing = TypeVar("Thing", bound=Held)


class Lease(Generic[Thing]):
    """
    What one session holds.

    Attributes:
        id: Known to its owner alone, and unguessable.
        owner: Whose it is.
        held: What it is.
        idle: Seconds between two calls, at most.
    """

    def __init__(self, id: str, owner: Caller, held: Thing, idle: float) -> None:
        self.id = id
        self.owner = owner
        self.held = held
        self.idle = idle
        self.calls = 0
        self.timer: IDelayedCall | None = None


class Leases(Generic[Thing]):
    """
    The leases of one kind.

    Args:
        clock: Measures how long they lie idle.
        process: Which they are in.
        kind: What they hold, as in "upload", for messages.
        total: How many there may be.
        session: How many of them one session may have.
        hint: How it makes room for another one.
    """

    def __init__(
        self, clock: Any, process: str, kind: str, total: int, session: int, hint: str
    ) -> None:
        self.process = process
        self._clock = clock
        self._kind = kind
        self._total = total
        self._session = session
        self._hint = hint
        self._open: dict[str, Lease[Thing]] = {}
        self._ended: dict[str, tuple[float, int | None, Reason]] = {}
        self._stopping = False

    def __len__(self) -> int:
        return len(self._open)

    def open(self, owner: Caller, held: Thing, idle: float) -> Lease[Thing]:
        """
        Open a lease; its idle time begins when the first `use` of it ends.

        Raises:
            Unavailable: There are as many as may be, or the service is stopping.
        """
        if self._stopping:
            raise Unavailable("the service is stopping")
        own = sum(each.owner.session == owner.session for each in self._open.values())
        # A router that discloses no callers would have all of them share the bound of one session.
        if owner.session is not None and own >= self._session:
            raise Unavailable(
                f"this session has {own} {self._kind}s open, as many as it may",
                retry_after=5.0,
                # A session of Crossbar's own, its HTTP bridge's say, has no authid.
                hint=self._hint if owner.authid else f"{self._hint}; {BRIDGE}",
            )
        if len(self._open) >= self._total:
            raise Unavailable(f"as many {self._kind}s are open as may be", retry_after=5.0)
        # 18 random bytes are the 24 characters of `_ID`.
        lease = Lease(f"{self.process}.{secrets.token_urlsafe(18)}", owner, held, idle)
        self._open[lease.id] = lease
        return lease

    def find(self, id: str, session: int | None) -> Lease[Thing] | None:
        """
        Return a session's lease, None if there is none.

        Raises:
            NotAuthorized: It is another session's, or was.
        """
        lease, ended = self._open.get(id), self._ended.get(id)
        # One that has ended keeps its owner: nobody else is told why it did.
        owner = lease.owner.session if lease else ended[1] if ended else session
        if owner != session:
            raise NotAuthorized(f"the {self._kind} is another session's")
        return lease

    def reason(self, id: str) -> Reason | None:
        """Return why a lease has ended, None if that is not known any more."""
        self._forget()
        ended = self._ended.get(id)
        return ended[2] if ended else None

    @contextmanager
    def use(self, lease: Lease[Thing]) -> Iterator[None]:
        """Keep a lease from lying idle for the length of the body: a call of its owner's."""
        lease.calls += 1
        if lease.timer is not None:
            lease.timer.cancel()
            lease.timer = None
        try:
            yield
        finally:
            lease.calls -= 1
            if not lease.calls and lease.id in self._open:
                if self._stopping:
                    self.drop(lease, "stopped")
                else:
                    lease.timer = self._clock.callLater(
                        lease.idle, self.drop, lease, "idle_timeout"
                    )

    def end(self, lease: Lease[Thing], reason: Reason) -> bool:
        """End a lease, with what it holds left alone; return whether it was still open."""
        if self._open.pop(lease.id, None) is None:
            return False
        if lease.timer is not None and lease.timer.active():
            lease.timer.cancel()
        lease.timer = None
        self._ended[lease.id] = (self._clock.seconds(), lease.owner.session, reason)
        self._forget()
        return True

    def drop(self, lease: Lease[Thing], reason: Reason) -> None:
        """End a lease, and what it holds, unless it has ended before."""
        if self.end(lease, reason):
            lease.held.drop(reason)

    def departed(self, session: int | None = None) -> None:
        """Drop what a session holds that is gone; without one, what any does: the router is gone."""
        # A copy, since `drop` takes it out.
        for lease in list(self._open.values()):
            if session is None or lease.owner.session == session:
                self.drop(lease, "session_left")

    def stop(self) -> None:
        """Open no more, and drop each as soon as no call of its owner's runs."""
        self._stopping = True
        for lease in list(self._open.values()):
            if not lease.calls:
                self.drop(lease, "stopped")

    def _forget(self) -> None:
        """Forget what ended long ago; they are in the order in which they have ended."""
        past = self._clock.seconds() - REMEMBERED
        while self._ended:
            id = next(iter(self._ended))
            if len(self._ended) <= MOST_REMEMBERED and self._ended[id][0] > past:
                return
            del self._ended[id]
