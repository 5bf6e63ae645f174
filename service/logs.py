"""
The log: filters events by level, and marks each with the call that it belongs to.
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

from service.db.worker import ORIGIN, Origin

FIELDS = {"call_id": "call", "transaction": "transaction"}
"""The fields that an event gets, each with the attribute of its `Origin`, which names it in the text as well."""


@implementer(ILogObserver)
class CallObserver:
    """
    Passes events on; the text of one that belongs to a call begins with the call's id.

    All events logged while a call is answered belong to the call, an application's own included.

    Args:
        observer: Receives the events, with the additional fields `call_id` and `transaction`.
    """

    def __init__(self, observer: ILogObserver) -> None:
        self._observer = observer

    def __call__(self, event: LogEvent) -> None:
        """Pass an event on."""
        # A worker thread has no call's context, so its events carry their origin.
        origin, text = event.get("origin") or ORIGIN.get(), event.get("log_format")
        if isinstance(origin, Origin) and isinstance(text, str):
            fields = {field: of for field, name in FIELDS.items() if (of := getattr(origin, name))}
            marks = ", ".join(f"{FIELDS[field]} {{{field}}}" for field in fields)
            event = {**event, **fields, "log_format": f"[{marks}] {text}" if marks else text}
        self._observer(event)


def at_level(observer: ILogObserver, level: str) -> ILogObserver:
    """Return an observer of the events of a level and above, marked by call."""
    predicate = LogLevelFilterPredicate(LogLevel.levelWithName(level))
    found: ILogObserver = FilteringLogObserver(CallObserver(observer), [predicate])
    return found


def limit_log(level: str) -> None:
    """Limit the log of twistd to the events of a level and above, whatever its destination."""
    begin = globalLogBeginner.beginLoggingTo

    def begin_limited(
        observers: Iterable[ILogObserver],
        discardBuffer: bool = False,
        redirectStandardIO: bool = True,
    ) -> None:
        begin([at_level(each, level) for each in observers], discardBuffer, redirectStandardIO)

    # twistd creates its observer after it has loaded twistd.tac, and has no option for the level.
    globalLogBeginner.beginLoggingTo = begin_limited  # type: ignore[method-assign]
