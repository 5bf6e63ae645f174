"""
Drops services that hang, so that calls go to another one, or are refused at once.

The socket of a service stays open while its process is stopped, or its machine hangs. There are no pings over
RawSocket, and the router would keep giving it calls. So services send heartbeats, and the router closes the
connection of a service that has stopped sending them. A heartbeat comes after all answers that were sent
before it, which a busy router may not have read for long, so a service that sends anything does not hang.
"""

from time import monotonic

from twisted.internet.task import LoopingCall

SILENCE = 10.0
"""
Seconds without a heartbeat after which a service is dropped; services send one each second. Even with twenty
busy processes on two cores, a process that is not stopped gets the CPU sooner. After 6 s, services that only
held their reactor for a while were dropped, at a load of 17.
"""
EVERY = 1.0
"""Seconds between two checks."""


class Alive:
    """
    The times of the last heartbeats of services.

    Args:
        drop: Called once with the session ID of a service that has been silent for too long.
        read_at: Returns when data of a session was last read, in seconds of the monotonic clock.
    """

    def __init__(self, drop, read_at):
        self._drop = drop
        self._read_at = read_at
        self._heard = {}
        self._looked = monotonic()
        self._looking = LoopingCall(self._look)

    def start(self):
        """Start checking the services."""
        self._looking.start(EVERY, now=False)

    def stop(self):
        """Stop checking, and forget all services."""
        if self._looking.running:
            self._looking.stop()
        self._heard.clear()

    def heard(self, session):
        """Record a heartbeat."""
        self._heard[session] = monotonic()

    def _look(self):
        now, before = monotonic(), self._looked
        self._looked = now
        # The router itself was stopped: heartbeats that were sent meanwhile have yet to be read.
        if now - before > 2 * EVERY:
            self._heard = dict.fromkeys(self._heard, now)
        for session in [each for each, at in self._heard.items() if now - at > SILENCE]:
            self._heard[session] = self._read_at(session)
        for session in [each for each, at in self._heard.items() if now - at > SILENCE]:
            del self._heard[session]
            self._drop(session)
