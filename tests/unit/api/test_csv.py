"""CSV is parsed as PostgreSQL would parse it, wherever it is split into parts."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.import_ import (
    MAX_RECORD,
    Record,
    csv_records,
    end_of_records,
    header_of,
    split_csv,
)
from service.errors import InvalidArgument

FIELDS = st.lists(
    st.lists(st.text(st.sampled_from('a",é\n\r '), max_size=5), min_size=2, max_size=3), max_size=5
)


def test_records_with_quotes_and_nulls_are_read() -> None:
    text = 'a,"b ""c"" , d"\r\n,""\n"x\ny",z'
    assert list(csv_records(text)) == [["a", 'b "c" , d'], [None, ""], ["x\ny", "z"]]
    assert list(csv_records("a,\n,\n")) == [["a", None], [None, None]]
    assert list(csv_records("a,")) == [["a", None]]
    assert list(csv_records("")) == []
    with pytest.raises(InvalidArgument):
        list(csv_records('a"b,c\n'))


def test_header_of_csv_is_its_first_record() -> None:
    assert header_of('id,"a,b"\n1,2\n') == ["id", "a,b"]


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("", 0),
        ("a,b", 0),
        ("a\nb", 2),
        ("a\r\nb", 3),
        ("a\rb", 2),
        ("a\r", 0),
        ('"a\n', 0),
        ('"a\nb"\nc', 6),
        ('a\n"b\nc', 2),
        ('a\n"b""\nc', 2),
        ('a,""\n"', 5),
    ],
)
def test_record_inside_quotes_does_not_end_with_its_line(text: str, end: int) -> None:
    """A record does not end inside quotes, nor between CR and LF."""
    assert end_of_records(text) == end


def test_record_with_an_unclosed_quote_is_refused_at_a_length() -> None:
    """The text is scanned only once."""
    for text in ('a\n"' + "\n" * 4_000_000, '"' * 4_000_000 + '"', "x" * (MAX_RECORD + 1)):
        with pytest.raises(InvalidArgument, match="longer"):
            end_of_records(text)
    assert end_of_records('a\n"' + "\n" * (MAX_RECORD - 1)) == 2


@given(FIELDS, st.integers(1, 7))
def test_csv_cut_anywhere_is_read_as_it_was_written(rows: list[list[str]], size: int) -> None:
    """CSV of Python's csv module is read back, whatever the parts."""
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)
    text, rest = out.getvalue(), ""
    found: list[Record] = []
    for at in range(0, len(text), size):
        taken, rest = split_csv(rest + text[at : at + size], last=False)
        found += taken
    assert found + split_csv(rest, last=True)[0] == rows
