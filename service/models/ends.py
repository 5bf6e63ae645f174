"""
The two ends of a relationship.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Ends:
    """
    How two models hang together, worked out once when the class is made.

    Args:
        name: The attribute.
        other: The other model's registered name; None if each row says it.
        here: The column that holds this model's key.
        there: The column that holds the other model's key.
        options: As the class declared them.
    """

    name: str
    other: str | None
    here: str
    there: str
    options: Mapping[str, Any] = field(default_factory=dict)
