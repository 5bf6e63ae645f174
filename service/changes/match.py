"""
An index of queries by their filters: which queries can a changed row concern?

A query whose filter restricts a column to some values, or to a range, is found by the row's value: in a hash
table, or in a sorted list. The index may return a query that the row does not concern, but never misses one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Generic, TypeVar

from sortedcontainers import SortedList

from service.changes.terms import UNKNOWN, Between, OneOf, Term, ValueForm

MOST_COPIES = 256
"""
Maximum number of index entries of one query, one for each combination of the values of its terms.

An entry takes about 150 bytes. The values of a longer list are compared with each change instead.
"""

Watch = TypeVar("Watch", bound=Hashable)


class Index(Generic[Watch]):
    """
    Queries by the terms of their filters; each operation takes O(log n), plus the number of results.

    To save memory the index does not keep a query's terms: they have to be given again to remove it.
    """

    def __init__(self) -> None:
        self._relations: dict[int, _Relation[Watch]] = {}

    def add(self, watch: Watch, relation: int, terms: Sequence[Term]) -> None:
        """
        Add a query.

        Args:
            watch: The query; it must not be in the index yet.
            relation: Number of the relation whose changes concern it.
            terms: Terms that all hold for a row that concerns it.
        """
        known = self._relations.get(relation)
        if known is None:
            known = self._relations[relation] = _Relation()
        known.columns.update(term.column for term in terms)
        known.queries += 1
        chosen = _Chosen.of(terms)
        group = known.groups.get(chosen.shape)
        if group is None:
            group = known.groups[chosen.shape] = _Group()
        entry = _Entry(watch, chosen.rest)
        for key in chosen.combinations():
            group.add(key, chosen.between, entry)

    def remove(self, watch: Watch, relation: int, terms: Sequence[Term]) -> None:
        """Remove a query that was added with the same relation and terms."""
        known = self._relations[relation]
        known.columns.subtract(term.column for term in terms)
        known.queries -= 1
        chosen = _Chosen.of(terms)
        group = known.groups.get(chosen.shape)
        if group is not None:  # a term without values has no combination, and so no entry
            for key in chosen.combinations():
                group.remove(key, chosen.between, watch)
            if not group.buckets:
                del known.groups[chosen.shape]
        if not known.queries:
            del self._relations[relation]

    def __len__(self) -> int:
        """Return the number of queries."""
        return sum(each.queries for each in self._relations.values())

    def matching(
        self, relation: int, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None
    ) -> set[Watch]:
        """
        Return the queries that a change of a row can concern.

        Args:
            relation: Number of the row's relation.
            old: Old image of the row from the log; None if there was no row before.
            new: New image of the row, likewise.
        """
        found: set[Watch] = set()
        known = self._relations.get(relation)
        if known is None:
            return found
        images = [image for image in (old, new) if image is not None]
        if old is not None and new is not None and known.is_same(old, new):
            images.pop()
        for image in images:
            for shape, group in known.groups.items():
                group.collect(shape, image, found)
        return found


class _Relation(Generic[Watch]):
    """The queries of one relation."""

    def __init__(self) -> None:
        self.groups: dict[_Shape, _Group[Watch]] = {}
        self.columns: Counter[str] = Counter()
        self.queries = 0

    def is_same(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
        """Return whether two images of a row have equal values in all columns that filters use."""
        for column, uses in self.columns.items():
            if uses and old.get(column, UNKNOWN) != new.get(column, UNKNOWN):
                return False
        return True


@dataclass(frozen=True, slots=True)
class _Shape:
    """The columns that a group of queries is indexed by: those with values, and the one with a range."""

    columns: tuple[tuple[str, ValueForm], ...]
    between: tuple[str, ValueForm] | None


@dataclass(frozen=True, slots=True)
class _Chosen:
    """
    The terms of a query, split into those that it is indexed by and the rest.

    Args:
        columns: Terms with values to index by: those with the fewest values, as far as they fit.
        between: Term with a range to index by.
        rest: Terms that are checked for each row that is found.
    """

    columns: Sequence[OneOf]
    between: Between | None
    rest: tuple[Term, ...]

    @classmethod
    def of(cls, terms: Sequence[Term]) -> _Chosen:
        found: list[OneOf] = []
        copies = 1
        values = [term for term in terms if isinstance(term, OneOf)]
        for term in sorted(values, key=lambda term: (len(term.values), term.column)):
            if copies * len(term.values) <= MOST_COPIES:
                found.append(term)
                copies *= len(term.values)
        found.sort(key=lambda term: term.column)
        ranges = [term for term in terms if isinstance(term, Between)]
        between = min(ranges, key=lambda term: term.column, default=None)
        rest = tuple(term for term in terms if term is not between and term not in found)
        return cls(found, between, rest)

    @property
    def shape(self) -> _Shape:
        return _Shape(
            tuple((each.column, each.form) for each in self.columns),
            None if self.between is None else (self.between.column, self.between.form),
        )

    def combinations(self) -> Iterator[tuple[Any, ...]]:
        """Yield each combination of the indexed values."""
        return product(*(each.values for each in self.columns))


@dataclass(frozen=True, slots=True, eq=False)
class _Entry(Generic[Watch]):
    """A query, and the terms that have to be checked for each row."""

    watch: Watch
    rest: tuple[Term, ...]

    def holds(self, image: Mapping[str, Any]) -> bool:
        return all(term.holds(_value(image, term.column, term.form)) for term in self.rest)


class _Group(Generic[Watch]):
    """The queries that are indexed by the same columns."""

    __slots__ = ("buckets",)

    def __init__(self) -> None:
        # A bucket with a single query is the query's entry itself: a dict takes 230 bytes, and most
        # filters have one query for each value.
        self.buckets: dict[tuple[Any, ...], _Entry[Watch] | _Bucket[Watch] | _Ranges[Watch]] = {}

    def add(self, key: tuple[Any, ...], between: Between | None, entry: _Entry[Watch]) -> None:
        bucket = self.buckets.get(key)
        if between is not None:
            if bucket is None:
                bucket = self.buckets[key] = _Ranges()
            assert isinstance(bucket, _Ranges)
            bucket.add(between, entry)
        elif bucket is None:
            self.buckets[key] = entry
        elif isinstance(bucket, _Entry):
            self.buckets[key] = _Bucket({bucket.watch: bucket, entry.watch: entry})
        else:
            assert isinstance(bucket, _Bucket)
            bucket.entries[entry.watch] = entry

    def remove(self, key: tuple[Any, ...], between: Between | None, watch: Watch) -> None:
        bucket = self.buckets[key]
        if isinstance(bucket, _Ranges):
            assert between is not None
            bucket.remove(between, watch)
        elif isinstance(bucket, _Bucket):
            del bucket.entries[watch]
        if isinstance(bucket, _Entry) or not bucket.entries:
            del self.buckets[key]

    def collect(self, shape: _Shape, image: Mapping[str, Any], found: set[Watch]) -> None:
        """Add the queries that a row may concern to `found`."""
        key = tuple([_value(image, name, form) for name, form in shape.columns])
        if UNKNOWN in key:
            buckets = [
                bucket
                for other, bucket in self.buckets.items()
                if all(a is UNKNOWN or a == b for a, b in zip(key, other, strict=True))
            ]
        else:
            bucket = self.buckets.get(key)
            if bucket is None:
                return
            buckets = [bucket]
        value = None if shape.between is None else _value(image, *shape.between)
        for bucket in buckets:
            for entry in (bucket,) if isinstance(bucket, _Entry) else bucket.at(value):
                if not entry.rest or entry.holds(image):
                    found.add(entry.watch)


class _Bucket(Generic[Watch]):
    """Queries with the same indexed values, without a range."""

    __slots__ = ("entries",)

    def __init__(self, entries: dict[Watch, _Entry[Watch]]) -> None:
        self.entries = entries

    def at(self, _: Any) -> Iterable[_Entry[Watch]]:
        return self.entries.values()


class _Ranges(Generic[Watch]):
    """
    Queries with the same indexed values, and a range.

    Ranges with one bound are sorted by it. Ranges with two are kept in one list per power of two of their
    length, sorted by the lower bound. A lookup reads those whose lower bound is at most the longest length
    of the list below the value; of evenly spread ranges at least half of these contain it.
    """

    __slots__ = ("_lists", "_longest", "entries")

    def __init__(self) -> None:
        self.entries: dict[Watch, tuple[Any, int, Between, _Entry[Watch]]] = {}
        self._lists: dict[Hashable, SortedList] = {}
        self._longest: dict[Hashable, Any] = {}

    def add(self, between: Between, entry: _Entry[Watch]) -> None:
        kind, end = _placed(between)
        # id(entry) makes the tuples distinct, so sorting never compares the ranges or entries.
        place = self.entries[entry.watch] = end, id(entry), between, entry
        if kind is None:
            return
        self._lists.setdefault(kind, SortedList()).add(place)
        if isinstance(kind, int):
            self._longest[kind] = max(self._longest.get(kind, 0), between.high - between.low)

    def remove(self, between: Between, watch: Watch) -> None:
        place = self.entries.pop(watch)
        kind, _ = _placed(between)
        if kind is None:
            return
        self._lists[kind].remove(place)
        if not self._lists[kind]:
            del self._lists[kind]
            self._longest.pop(kind, None)

    def at(self, value: Any) -> Iterator[_Entry[Watch]]:
        """Yield the queries whose range contains a value."""
        if value is None:
            return
        if value is UNKNOWN:
            yield from (entry for *_, entry in self.entries.values())
            return
        for kind, ends in self._lists.items():
            if kind == "high":
                near = ends.irange(minimum=(value, -1))
            elif kind == "low":
                near = ends.irange(maximum=(value, math.inf))
            else:
                near = ends.irange((value - self._longest[kind], -1), (value, math.inf))
            for _, _, between, entry in near:
                if between.holds(value):
                    yield entry


def _placed(between: Between) -> tuple[Hashable, Any]:
    """Return the list for a range and its sort key; None in place of the list if the range is empty."""
    if between.low is None:
        return "high", between.high
    if between.high is None:
        return "low", between.low
    if between.high < between.low:
        return None, None
    length = float(between.high - between.low)
    return (math.frexp(length)[1], between.low) if math.isfinite(length) else ("low", between.low)


def _value(image: Mapping[str, Any], column: str, form: ValueForm) -> Any:
    """Return a row's value in comparable form; unknown if the image is older than the column."""
    value = image.get(column, UNKNOWN)
    return UNKNOWN if value is UNKNOWN else form.of(value)
