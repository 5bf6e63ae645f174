"""
Literals of arrays, composites and hstore are read as PostgreSQL writes them.
"""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.db.literals import (
    read_array,
    read_composite,
    read_hstore,
    write_array,
    write_composite,
    write_hstore,
)

texts = st.text(max_size=8)
maybe = st.none() | texts


@given(st.lists(maybe) | st.lists(st.lists(maybe, min_size=1), min_size=1))
def test_array_of_any_values_is_read_as_written(value: list[object]) -> None:
    assert read_array(write_array(value), str) == value


@given(st.lists(st.none() | texts.filter(bool)))
def test_array_delimited_by_semicolons_is_read_as_written(value: list[object]) -> None:
    """The delimiter depends on the type."""
    assert read_array(write_array(value, ";"), str, ";") == value


@given(texts, maybe)
def test_hstore_of_any_pair_is_read_as_written(key: str, item: str | None) -> None:
    pair = write_hstore({key: item})
    assert read_hstore(pair) == {key: item}
    assert read_hstore(f'"x{pair[1:]}, {pair}') == {f"x{key}": item, key: item}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{}", []),
        ("{a,NULL,null}", ["a", None, None]),
        ('{"NULL",""}', ["NULL", ""]),
        (" { a b , c } ", ["a b", "c"]),
        ("[-1:0][5:5]={{1},{2}}", [["1"], ["2"]]),
        (r'{"a\"b\\c"}', ['a"b\\c']),
    ],
)
def test_array_with_bounds_nulls_and_quotes_is_read(text: str, value: list[object]) -> None:
    assert read_array(text, str) == value


@pytest.mark.parametrize("text", ["", "a", "{", "{a", "}", "{}}", "{}{}", 'x{"', "{},a", '{"a}'])
def test_text_that_is_no_array_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an array"):
        read_array(text, str)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("()", [None]),
        ("(,)", [None, None]),
        ('("",a,"b ""c"" \\\\ ,()")', ["", "a", 'b "c" \\ ,()']),
        ("(1,(2))", ["1", "(2)"]),
    ],
)
def test_row_with_nulls_and_quotes_is_read(text: str, value: list[object]) -> None:
    """A null is an empty field, and quotes and backslashes are doubled."""
    assert read_composite(text) == value


@pytest.mark.parametrize("text", ["", "1,2", "(", '("a"b)', '("a)'])
def test_text_that_is_no_row_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a row"):
        read_composite(text)


def test_row_is_written_with_all_fields_but_nulls_in_quotes() -> None:
    assert write_composite(["a", None, ""]) == '("a",,"")'


def test_text_that_is_no_hstore_is_refused() -> None:
    with pytest.raises(ValueError, match="not an hstore"):
        read_hstore("a")


@pytest.mark.parametrize("text", ['{"%s"}', "{%s}"])
def test_element_of_megabytes_is_skipped_at_once(text: str) -> None:
    """The search would otherwise hold the interpreter lock."""
    began = time.thread_time()
    assert read_array(text % ("y" * 8_000_000), len) == [8_000_000]
    assert time.thread_time() - began < 0.5
