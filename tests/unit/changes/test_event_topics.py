"""
Topics: their URIs, and what an update changed.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.changes.images import ImageReader
from service.changes.topics import encode_key, topic_head

COMPONENT = re.compile(r"[^\s.#]+")
"""What autobahn and Crossbar take for a component of a URI."""


@pytest.mark.parametrize(
    ("schema", "name", "head"),
    [
        ("public", "actions", "rowcast.actions"),
        ("app", "actions", "rowcast.app.actions"),
        ("public", "stats", "rowcast.public.stats"),
        ("public", "changes", "rowcast.public.changes"),
        ("public", "odd name.x#%", "rowcast.odd%20name%2Ex%23%25"),
        ("my app", "Ünïcode", "rowcast.my%20app.Ünïcode"),
    ],
)
def test_head_of_a_relation_is_its_name_where_that_is_enough(
    schema: str, name: str, head: str
) -> None:
    assert topic_head("rowcast", "public", schema, name) == head


@pytest.mark.parametrize(
    ("values", "component"),
    [
        ([42], "42"),
        ([-1], "-1"),
        (["a"], "a"),
        ([1, "b c"], "1,b%20c"),
        (["a,b", "c"], "a%2Cb,c"),
        (["a", "b,c"], "a,b%2Cc"),
        (["12.50"], "12%2E50"),
        ([""], "%00"),
        (["", ""], ","),
        (["-"], "%2D"),
        ([True], "true"),
        ([1.0], "1"),
        ([1e300], "1e+300"),
        ([0.5], "0%2E5"),
        ([b"\x00\xff"], "\\x00ff"),
        (["2026-11-21T14:03:00.25Z"], "2026-11-21T14:03:00%2E25Z"),
        ([[1, 2]], "[1%2C2]"),
        ([{"a": b"\x01"}], '{"a":"\\\\x01"}'),
    ],
)
def test_key_is_one_component_of_a_uri(values: list[Any], component: str) -> None:
    assert encode_key(values) == component
    assert COMPONENT.fullmatch(component)


keys = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1
)


@given(keys, keys)
def test_component_of_a_key_of_any_text_is_unique(one: list[str], other: list[str]) -> None:
    assert COMPONENT.fullmatch(encode_key(one))
    assert encode_key(one) != "-"
    assert (encode_key(one) == encode_key(other)) == (one == other)


def test_changed_columns_are_those_that_differ_on_the_wire() -> None:
    old = {"a": 1, "b": {"n": 1}, "c": True, "d": "x", "e": [1], "f": None, "gone": 5}
    new = {"a": 1, "b": {"n": True}, "c": True, "d": "x", "e": [1.0], "f": None}
    reader = ImageReader(dict.fromkeys(old, lambda value: value), 0)
    assert reader.before(old, new, new) == {"b": {"n": 1}, "e": [1], "gone": 5}
