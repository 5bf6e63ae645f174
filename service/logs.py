"""
The log: what is severe enough to be in it, and which call it is of.
"""

from __future__ import annotations

from collections.abc import Iterable

from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    LogEvent,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogBeginner,
)
from zope.interface import implementer

from service.db.slow import ORIGIN, Origin


@implementer(ILogObserver)
class CallObserver:
    """
    Hands events on; one that is of a call begins with the call's id.

    Whatever is logged while a call is answered is of it, an application's own events included.

    Args:
        observer: What gets them, with the fields `call_id` and `transaction` more.
    """

    def __init__(self, observer: ILogObserver) -> None:
        self._observer = observer

    def __call__(self, event: LogEvent) -> None:
        """Hand an event on."""
        # A worker's thread is in no call's context: what it logs brings its origin along.
        origin, text = event.get("origin") or ORIGIN.get(), event.get("log_format")
        if isinstance(origin, Origin) and isinstance(text, str):
            of = [f"{name} {{{field}}}" for name, field, value in _parts(origin) if value]
            fields = {field: value for _, field, value in _parts(origin) if value}
            event = {**event, **fields, "log_format": f"[{', '.join(of)}] {text}" if of else text}
        self._observer(event)


def _parts(origin: Origin) -> list[tuple[str, str, str]]:
    return [
        ("call", "call_id", origin.call),
        ("transaction", "transaction", origin.transaction),
    ]


def at_level(observer: ILogObserver, level: str) -> ILogObserver:
    """Return an observer of what is as severe as a level or more so, by call."""
    least = LogLevelFilterPredicate(LogLevel.levelWithName(level))
    found: ILogObserver = FilteringLogObserver(CallObserver(observer), [least])
    return found


def limit_log(level: str) -> None:
    """Limit the log of twistd, wherever its options send it, to a level and above."""
    begin = globalLogBeginner.beginLoggingTo

    def begin_limited(
        observers: Iterable[ILogObserver],
        discardBuffer: bool = False,
        redirectStandardIO: bool = True,
    ) -> None:
        begin([at_level(each, level) for each in observers], discardBuffer, redirectStandardIO)

    # twistd makes its observer after it has read twistd.tac, and has no option for the level.
    globalLogBeginner.beginLoggingTo = begin_limited  # type: ignore[method-assign]
