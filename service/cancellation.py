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

    Args:
        request: Requests that the work ends; called at each cancel.
    """

    def __init__(self, request: Callable[[], None]) -> None:
        super().__init__()
        self._request = request

    def cancel(self) -> None:
        """Request that the work ends."""
        if self.called:
            super().cancel()
        else:
            self._request()
