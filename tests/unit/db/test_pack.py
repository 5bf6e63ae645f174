"""Rows of single values become the bytes that cbor2 makes of them."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.datatypes import UNPLAIN, FormName
from service.db.pack import ENCODERS, PART, row_packer
from service.errors import TooLarge

INTEGERS = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([255, 256, 257, 65535, 65536])
VALUES: dict[FormName, st.SearchStrategy[Any]] = {
    "boolean": st.booleans(),
    "float": st.floats(allow_nan=False, allow_infinity=False) | st.just("NaN"),
    "integer": INTEGERS
    | st.sampled_from([sign * 2**at + 1 for at in range(63) for sign in (1, -1)]),
}
TEXTS = st.text(max_size=9) | st.sampled_from(["é" * 127, "x" * 255, "x" * 256, "x" * 65536])
COLUMN = st.sampled_from(sorted(ENCODERS)).flatmap(
    lambda form: st.tuples(
        st.just(form), st.lists(VALUES.get(form, TEXTS) | st.none(), min_size=2, max_size=2)
    )
)
MOST = 2**20
ODD = ("a", "'", '"', "\\", "\n", "{v0}", "__import__('os')", "é", "]}", "%s", "ÿ" * 30)


@given(st.lists(COLUMN, min_size=1, max_size=4), st.integers(0, len(ODD)))
def test_rows_are_packed_as_cbor2_packs_them(columns: list[Any], first: int) -> None:
    """Values after the columns, such as sort keys, are left out."""
    names = (*ODD[first:], *ODD[:first])[: len(columns)]
    forms = tuple(form for form, _ in columns)
    rows = list(zip(*(values for _, values in columns), strict=False))
    behind = [(*row, "a sort key", None) for row in rows]
    lists, dicts = (row_packer(names, forms, lists, 2) for lists in (True, False))
    assert lists
    assert dicts
    assert lists(behind, MOST) == cbor2.dumps([list(row) for row in rows])
    assert dicts(behind, MOST) == cbor2.dumps([dict(zip(names, row, strict=True)) for row in rows])


def test_no_rows_and_many_columns_are_packed() -> None:
    packer = row_packer(tuple(f"c{at}" for at in range(64)), ("integer",) * 64, False)
    assert packer
    assert packer([], MOST) == cbor2.dumps([])
    row = dict(zip((f"c{at}" for at in range(64)), range(64), strict=True))
    assert packer([tuple(range(64))], MOST) == cbor2.dumps([row])


def test_rows_are_packed_in_parts_up_to_a_limit() -> None:
    packer = row_packer(("a",), ("text",), True)
    assert packer
    rows = [("x" * 98,)] * (2 * PART + 1)  # of 101 bytes each
    size = 101 * len(rows)
    assert packer(rows, size) == cbor2.dumps([[text] for (text,) in rows])
    with pytest.raises(TooLarge):
        packer(rows, size - 1)


@pytest.mark.parametrize("form", sorted({*UNPLAIN, "binary"}))
def test_values_of_other_forms_are_not_packed(form: FormName) -> None:
    assert row_packer(("a", "b"), ("text", form), False) is None


def test_columns_of_one_name_or_none_are_not_packed() -> None:
    assert row_packer((), (), False) is None
    assert row_packer(("a", "a"), ("text", "text"), False) is None
