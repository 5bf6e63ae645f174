"""
The two ends of a relationship.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Ends:
    """
    How two models hang together, worked out once when the class is made.

    Args:
        name: The attribute.
        other: The other model's registered name, or what gives the class when it is asked;
            None if each row says it.
        here: The columns that hold this model's key.
        there: The columns that hold the other model's key.
        key: The columns that are referred to, where they are not the primary key.
        options: As the class declared them.
    """

    name: str
    other: str | Callable[[], Any] | None
    here: tuple[str, ...]
    there: tuple[str, ...]
    key: tuple[str, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
