"""
Leases: what a session holds in this process between its calls, such as an upload.

A held resource, here a connection with an open transaction, is dropped when its idle time has passed, when
the owner's session leaves, when the router is lost, or when the service stops. The number of leases is
bounded, for each session and for all. The reason for an end stays known for a minute.

The id of a lease begins with the id of its process, so any replica behind shared registrations knows from
it which process to call.
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
from service.waiting import cancel_timer

Reason = Literal[
    "idle_timeout", "timeout", "session_left", "stopped", "failed", "committed", "rolled_back"
]
"""Why a lease has ended."""

REMEMBERED = 60.0
"""Seconds for which the reason for the end of a lease is kept."""

BRIDGE = "callers of an HTTP bridge are one session together"

MOST_REMEMBERED = 10_000
"""Ended leases that are kept. It bounds the memory for a client that opens and ends them in a loop."""

_PROCESS = re.compile(r"[0-9a-f]{16}", re.ASCII)
_ID = re.compile(r"([0-9a-f]{16})\.[\w-]{24}", re.ASCII)


def new_process() -> str:
    """Return a random id for this process, unique among the processes of the service."""
    return secrets.token_hex(8)


def is_process(id: str) -> bool:
    """Return whether an id may be that of a process."""
    return _PROCESS.fullmatch(id) is not None


def process_of(id: str) -> str | None:
    """Return the id of the process that holds a lease; None if `id` is not the id of a lease."""
    found = _ID.fullmatch(id)
    return found[1] if found else None


class LeasedResource(Protocol):
    """A resource that a lease holds."""

    def drop(self, reason: Reason) -> None:
        """Start to roll back, without waiting for the end."""


Held = TypeVar("Held", bound=LeasedResource)


class Lease(Generic[Held]):
    """
    A resource that one session holds.

    Attributes:
        id: A secret of the owner.
        owner: The caller that opened it.
        held: The resource.
        idle: Maximum time between two calls, in seconds.
        calls: Number of calls that use it now.
        timer: Ends it after the idle time; None while a call uses it.
    """

    def __init__(self, id: str, owner: Caller, held: Held, idle: float) -> None:
        self.id = id
        self.owner = owner
        self.held = held
        self.idle = idle
        self.calls = 0
        self.timer: IDelayedCall | None = None


class Leases(Generic[Held]):
    """
    The leases of one kind.

    Args:
        clock: Measures the idle time.
        process: The id of this process.
        kind: The resource that they hold, as in "upload", for messages.
        total: Maximum number of open leases.
        session: Maximum number of open leases of one session.
        hint: How a session makes room for another one, for messages.
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
        self._open: dict[str, Lease[Held]] = {}
        self._ended: dict[str, tuple[float, int | None, Reason]] = {}
        self._stopping = False

    def __len__(self) -> int:
        return len(self._open)

    def open(self, owner: Caller, held: Held, idle: float) -> Lease[Held]:
        """
        Open a lease. Its idle time starts when the first `use` of it ends.

        Raises:
            Unavailable: The maximum number is open, or the service is stopping.
        """
        if self._stopping:
            raise Unavailable("the service is stopping")
        own = sum(each.owner.session == owner.session for each in self._open.values())
        # If the router does not disclose callers, all of them would share the limit of one session.
        if owner.session is not None and own >= self._session:
            raise Unavailable(
                f"this session has {own} {self._kind}s open, the maximum",
                retry_after=5.0,
                # Sessions of Crossbar itself, such as its HTTP bridge, have no authid.
                hint=self._hint if owner.authid else f"{self._hint}; {BRIDGE}",
            )
        if len(self._open) >= self._total:
            raise Unavailable(f"the maximum number of {self._kind}s is open", retry_after=5.0)
        # 18 random bytes are the 24 characters of `_ID`.
        lease = Lease(f"{self.process}.{secrets.token_urlsafe(18)}", owner, held, idle)
        self._open[lease.id] = lease
        return lease

    def find(self, id: str, session: int | None) -> Lease[Held] | None:
        """
        Return an open lease of a session; None if there is none with this id.

        Raises:
            NotAuthorized: It belongs, or belonged, to another session.
        """
        lease, ended = self._open.get(id), self._ended.get(id)
        # An ended lease keeps its owner, because only the owner may learn why it has ended.
        owner = lease.owner.session if lease else ended[1] if ended else session
        if owner != session:
            raise NotAuthorized(f"the {self._kind} is another session's")
        return lease

    def reason(self, id: str) -> Reason | None:
        """Return why a lease has ended; None if that is no longer known."""
        self._forget()
        ended = self._ended.get(id)
        return ended[2] if ended else None

    @contextmanager
    def use(self, lease: Lease[Held]) -> Iterator[None]:
        """Stop the idle time of a lease during the body, which is a call of its owner."""
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

    def end(self, lease: Lease[Held], reason: Reason) -> bool:
        """End a lease without dropping what it holds; return whether it was still open."""
        if self._open.pop(lease.id, None) is None:
            return False
        cancel_timer(lease.timer)
        lease.timer = None
        self._ended[lease.id] = (self._clock.seconds(), lease.owner.session, reason)
        self._forget()
        return True

    def drop(self, lease: Lease[Held], reason: Reason) -> None:
        """End a lease and drop what it holds, unless it has ended before."""
        if self.end(lease, reason):
            lease.held.drop(reason)

    def departed(self, session: int | None = None) -> None:
        """Drop the leases of a session that has left; all leases if None: the router is lost."""
        # A copy, because `drop` removes the lease.
        for lease in list(self._open.values()):
            if session is None or lease.owner.session == session:
                self.drop(lease, "session_left")

    def stop(self) -> None:
        """Open no more leases, and drop each as soon as no call uses it."""
        self._stopping = True
        for lease in list(self._open.values()):
            if not lease.calls:
                self.drop(lease, "stopped")

    def _forget(self) -> None:
        """Forget the leases that ended long ago; `_ended` is in the order of their ends."""
        past = self._clock.seconds() - REMEMBERED
        while self._ended:
            id = next(iter(self._ended))
            if len(self._ended) <= MOST_REMEMBERED and self._ended[id][0] > past:
                return
            del self._ended[id]
