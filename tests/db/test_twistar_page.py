"""
The page on twistar names tests that exist, for every defect.
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.db import test_stock

ROOT = Path(__file__).parents[2]


def test_every_defect_has_its_proof() -> None:
    """Each row has a number of its own and names tests that are there."""
    rows = re.findall(
        r"^\| (\d+) \|(.*)\|(.*)\|(.*)\|$", (ROOT / "docs/twistar.md").read_text(), re.M
    )
    assert [int(number) for number, *_ in rows] == list(range(1, 67))
    tests = "".join(path.read_text() for path in (ROOT / "tests/db").glob("test_*.py"))
    for number, _, stock, ours in rows:
        shown = re.findall(r"`(\w+)`", stock)
        for name in shown:
            assert test_stock.DEFECTS[int(number)].__name__ == name
        assert shown or stock.strip().startswith("–"), number
        for name in re.findall(r"`(test_\w+)`", ours):
            assert f"def {name}(" in tests, name
    assert test_stock.DEFECTS.keys() <= {int(number) for number, *_ in rows}
