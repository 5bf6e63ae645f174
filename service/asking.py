"""
A Deferred whose cancel is a request: what really came of the work is its outcome.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred


class Asked(Deferred[Any]):
    """
    A Deferred that a cancel does not end, as it ends every other one.

    Args:
        ask: Asks the work to end; called at each cancel.
    """

    def __init__(self, ask: Callable[[], None]) -> None:
        super().__init__()
        self._ask = ask

    def cancel(self) -> None:
        """Ask the work to end."""
        if self.called:
            super().cancel()
        else:
            self._ask()
