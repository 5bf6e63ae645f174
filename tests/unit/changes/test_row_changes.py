"""Rows of the log as live queries parse them."""

from __future__ import annotations

from service.changes.log import LogRow
from service.changes.touched import row_change


def test_document_nested_deep_leaves_its_row_to_be_read() -> None:
    """Otherwise a single row would make the cycles of all live queries fail."""
    deep = "[" * 5000 + "]" * 5000
    image = f'{{"id": 7, "extra": {deep}}}'
    change = row_change(LogRow(1, "10", "2026-11-29T12:30:00Z", 1, "I", None, image))
    assert change.old is None
    assert change.new is not None
    assert change.new["id"] == 7
