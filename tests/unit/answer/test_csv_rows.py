"""
CSV is taken apart as PostgreSQL would, wherever it was cut.
"""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.answer.csv_rows import CsvRows, header_of, records
from service.errors import InvalidArgument

FIELDS = st.lists(
    st.lists(st.text(st.sampled_from('a",é\n\r '), max_size=5), min_size=2, max_size=3), max_size=5
)


def test_records() -> None:
    """Quotes, ends of lines, nulls."""
    text = 'a,"b ""c"" , d"\r\n,""\n"x\ny",z'
    assert list(records(text)) == [["a", 'b "c" , d'], [None, ""], ["x\ny", "z"]]
    assert list(records("a,\n,\n")) == [["a", None], [None, None]]
    assert list(records("a,")) == [["a", None]]
    assert list(records("")) == []
    with pytest.raises(InvalidArgument):
        list(records('a"b,c\n'))


def test_header() -> None:
    """The first record; it must be whole."""
    assert header_of('id,"a,b"\n1,2\n') == ["id", "a,b"]
    with pytest.raises(InvalidArgument):
        header_of("id,a")


@given(FIELDS, st.integers(1, 7))
def test_cut_anywhere(rows: list[list[str]], size: int) -> None:
    """What the standard library writes is read back, whatever the pieces."""
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)
    text, cut = out.getvalue(), CsvRows()
    found = [each for at in range(0, len(text), size) for each in cut.take(text[at : at + size])]
    assert found + cut.end() == rows
