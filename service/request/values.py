"""
The values of one call, kept apart from its shape.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class Values:
    """A growing list; requests refer to its slots."""

    def __init__(self, values: Iterable[Any] = ()) -> None:
        self._values: list[Any] = list(values)

    def add(self, value: Any) -> int:
        """Keep a value; gives its slot."""
        self._values.append(value)
        return len(self._values) - 1

    def __len__(self) -> int:
        return len(self._values)

    def freeze(self) -> tuple[Any, ...]:
        """Give all values so far."""
        return tuple(self._values)
