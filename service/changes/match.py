"""
Which queries a changed row can concern, by their filters: an index of terms.

A query whose filter asks for one of some values of a column, or for values between two, is found by the
row's value: by hash, or in a sorted list. A query may be found that the row does not concern, never the
other way around.
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
How often a query may stand in the index, for each combination of the values that it asks for.

It takes some 150 bytes each time. A longer list is looked into for each change instead.
"""

Watch = TypeVar("Watch", bound=Hashable)


class Index(Generic[Watch]):
    """
    Queries by the terms of their filters; each operation takes O(log n) for what it finds.

    It keeps little of a query, so that there can be many: who removes one says its terms again.
    """

    def __init__(self) -> None:
        self._relations: dict[int, _Relation[Watch]] = {}

    def add(self, watch: Watch, relation: int, terms: Sequence[Term]) -> None:
        """
        Add a query.

        Args:
            watch: The query; it is in no other place.
            relation: Whose changes are asked about.
            terms: That all hold of a row that concerns it.
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
        if group is not None:  # without a value to ask for, it stands nowhere
            for key in chosen.combinations():
                group.remove(key, chosen.between, watch)
            if not group.buckets:
                del known.groups[chosen.shape]
        if not known.queries:
            del self._relations[relation]

    def __len__(self) -> int:
        """Return how many queries there are."""
        return sum(each.queries for each in self._relations.values())

    def matching(
        self, relation: int, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None
    ) -> set[Watch]:
        """
        Return the queries that a change of a row can concern.

        Args:
            relation: Whose row it is.
            old: The row before, as the log has it; None if there was none.
            new: The row after, likewise.
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
        """Return whether two images of a row are the same to all queries."""
        for column, uses in self.columns.items():
            if uses and old.get(column, UNKNOWN) != new.get(column, UNKNOWN):
                return False
        return True


@dataclass(frozen=True, slots=True)
class _Shape:
    """The columns that queries are found by: of which values are asked for, and that of a range."""

    columns: tuple[tuple[str, ValueForm], ...]
    between: tuple[str, ValueForm] | None


@dataclass(frozen=True, slots=True)
class _Chosen:
    """
    Terms, as a query is found by them: by those for the fewest values, and a range.

    Args:
        columns: Of which values are asked for.
        between: The range.
        rest: What else has to hold.
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
        """Yield each combination of the values that are asked for."""
        return product(*(each.values for each in self.columns))


@dataclass(frozen=True, slots=True, eq=False)
class _Entry(Generic[Watch]):
    """A query, and what else has to hold of a row."""

    watch: Watch
    rest: tuple[Term, ...]

    def holds(self, image: Mapping[str, Any]) -> bool:
        return all(term.holds(_value(image, term.column, term.form)) for term in self.rest)


class _Group(Generic[Watch]):
    """The queries of one shape."""

    __slots__ = ("buckets",)

    def __init__(self) -> None:
        # A bucket with a single query is that query's entry: a dict takes 230 bytes, and of most
        # filters there is one query for each value.
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
        """Add the queries that a row concerns."""
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
    """Queries that ask for the same values."""

    __slots__ = ("entries",)

    def __init__(self, entries: dict[Watch, _Entry[Watch]]) -> None:
        self.entries = entries

    def at(self, _: Any) -> Iterable[_Entry[Watch]]:
        return self.entries.values()


class _Ranges(Generic[Watch]):
    """
    Queries for values between two.

    Those with one end stand in the order of it. Those with two stand by the power of two that the
    distance of the ends comes to, in the order of the lower one: of those that begin before a value,
    and no farther from it than the longest of them, half hold it or more, if they are spread evenly.
    """

    __slots__ = ("_lists", "_longest", "entries")

    def __init__(self) -> None:
        self.entries: dict[Watch, tuple[Any, int, Between, _Entry[Watch]]] = {}
        self._lists: dict[Hashable, SortedList] = {}
        self._longest: dict[Hashable, Any] = {}

    def add(self, between: Between, entry: _Entry[Watch]) -> None:
        kind, end = _placed(between)
        # No two compare further than to the second.
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
        """Yield the queries that ask for a value."""
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
    """Return in which list a range stands, and by what; None in no list, as it holds nothing."""
    if between.low is None:
        return "high", between.high
    if between.high is None:
        return "low", between.low
    if between.high < between.low:
        return None, None
    length = float(between.high - between.low)
    return (math.frexp(length)[1], between.low) if math.isfinite(length) else ("low", between.low)


def _value(image: Mapping[str, Any], column: str, form: ValueForm) -> Any:
    """Return what stands for a value of a row; one of before a column was added is not known."""
    value = image.get(column, UNKNOWN)
    return UNKNOWN if value is UNKNOWN else form.of(value)
