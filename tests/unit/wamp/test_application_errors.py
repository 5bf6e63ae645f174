"""Errors as callers receive them: with their own message, or as an internal error without details."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.defer import CancelledError
from twisted.logger import formatEvent, globalLogPublisher

from service.errors import DatabaseRefused, InvalidRow, Unavailable
from service.payload import TooDeep
from service.wamp import application_errors
from service.wamp.application_errors import application_error


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """
    Collect the log events of the module.

    An earlier test may have left a failed Deferred, which is logged when it is garbage collected.
    """
    lines: list[str] = []

    def observe(event: dict[str, Any]) -> None:
        if event["log_namespace"] == application_errors.__name__:
            lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


def test_refusal_of_a_call_keeps_its_details_and_is_not_logged(logged: list[str]) -> None:
    """The URI and the message, too."""
    error = application_error(Unavailable("no free connection", 2.5), "rowcast.actions.get")
    assert error.error == "rowcast.error.unavailable"
    assert error.args == ("no free connection",)
    assert error.kwargs == {"retry": True, "retry_after": 2.5}
    assert logged == []


def test_details_that_cannot_be_sent_are_escaped_or_left_out(logged: list[str]) -> None:
    """Values of callers are escaped; an unserializable detail is left out and logged."""
    odd = InvalidRow("actions", {"\0path": ["is not \ud800"]})
    error = application_error(odd, "rowcast.actions.create")
    assert error.kwargs["fields"] == {"\\0path": ["is not \\ud800"]}
    error = application_error(
        DatabaseRefused("no", row={"at": object()}, hint="h", sqlstate="55000"),
        "rowcast.actions.create",
    )
    assert error.kwargs == {"hint": "h", "sqlstate": "55000"}
    assert len(logged) == 1


def test_cancellation_and_depth_have_their_own_errors() -> None:
    assert application_error(CancelledError(), "x").error == "wamp.error.canceled"
    error = application_error(TooDeep(120), "x")
    assert error.error == "rowcast.error.too_large"
    assert error.args == ("the answer is nested deeper than 120 levels",)


def test_bug_is_logged_without_rows(logged: list[str]) -> None:
    """
    With the id, the place, the cause and the call; rows, which PostgreSQL's error has in line two, are left
    out.
    """
    cause, bug = "the first", "broken\nDETAIL: Failing row contains (secret)"
    try:
        try:
            raise KeyError(cause)
        except KeyError as error:
            raise ValueError(bug) from error
    except ValueError as error:
        sent = application_error(error, "rowcast.actions.get")
    assert sent.error == "rowcast.error.internal"
    assert set(sent.kwargs) == {"id"}
    (line,) = logged
    for part in (sent.kwargs["id"], "rowcast.actions.get", "ValueError: broken", "the first"):
        assert part in line
    assert "test_application_errors.py" in line
    assert "secret" not in line


def test_bug_that_is_its_own_cause_is_logged(logged: list[str]) -> None:
    """Each error of the cycle is logged once."""
    first, last = KeyError("first"), ValueError("last")
    first.__cause__, last.__cause__ = last, first
    assert application_error(last, "rowcast.x.get").error == "rowcast.error.internal"
    (line,) = logged
    assert line.count("KeyError: 'first'") == 1
    assert line.count("ValueError: last") == 1


def test_bug_with_control_characters_is_logged_as_escapes(logged: list[str]) -> None:
    """
    Neither a URI nor an error's text starts a new line of the log, or sends escape sequences to a terminal.
    """
    try:
        raise KeyError("a\x1b[2Jb\rc\x9bd")
    except KeyError as error:
        cause = ValueError("e\x1b[31m\rforged")
        cause.__cause__ = error
    sent = application_error(cause, "rowcast.x\x1b[2J\nforged\r.get")
    assert sent.error == "rowcast.error.internal"
    (line,) = logged
    assert "rowcast.x\\x1b[2J\\nforged\\x0d.get" in line
    assert "e\\x1b[31m\\x0dforged" in line
    assert not set(line) & {"\x1b", "\r", "\x9b"}
    assert not any(each.startswith("forged") for each in line.splitlines())
