"""
Fakes that keep the contract of the real class.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred

from service.api.call import CallState, Send
from service.errors import NoSuchProcedure, nearest
from service.request.arguments import Caller


class FakeDispatcher:
    """
    A dispatcher without a database, with the procedures that tests of the WAMP edge call.

    `echo` returns its argument, `arguments` all arguments, `caller` the caller. `parts` sends the
    items of a list as progressive results and returns how many were taken. `wait` lasts until `release`
    or cancellation. `on` and `when` add procedures.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.waiting: list[Deferred[Any]] = []
        self.cancelled = 0
        self.sent = 0
        self._begun: list[Deferred[None]] = []
        self._stopped: list[Deferred[None]] = []
        self._answers: dict[str, Callable[..., Awaitable[Any]]] = {
            "echo": self._echo,
            "arguments": self._arguments,
            "caller": self._caller,
            "wait": self._wait,
        }

    def on(self, name: str, give: Callable[[], Any]) -> None:
        """Answer a procedure with what a function returns or raises."""

        async def answer(args: Sequence[Any], kwargs: Mapping[str, Any], caller: Caller) -> Any:
            return give()

        self._answers[name] = answer

    def when(self, name: str, give: Callable[[], Awaitable[Any]]) -> None:
        """Answer a procedure with what a coroutine function returns or raises."""

        async def answer(args: Sequence[Any], kwargs: Mapping[str, Any], caller: Caller) -> Any:
            return await give()

        self._answers[name] = answer

    async def answer(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        caller: Caller,
        state: CallState | None = None,
        progress: Send | None = None,
    ) -> Any:
        """Answer one call."""
        self.calls += 1
        if name == "parts":
            return await self._parts(args[0], progress)
        known = self._answers.get(name)
        if known is None:
            raise NoSuchProcedure("no such procedure", hint=nearest(name, list(self._answers)))
        return await known(args, kwargs, caller)

    def release(self, value: Any = "released") -> None:
        """End every waiting call."""
        waiting, self.waiting = self.waiting, []
        for each in waiting:
            each.callback(value)

    def begun(self) -> Deferred[None]:
        """Return a Deferred that fires when the next `wait` begins."""
        self._begun.append(Deferred())
        return self._begun[-1]

    def stopped(self) -> Deferred[None]:
        """Return a Deferred that fires when the next `wait` is cancelled."""
        self._stopped.append(Deferred())
        return self._stopped[-1]

    async def _parts(self, parts: Sequence[Any], progress: Send | None) -> Any:
        if progress is None:
            return None
        for part in parts:
            await progress(part)
            self.sent += 1
        return len(parts)

    async def _echo(self, args: Sequence[Any], kwargs: Mapping[str, Any], caller: Caller) -> Any:
        return args[0] if args else dict(kwargs)

    async def _arguments(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], caller: Caller
    ) -> Any:
        return {"args": list(args), "kwargs": dict(kwargs)}

    async def _caller(self, args: Sequence[Any], kwargs: Mapping[str, Any], caller: Caller) -> Any:
        return {
            "session": caller.session,
            "authid": caller.authid,
            "authrole": caller.authrole,
            "realm": caller.realm,
        }

    async def _wait(self, args: Sequence[Any], kwargs: Mapping[str, Any], caller: Caller) -> Any:
        waiting: Deferred[Any] = Deferred(self._cancel)
        self.waiting.append(waiting)
        fire(self._begun)
        return await waiting

    def _cancel(self, waiting: Deferred[Any]) -> None:
        self.cancelled += 1
        self.waiting.remove(waiting)
        fire(self._stopped)


def fire(listeners: list[Deferred[None]]) -> None:
    """Fire all Deferreds of a list, and empty it."""
    told = list(listeners)
    listeners.clear()
    for each in told:
        each.callback(None)
