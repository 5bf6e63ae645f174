"""
Cooperative cancellation: a cancel is a request, and what came of the work is the outcome.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred


class CooperativeDeferred(Deferred[Any]):
    """
    A Deferred that a cancel does not end, as it ends every other one.

    Attributes:
        request: Requests that the work ends; called at each cancel.
    """

    request: Callable[[], None]

    def cancel(self) -> None:
        """Request that the work ends."""
        if self.called:
            super().cancel()
        else:
            self.request()
