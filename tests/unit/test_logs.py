"""Log events of a call have its id."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from twisted.logger import Logger, LogLevel, LogPublisher, textFileLogObserver
from twisted.python.failure import Failure

from service.db.worker import ORIGIN, Origin
from service.logs import at_level


@pytest.mark.parametrize(
    ("origin", "head"),
    [
        (None, ""),
        (Origin(), ""),
        (Origin("c0ffee", "actions.find", "clerk"), "[call c0ffee] "),
        (Origin("c0ffee", transaction="{odd}"), "[call c0ffee, transaction {odd}] "),
        (Origin(transaction="nightly"), "[transaction nightly] "),
    ],
)
def test_event_of_call_begins_with_its_id(origin: Origin | None, head: str) -> None:
    """Text in braces is not taken for a field, and a traceback follows as usual."""
    out, seen = StringIO(), []
    publisher = LogPublisher(at_level(textFileLogObserver(out), "warn"), seen.append)
    log: Any = Logger("shop", observer=publisher)
    token = ORIGIN.set(origin)
    try:
        log.warn("sold {what}", what="{cup}")
        log.info("not severe enough")
        log.failure("broken", Failure(ZeroDivisionError("by zero")))
    finally:
        ORIGIN.reset(token)
    first, second, *rest = out.getvalue().splitlines()
    assert first.endswith(f"[shop#warn] {head}sold {{cup}}")
    assert second.endswith(f"[shop#critical] {head}broken")
    assert "ZeroDivisionError: by zero" in "".join(rest)
    assert [each["log_format"] for each in seen] == ["sold {what}", "not severe enough", "broken"]


def test_event_that_brings_its_origin_needs_no_context() -> None:
    """Such as one from another thread."""
    seen: list[Any] = []
    observer = at_level(seen.append, "info")
    event = {"log_level": LogLevel.info, "log_namespace": "shop", "log_format": "slow"}
    observer({**event, "origin": Origin("c0ffee")})
    assert (seen[0]["call_id"], seen[0]["log_format"]) == ("c0ffee", "[call {call_id}] slow")
