"""
On whose behalf statements are sent, and whether they have changed anything since.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from service.db.identity import ITSELF, Identity


class Doer:
    """
    Who sends statements: one call of a procedure, say, and all that it starts.

    Args:
        identity: As whom the statements run.

    Attributes:
        writes: Counts what may have changed something, once when it is sent and once when it
            is done. What was read at another count is not to be relied on.
        committed: Whether something that may have been a change was.
    """

    def __init__(self, identity: Identity = ITSELF) -> None:
        self.identity = identity
        self.writes = 0
        self.committed = False

    def sends(self, work: Deferred[Any], reads: bool) -> Deferred[Any]:
        """Count some work, unless it leaves everything as it is."""
        if reads:
            return work
        self.writes += 1
        return work.addBoth(self._done)

    def commits(self, work: Deferred[Any]) -> Deferred[Any]:
        """Count some work that commits what it does."""
        return self.sends(work, reads=False).addCallback(self._committed)

    def _committed(self, result: Any) -> Any:
        self.committed = True
        return result

    def _done(self, outcome: Any) -> Any:
        self.writes += 1
        return outcome
