"""
JSON goes both ways, and what no serializer carries comes as text.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.db.json_text import MAX_DEPTH, read_json, write_json
from service.errors import InvalidArgument

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=30,
)


@given(values)
def test_round_trip(value: Any) -> None:
    """What is written is read."""
    assert read_json(write_json(value)) == value


@given(values)
def test_escapes_change_nothing(value: Any) -> None:
    """The careful way of reading gives the same."""
    assert read_json(json.dumps([value, "\u00fc", 1e300])) == [value, "\u00fc", 1e300]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("9223372036854775807", 2**63 - 1),
        ("9223372036854775808", "9223372036854775808"),
        ("-9223372036854775808", -(2**63)),
        ("-9223372036854775809", "-9223372036854775809"),
        ("[" + "9" * 9999 + "]", ["9" * 9999]),
        ("1e999", "1e999"),
        ("[-1E+400, 1e30]", ["-1E+400", 1e30]),
        ("1" + "0" * 310 + ".5", "1" + "0" * 310 + ".5"),
        ('["1e999", "99999999999999999999"]', ["1e999", "99999999999999999999"]),
        (r'"\u0000\ud800x\ud83d\ude97"', "\ufffd\ufffdx🚗"),
        (r'"\\u0000"', "\\u0000"),
    ],
)
def test_what_no_serializer_carries(text: str, value: Any) -> None:
    """Wide numbers come as text, characters that cannot be sent are replaced."""
    assert read_json(text) == value


def test_depth() -> None:
    """A value is as deep as serializers allow, or it comes as its text."""
    deep, deeper = ("[" * n + '"]}"' + "]" * n for n in (MAX_DEPTH, MAX_DEPTH + 1))
    assert read_json(deep) == json.loads(deep)
    assert read_json(deeper) == deeper
    brackets = json.dumps('["\\[' * MAX_DEPTH)
    assert read_json(brackets) == json.loads(brackets)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (float("nan"), None),
        ([1, float("inf")], "1"),
        ({"a": [{"b": "\0"}]}, "a.0.b"),
        ({"a": "\ud800"}, "a"),
        ({1: "a"}, "1"),
        ({"\0": "a"}, "\ufffd"),
        ({"a": b"a"}, "a"),
        ({"a": {1, 2}}, "a"),
    ],
)
def test_refused(value: Any, path: str | None) -> None:
    """What JSON or PostgreSQL cannot hold is refused, with its place."""
    with pytest.raises(InvalidArgument) as refused:
        write_json(value)
    assert refused.value.details.get("path") == path


def test_refused_size() -> None:
    """An endless value is refused, a deep one, and an endless number."""
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(InvalidArgument, match="too many digits"):
        write_json(10**5000)
    for value in (endless, json.loads("[" * 101 + "]" * 101)):
        with pytest.raises(InvalidArgument, match="deeper"):
            write_json(value)
