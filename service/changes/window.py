"""
The first rows of an ordered query, kept by the changes to it.

More rows are kept than are shown, so that some can go before the others have to be asked for. What
comes after the last one kept is not known, unless these are all rows there are; so nothing that now
sorts behind the last row that stayed where it was can be told a place.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Window(Generic[Key]):
    """
    The first rows.

    Args:
        keys: In their order.
        complete: Whether there are no others.
    """

    keys: tuple[Key, ...]
    complete: bool

    @classmethod
    def of(cls, keys: Sequence[Key], most: int) -> Window[Key]:
        """Return the window of what a query with the limit `most` has found."""
        return cls(tuple(keys), len(keys) < most)

    def moved(
        self, touched: Collection[Key], order: Sequence[Key], shown: int, most: int
    ) -> Window[Key] | None:
        """
        Return the window after changes; None if the first rows have to be read again.

        Args:
            touched: The keys of all rows that may have come, gone or moved.
            order: Those of them that are rows now, and the rows of the window, in order.
            shown: How many rows have to be known.
            most: How many are kept.
        """
        if self.complete:
            return Window(tuple(order[:most]), len(order) <= most)
        stayed = next((key for key in reversed(self.keys) if key not in touched), None)
        if stayed not in order:
            return None
        known = tuple(order[: min(order.index(stayed) + 1, most)])
        return Window(known, False) if len(known) >= shown else None
