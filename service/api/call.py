"""
What a verb knows of its call, beside the arguments.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from service.errors import InvalidArgument
from service.request.arguments import Caller

Send = Callable[[Any], Awaitable[None]]
"""Sends a part of an answer; done when the next part may follow."""


@dataclass(slots=True)
class CallContext:
    """
    A call, beside its arguments.

    Args:
        caller: Who calls.
        progress: Sends parts of the answer, if the caller asked for progressive results.
        begun: Whether something was done for the call that must not be done twice.
    """

    caller: Caller
    progress: Send | None = None
    begun: bool = False

    def parts(self) -> Send:
        """
        Return the function that sends parts of an answer.

        Raises:
            InvalidArgument: The caller takes a single answer only.
        """
        if self.progress is None:
            raise InvalidArgument(
                "this is answered in parts, as progressive results, and the call asks for none",
                hint="call with receive_progress (autobahn: CallOptions(on_progress=…))",
            )
        return partial(self._send, self.progress)

    async def _send(self, progress: Send, part: Any) -> None:
        self.begun = True
        await progress(part)
