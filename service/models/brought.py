"""
What was brought of a relationship for rows that were found together, and what is on its way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from service.models.way import Key

SIZE = 500
"""Rows that know each other at most: for so many one statement brings what is related."""

LITTLE = 8
"""One row in so many has to ask, or fewer are thought of the next time."""

Place = tuple[Any, Key]
"""A model, and what rows are related to objects of it by."""


class Load:
    """
    A statement on its way, and those who wait for it: it stops when nobody does any more.

    Args:
        loads: Where it is to be found by what it brings; it takes out what it does not.
        places: What it brings.
    """

    def __init__(self, loads: dict[Place, Load], places: Sequence[Place]) -> None:
        self.found: dict[Place, list[Any]] = {}
        self._loads = loads
        self._places = places
        self._waiting: list[Deferred[None]] | None = []
        self._failure: Failure | None = None
        loads.update(dict.fromkeys(places, self))

    def begin(self, work: Deferred[dict[int, list[Any]]]) -> None:
        """Take what `related_txn` gives for the places."""
        self._work = work.addCallback(self._brought).addBoth(self._over)

    def done(self) -> Deferred[None]:
        """Wait until it is there; fails as the statement has failed."""
        waiting: Deferred[None] = Deferred(self._left)
        if self._waiting is None:
            waiting.callback(self._failure)
        else:
            self._waiting.append(waiting)
        return waiting

    def _brought(self, found: dict[int, list[Any]]) -> None:
        self.found = {self._places[at]: objects for at, objects in found.items()}

    def _over(self, outcome: Failure | None) -> None:
        self._forget()
        self._loads = {}  # which would hold us, and we it
        self._failure = outcome
        waiting, self._waiting = self._waiting or [], None
        for each in waiting:
            if not each.called:  # one that was told before may have cancelled another
                each.callback(self._failure)

    def _forget(self) -> None:
        for place in self._places:
            if place not in self.found and self._loads.get(place) is self:
                del self._loads[place]

    def _left(self, waiting: Deferred[None]) -> None:
        if self._waiting is None:  # it is over, and they are being told
            return
        self._waiting.remove(waiting)
        if not self._waiting:
            self._forget()
            self._work.cancel()


class Brought:
    """
    What was brought of a relationship at one moment, and what is on its way.

    Args:
        moment: Of the database, for the one who asks.
        before: What was brought at another moment.

    Attributes:
        asked: How often it was asked for.
    """

    def __init__(self, moment: tuple[Any, ...], before: Brought | None) -> None:
        self.moment = moment
        self.loads: dict[Place, Load] = {}
        self.asked = 0
        self._least = SIZE if before is None else before.least

    @property
    def least(self) -> int:
        """
        For how many rows a statement is to bring it the next time.

        Where each row's answer is followed by a write, what others need is brought in vain.
        """
        return self._least if LITTLE * self.asked >= self._least else self._least // LITTLE

    @property
    def size(self) -> int:
        """For how many rows a statement brings it: more and more while nothing is written."""
        return min(SIZE, max(self._least, 2 * self.asked))
