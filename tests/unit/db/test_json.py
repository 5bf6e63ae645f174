"""
JSON is encoded and decoded; values that no serializer supports are text.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from cbor2 import dumps, loads
from hypothesis import given, settings
from hypothesis import strategies as st

from service.db.json import MAX_DEPTH, read_json, write_json
from service.errors import InvalidArgument
from tests.amounts import amount

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


@settings(deadline=None)
@given(values)
def test_document_written_and_read_is_the_same(value: Any) -> None:
    """What is written is read."""
    assert read_json(write_json(value)) == value


@settings(deadline=None)
@given(values)
def test_document_with_escapes_is_read_the_same(value: Any) -> None:
    """The slower decoder for escapes has the same result."""
    assert read_json(json.dumps([value, "\u00fc", 1e300])) == [value, "\u00fc", 1e300]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("9223372036854775807", 2**63 - 1),
        ("9223372036854775808", {"$number": "9223372036854775808"}),
        ("-9223372036854775808", -(2**63)),
        ("-9223372036854775809", {"$number": "-9223372036854775809"}),
        ("[" + "9" * 9999 + "]", [{"$number": "9" * 9999}]),
        ("1e999", {"$number": "1e999"}),
        ("[-1E+400, 1e30]", [{"$number": "-1E+400"}, 1e30]),
        ("1" + "0" * 310 + ".5", {"$number": "1" + "0" * 310 + ".5"}),
        ("1e-400", {"$number": "1e-400"}),
        ("0.12345678901234567890123", {"$number": "0.12345678901234567890123"}),
        ("1234567.8901234567", 1234567.8901234567),
        ("1.50", 1.5),
        ("0.1000000000000000055", {"$number": "0.1000000000000000055"}),
        ('{"$number": "5"}', {"$value": {"$number": "5"}}),
        (r'{"\u0024number": "5"}', {"$value": {"$number": "5"}}),
        ('{"$number": 5}', {"$number": 5}),
        ('{"$number": "five"}', {"$number": "five"}),
        ('{"$value": 5}', {"$value": 5}),
        ('["1e999", "99999999999999999999"]', ["1e999", "99999999999999999999"]),
        (r'"\u0000\ud800x\ud83d\ude97"', "\ufffd\ufffdx🚗"),
        (r'"\\u0000"', "\\u0000"),
    ],
)
def test_value_that_no_serializer_supports_is_text(text: str, value: Any) -> None:
    """Wide numbers become text, and characters that cannot be sent are replaced."""
    assert read_json(text) == value


def test_document_nested_too_deep_is_its_text() -> None:
    """A value of the maximum depth is decoded."""
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
def test_value_that_json_cannot_hold_is_refused_with_its_path(value: Any, path: str | None) -> None:
    """Neither JSON nor PostgreSQL can represent it."""
    with pytest.raises(InvalidArgument) as refused:
        write_json(value)
    assert refused.value.details.get("path") == path


def test_value_too_deep_or_cyclic_is_refused() -> None:
    """An integer with too many digits is refused, too."""
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(InvalidArgument, match="too many digits"):
        write_json(10**5000)
    for value in (endless, json.loads("[" * 101 + "]" * 101)):
        with pytest.raises(InvalidArgument, match="deeper"):
            write_json(value)


class Number(str):
    """The digits of a number, distinguished from a string."""


numbers = st.from_regex(
    r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,40})?([eE][-+]?[0-9]{1,3})?", fullmatch=True
)
keys = st.sampled_from(["$number", "$value"]) | texts
documents = st.recursive(
    numbers.map(Number)
    | st.sampled_from(
        [Number("-0"), Number("1.0"), Number("1e400"), Number("123456789012345678901")]
    )
    | st.none()
    | st.booleans()
    | texts
    | st.sampled_from(["1", "-0.5e3", "$number", "1e"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=3)
        | st.tuples(st.sampled_from(["$number", "$value"]), inner).map(lambda pair: dict([pair]))
    ),
    max_leaves=20,
)


def _text(value: Any) -> str:
    """Write a document."""
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(key)}: {_text(value[key])}' for key in value)}}}"
    return json.dumps(value)


def _exactly(text: str) -> Any:
    """Read a document with all its digits."""
    return json.loads(text, parse_int=Decimal, parse_float=Decimal)


@given(documents)
@settings(max_examples=amount(60, 300), deadline=None)
def test_any_document_read_and_written_is_the_same(document: Any) -> None:
    text = _text(document)
    assert _exactly(write_json(read_json(text))) == _exactly(text)
    for carried in (json.loads(json.dumps(read_json(text))), loads(dumps(read_json(text)))):
        assert _exactly(write_json(carried)) == _exactly(text)


def test_document_as_deep_as_any_is_written_back() -> None:
    for inner in ("1e400", '{"$number": "1"}'):
        deep = "[" * (MAX_DEPTH - 1) + inner + "]" * (MAX_DEPTH - 1)
        assert _exactly(write_json(read_json(deep))) == _exactly(deep)
    chain, deeper = (
        '{"$value": ' * n + '{"$number": "1"}' + "}" * n
        for n in (MAX_DEPTH // 2 - 1, MAX_DEPTH // 2)
    )
    assert _exactly(write_json(read_json(chain))) == _exactly(chain)
    # Its levels, and one around each of them.
    assert read_json(deeper) == deeper
