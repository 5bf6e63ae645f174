"""Names of procedures, and how special characters in them are encoded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import NoSuchProcedure
from service.request.names import FunctionName, Name, decode, encode, parse_name


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_name_of_any_characters_survives_encoding(name):
    """Any name becomes one URI component, and is decoded from it."""
    component = encode(name)
    assert decode(component) == name
    assert not set(component) & set(" .#\t\n")


def test_encoded_name_escapes_what_wamp_forbids():
    """Nothing else is escaped."""
    assert encode("my table.v1#50%") == "my%20table%2Ev1%2350%25"
    assert encode("Größe-1_a") == "Größe-1_a"


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("actions.get", Name(None, "actions", "get")),
        ("app.actions.get", Name("app", "actions", "get")),
        ("a%2Eb.find", Name(None, "a.b", "find")),
    ],
)
def test_name_of_a_verb_is_parsed(name, parsed):
    """A relation and a verb, with or without a schema."""
    assert parse_name(name) == parsed


@pytest.mark.parametrize(
    "name", ["", "actions", "a.b.c.d", "fn", "tx.1", "a%2.get", "a%zz.get", "a%FF.get"]
)
def test_name_of_no_procedure_is_refused(name):
    """Reserved words, malformed escapes and other numbers of components."""
    with pytest.raises(NoSuchProcedure):
        parse_name(name)


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("fn.add", FunctionName(None, "add", None)),
        ("app.fn.add", FunctionName("app", "add", None)),
        ("fn.a%2Eb.find", FunctionName(None, "a.b", "find")),
        ("app.fn.add.find", FunctionName("app", "add", "find")),
    ],
)
def test_name_of_a_function_is_parsed(name, parsed):
    """The component "fn" and a function, with or without a schema before and a verb after it."""
    assert parse_name(name) == parsed
