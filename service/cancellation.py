"""
Cooperative cancellation: `cancel` requests that the work ends, and the work's own result is the outcome.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred


class CooperativeDeferred(Deferred[Any]):
    """
    A Deferred that `cancel` does not fire, unlike any other Deferred.

    Attributes:
        request: Called by each `cancel`; requests that the work ends.
    """

    request: Callable[[], None]

    def cancel(self) -> None:
        """Request that the work ends."""
        if self.called:
            super().cancel()
        else:
            self.request()
