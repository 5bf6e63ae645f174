"""
Answers as one JSON text, around the rows that PostgreSQL wrote.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any


def listed(rows: Iterable[str]) -> str:
    """Return the JSON of a list of rows."""
    return f"[{','.join(rows)}]"


def paged(rows: Iterable[str], **others: Any) -> str:
    """Return the JSON of an object of rows, and of what stands beside them."""
    beside = "".join(f",{json.dumps(name)}:{json.dumps(value)}" for name, value in others.items())
    return f'{{"rows":{listed(rows)}{beside}}}'
