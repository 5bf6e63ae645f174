"""
The arguments of `watch`.
"""

from __future__ import annotations

import pytest

from service.request.arguments import UnknownArgument
from service.request.read_request import (
    GROUPS,
    QUERY,
    WATCH_OPTIONS,
    Limits,
    parse_find,
    parse_unpaged,
    parse_watched,
)

LIMITS = Limits(max_rows=10)


def names(caught: pytest.ExceptionInfo[UnknownArgument]) -> set[str]:
    """Return the names that the hint lists."""
    return set(caught.value.details["hint"].removeprefix("arguments: ").split(", "))


def test_unknown_argument_is_answered_with_those_of_the_verb() -> None:
    with pytest.raises(UnknownArgument) as caught:
        parse_watched([], {"zzz": 1}, LIMITS, "public.actions", 100)
    assert {*QUERY, *GROUPS, *WATCH_OPTIONS} <= names(caught)
    assert not {"after", "count", "form", "chunk"} & names(caught)
    with pytest.raises(UnknownArgument) as caught:
        parse_unpaged([], {"zzz": 1}, LIMITS, "public.actions")
    assert "chunk" in names(caught)
    assert not {"after", "count", "measures", "since"} & names(caught)
    with pytest.raises(UnknownArgument) as caught:
        parse_find([], {"zzz": 1}, LIMITS, "public.actions")
    assert {"after", "count", "measures"} <= names(caught)
    assert not {"since", "chunk"} & names(caught)
