"""Arguments of a call: positional ones are named, unknown ones are refused with a hint."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidArgument, UnknownName
from service.request.arguments import (
    MAX_INTEGER,
    Arguments,
    UnknownArgument,
    Values,
    flag_of,
    integer_of,
    items_with_paths,
    rows_of,
    seconds_of,
)

KNOWN = ["where", "order", "limit", "offset"]


def arguments(*args: Any, leading: tuple[str, ...] = ("key",), **kwargs: Any) -> Arguments:
    """Parse the arguments of a verb."""
    return Arguments(args, kwargs, leading, KNOWN)


def test_positional_argument_has_the_name_of_its_place() -> None:
    """By position and by name, the request is the same."""
    assert arguments(1).required("key") == arguments(key=1).required("key") == 1
    assert "key" not in arguments()
    with pytest.raises(InvalidArgument, match='"key" is given twice'):
        arguments(1, key=1)
    with pytest.raises(InvalidArgument, match='"key" is missing'):
        arguments().required("key")


@pytest.mark.parametrize(
    ("leading", "message"),
    [((), "no positional arguments, got 3"), (("key",), "1 positional argument, got 3")],
)
def test_too_many_positional_arguments_are_counted(leading: Any, message: str) -> None:
    """The hint lists the positional arguments."""
    with pytest.raises(InvalidArgument, match=message):
        arguments({}, 2, 3, leading=leading)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("wher", 'did you mean "where"?'),
        ("order_by", 'did you mean "order", as in'),
        ("orderBy", 'did you mean "order", as in'),
        ("perPage", 'did you mean "limit", as in'),
        ("group", "aggregate groups rows, as in"),
    ],
)
def test_unknown_argument_is_refused_with_a_hint(name: str, hint: str) -> None:
    """A misspelled argument, or one of another tool."""
    with pytest.raises(UnknownName) as refused:
        arguments(**{name: 5})
    assert refused.value.details["hint"].startswith(hint)
    assert refused.value.details["path"] == name


@pytest.mark.parametrize(
    ("value", "message", "hint"),
    [
        (True, "the order is one of asc, desc, as a string", None),
        (["asc"], "the order is one of asc, desc, as a string", None),
        ("", 'no order ""', "one of asc, desc"),
        ("True", 'no order "True"', "one of asc, desc"),
        ("decs", 'no order "decs"', 'did you mean "desc"?'),
    ],
)
def test_value_that_is_none_of_the_words_is_refused_with_them(
    value: Any, message: str, hint: str | None
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        arguments(order=value).choice("order", ("asc", "desc"))
    assert refused.value.message == message
    assert refused.value.details == {"path": "order", **({"hint": hint} if hint else {})}


def test_column_given_as_an_argument_is_refused_with_its_right_place() -> None:
    """The hint is given once the relation's columns are known."""
    with pytest.raises(UnknownArgument) as refused:
        arguments(plate="B")
    assert refused.value.container == "where"
    refused.value.of_column()
    assert refused.value.details["hint"] == 'a column goes into "where", as in where={"plate": …}'


@given(st.integers())
def test_integer_is_what_a_bigint_holds_and_not_negative(value: int) -> None:
    """A float without a fraction is an integer, because JSON has numbers only."""
    if 0 <= value <= MAX_INTEGER:
        assert integer_of(value, "limit", "limit") == value
    else:
        with pytest.raises(InvalidArgument, match="not negative"):
            integer_of(value, "limit", "limit")


@pytest.mark.parametrize("value", [True, "1", 1.5, [1]])
def test_argument_that_is_no_integer_is_refused(value: Any) -> None:
    """A boolean is not an integer, although it is one in Python."""
    with pytest.raises(InvalidArgument, match="whole number"):
        integer_of(value, "limit", "limit")
    assert integer_of(2.0, "limit", "limit") == 2
    assert integer_of(None, "limit", "limit") is None


@pytest.mark.parametrize("value", [0, -1, True, "5", float("nan"), float("inf"), 1e9])
def test_time_limit_is_a_number_of_seconds(value: Any) -> None:
    """It is positive and finite."""
    with pytest.raises(InvalidArgument, match="number of seconds"):
        seconds_of(value)
    assert seconds_of(2) == 2.0
    assert seconds_of(None) is None


def test_flag_is_true_or_false() -> None:
    """Null is the default."""
    assert flag_of(None, "all", "all", default=True) is True
    with pytest.raises(InvalidArgument, match="true or false"):
        flag_of(1, "all", "all")


def test_item_of_a_list_has_its_place() -> None:
    """A single item that is not in a list has the path of the argument."""
    assert items_with_paths(["a", "b"], "order") == [("a", "order.0"), ("b", "order.1")]
    assert items_with_paths("a", "order") == [("a", "order")]
    assert items_with_paths(None, "order") == []
    with pytest.raises(InvalidArgument, match="at most 1 items"):
        items_with_paths(["a", "b"], "order", 1)


def test_single_row_is_not_a_list_of_rows() -> None:
    """So that the result is one row, too."""
    assert rows_of({"a": 1}, "values") == ([{"a": 1}], False)
    assert rows_of([{"a": 1}], "values") == ([{"a": 1}], True)
    for value, path in (([{}, 1], "values.1"), ([{1: 2}], "values.0"), (5, "values")):
        with pytest.raises(InvalidArgument) as refused:
            rows_of(value, "values")
        assert refused.value.details["path"] == path


@given(st.lists(st.integers()))
def test_slots_of_values_are_counted_in_order(values: list[int]) -> None:
    """A request refers to values by their number."""
    found = Values(values[:1])
    slots = [found.add(value) for value in values[1:]]
    assert slots == list(range(len(values[:1]), len(values)))
    assert found.freeze() == tuple(values)
