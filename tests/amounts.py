"""
How many examples the random tests draw: few, or many with THOROUGH=1.

`make test` runs every test with few examples. CI, `make check` and `make test THOROUGH=1` run the
same tests with many.
"""

from __future__ import annotations

import os
from typing import TypeVar

Number = TypeVar("Number", int, float)

THOROUGH = os.environ.get("THOROUGH", "") not in {"", "0"}


def amount(few: Number, many: Number) -> Number:
    """Return `many` in a thorough run, otherwise `few`: examples, steps, or seconds of a random test."""
    return many if THOROUGH else few
