"""The grammar of select items, sort keys and filter keys."""

from __future__ import annotations

import pytest

from service.errors import InvalidArgument
from service.request.arguments import Values
from service.request.select_list import parse_item, parse_order, parse_reference, parse_text_item


@pytest.mark.parametrize(
    ("text", "alias", "names", "steps", "cast"),
    [
        ("id", None, ["id"], [], None),
        ("n:id", "n", ["id"], [], None),
        ("id::text", None, ["id"], [], "text"),
        ("n:doc->a->>0::int", "n", ["doc"], [("a", False, False), ("0", True, True)], "int"),
        ('doc->"0"', None, ["doc"], [("0", False, False)], None),
        ('"a:b->c.d::e"', None, ["a:b->c.d::e"], [], None),
        ('"say ""hi"""', None, ['say "hi"'], [], None),
        ('"x y":"z.w"', "x y", ["z.w"], [], None),
        ("driver.name", None, ["driver", "name"], [], None),
        ("my-column", None, ["my-column"], [], None),
        ("a b", None, ["a b"], [], None),
        ('id::"My Type"', None, ["id"], [], '"My Type"'),
        ("id::double precision", None, ["id"], [], "double precision"),
        ("Straße->größe", None, ["Straße"], [("größe", False, False)], None),
    ],
)
def test_item_is_alias_column_path_and_cast(text, alias, names, steps, cast):
    item = parse_text_item(text, "select.0", Values())
    reference = item.reference
    assert item.alias == alias
    assert [*reference.owners, reference.name] == names
    assert [(step.key, step.index, step.text) for step in reference.steps] == steps
    assert reference.cast == cast


@pytest.mark.parametrize(
    "text",
    ["", ":", "a:", ":a", "a::", "a::b::c", "->a", "a->", "a->>b->c", "a..b", ".", '"a', "a->b.c",
     "a:b:c", '""', "x" * 1001, "a\0b", "a." * 17 + "b"],
)  # fmt: skip
def test_malformed_item_is_refused(text):
    """The error has the path."""
    with pytest.raises(InvalidArgument) as refused:
        parse_text_item(text, "select.3", Values())
    assert refused.value.details["path"] == "select.3"


def test_steps_of_a_path_are_values():
    """A step is bound as a parameter: an index as a number, a key as text."""
    values = Values()
    reference = parse_reference("doc->-1->>x", "order.0", values)
    assert values.freeze() == (-1, "x")
    assert [step.operand.slot for step in reference.steps] == [0, 1]


def test_cast_named_twice_is_refused():
    """Once behind the column, once in the dict."""
    with pytest.raises(InvalidArgument) as refused:
        parse_item({"column": "id::text", "cast": "int"}, "select.0", Values())
    assert refused.value.details["path"] == "select.0.cast"


def test_plain_sort_key_is_cached_by_name_direction_and_path() -> None:
    """A sort key with a value, such as a step of a JSON path, is parsed in each call."""
    (up,), (down,) = (parse_order([name], Values()) for name in ("a", "-a"))
    assert (up.reference, up.descending, down.descending) == (down.reference, False, True)
    assert parse_order(["b", "a"], Values())[1].reference.path == "order.1"
    for _ in range(2):
        values = Values()
        parse_order(["data->>x", "a"], values)
        assert values.freeze() == ("x",)
