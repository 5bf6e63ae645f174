"""
A service that stands still is dropped, so that calls go to another one, or are refused at once.

Its socket stays open while its process is stopped, or its machine hangs; RawSocket has no ping, and
the router goes on dealing calls out to it. So services say that they live, and the connection of one
that has done so, and does no longer, is closed.
"""

from time import monotonic

from twisted.internet.task import LoopingCall

SILENCE = 10.0
"""
Seconds without a sign of life after which a service is dropped; it gives one each second. A process that
runs gets its turn in less, even with twenty others on two cores.
"""
EVERY = 1.0
"""Seconds between two looks."""


class Alive:
    """
    When each service has given its last sign of life.

    Args:
        drop: Called with the session of a service that has been silent for too long; it is asked about
            no more.
    """

    def __init__(self, drop):
        self._drop = drop
        self._heard = {}
        self._looked = monotonic()
        self._looking = LoopingCall(self._look)

    def start(self):
        """Start looking for services that give no sign of life any more."""
        self._looking.start(EVERY, now=False)

    def stop(self):
        """Stop looking, and forget all services."""
        if self._looking.running:
            self._looking.stop()
        self._heard.clear()

    def heard(self, session):
        """Record a sign of life."""
        self._heard[session] = monotonic()

    def _look(self):
        now, before = monotonic(), self._looked
        self._looked = now
        # The router stood still itself: what was sent meanwhile has yet to be read.
        if now - before > 2 * EVERY:
            self._heard = dict.fromkeys(self._heard, now)
        for session in [each for each, at in self._heard.items() if now - at > SILENCE]:
            del self._heard[session]
            self._drop(session)
