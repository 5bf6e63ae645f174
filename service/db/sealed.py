"""
Rows in JSON of which nobody said what they are: those in a `record`.

PostgreSQL names all fields of a composite there, in their order. So a row with hidden fields is
known by the names that it has, and is answered without these fields, like anywhere else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from service.catalog import Catalog


def seal_of(names: Iterable[str]) -> int:
    """Give what stands for the names of all fields of a type, and does not tell them."""
    return hash(tuple(names))


class Seals:
    """
    The composite types with hidden fields.

    Args:
        catalog: That has them.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._shown = catalog.seals

    def bare(self, value: Any) -> Any:
        """Give a value of JSON without the hidden fields of the rows in it."""
        if not self._shown:
            return value
        if isinstance(value, list):
            return [self.bare(each) for each in value]
        if not isinstance(value, dict):
            return value
        shown = self._shown.get(seal_of(value)) or (True,) * len(value)
        return {
            name: self.bare(each)
            for (name, each), seen in zip(value.items(), shown, strict=True)
            if seen
        }
