"""Rows become dicts, whatever their number and the names of their columns."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.catalog import Catalog
from service.db.codec import Codec
from service.db.statements import COMPILED, FEW, Shape, shaped
from service.sql.statement import Statement

ODD = ("a", "", "'", '"', "\\", "\n", "{row}", "__import__('os')", "é", "\ud800", "]}", "%s")


def dicts(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[Any]:
    """Return rows in the usual form."""
    statement = Statement("", (), "", columns)
    return shaped(rows, statement, Codec(Catalog(1, ("public",), {}, {})), Shape("dicts", 2**20))


@given(st.lists(st.text() | st.sampled_from(ODD), unique=True, max_size=20).map(tuple))
def test_rows_are_dicts_whatever_their_columns_are_called(columns: tuple[str, ...]) -> None:
    """Columns behind the result's, such as sort keys, are left out."""
    row = (*range(len(columns)), "sort key")
    for many in (1, FEW):
        expected = {name: at for at, name in enumerate(columns)}
        assert dicts(columns, [row] * many) == [expected] * many


@pytest.mark.parametrize("many", [1, FEW, 3 * FEW])
@pytest.mark.parametrize("width", [1, COMPILED, COMPILED + 1, 1600])
def test_rows_are_dicts_of_any_width(many: int, width: int) -> None:
    columns = tuple(f"c{at}" for at in range(width))
    row = tuple(range(width))
    assert dicts(columns, [row] * many) == [dict(zip(columns, row, strict=True))] * many
