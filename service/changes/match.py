"""
An index of queries by their filters: which queries can a changed row concern?

Of a filter the index uses its terms: conditions on single columns that Python can check against the images
of a change. A term restricts a column to some values, or to a range. Values compare as in PostgreSQL, for
the types of `FORMS`. Conditions with other operators and types are left out, and so are most with OR. So the
terms are necessary, not sufficient: if a row violates one, the filter does not match it.

A query is found by the row's value of such a column: in a hash table, or in a sorted list. The index may
return a query that the row does not concern, but never misses one.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import product
from typing import Any, Generic, TypeVar
from uuid import UUID

from sortedcontainers import SortedList

from service.catalog import Catalog
from service.db.codec import Codec
from service.errors import InvalidArgument
from service.plan.plans import (
    PG_CATALOG,
    BoolExpr,
    Bound,
    Compare,
    Condition,
    Expression,
    IsTest,
)
from service.plan.watch_plan import ROOT

UNKNOWN: Any = object()
"""Stands for a value that this module cannot read, such as a date BC."""


def _integer(text: str) -> Any:
    return int(text) if re.fullmatch(r"-?[0-9]{1,20}", text) else UNKNOWN


def _numeric(text: str) -> Any:
    return Decimal(text) if re.fullmatch(r"-?[0-9]{1,1000}(\.[0-9]{1,1000})?", text) else UNKNOWN


def _float(text: str) -> Any:
    found = re.fullmatch(r"-?[0-9.]{1,400}(e[+-]?[0-9]{1,3})?", text)
    return float(text) if found and text.count(".") < 2 else UNKNOWN


def _boolean(text: str) -> Any:
    return {"true": True, "false": False}.get(text, UNKNOWN)


def _uuid(text: str) -> Any:
    try:
        return UUID(text).int
    except ValueError:
        return UNKNOWN


def _date(text: str) -> Any:
    found = re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text)
    try:
        return date.fromisoformat(text).toordinal() if found else UNKNOWN
    except ValueError:
        return UNKNOWN


def _timestamp(text: str, zone: str = "") -> Any:
    """Return the microseconds since the start of the year 1, or UNKNOWN."""
    # Images have a T (row_to_json); callers may also give a space, as in PostgreSQL's own text.
    if not re.fullmatch(
        rf"\d{{4}}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d{{1,6}})?{zone}", text, re.ASCII
    ):
        return UNKNOWN
    try:
        found = datetime.fromisoformat(text)
        passed = found.astimezone(UTC).replace(tzinfo=None) if zone else found
    except (ValueError, OverflowError):
        return UNKNOWN
    since = passed - datetime.min
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _timestamptz(text: str) -> Any:
    return _timestamp(text, r"(Z|[+-]\d\d:\d\d)")


@dataclass(frozen=True, slots=True)
class ValueForm:
    """
    The comparable form of the values of a type.

    Args:
        name: Name of the type.
        read: Converts a value's text to the comparable form: equal if and only if PostgreSQL's are.
        sorted: Whether the comparable forms also have PostgreSQL's order.
    """

    name: str
    read: Callable[[str], Any]
    sorted: bool = True

    def of(self, value: Any) -> Any:
        """Return the comparable form of a value from an image of the log."""
        kind = type(value)
        if value is None or kind is str:
            return None if value is None else self.read(value)
        if kind is int and self.read is _integer:
            return value
        if kind is bool:
            return value if self.read is _boolean else UNKNOWN
        return self.read(str(value).lower()) if kind in (int, Decimal) else UNKNOWN


FORMS: Mapping[str, ValueForm] = {
    form.name: form
    for form in (
        ValueForm("bool", _boolean),
        *(ValueForm(name, _integer) for name in ("int2", "int4", "int8")),
        ValueForm("numeric", _numeric),
        ValueForm("float8", _float),
        ValueForm("uuid", _uuid),  # as a number, because `_Ranges` needs the length of a range
        ValueForm("date", _date),
        ValueForm("timestamp", _timestamp),
        ValueForm("timestamptz", _timestamptz),
        # Their order depends on the collation.
        *(ValueForm(name, str, sorted=False) for name in ("text", "varchar")),
    )
}
ENUM = ValueForm("enum", str, sorted=False)


@dataclass(frozen=True, slots=True)
class OneOf:
    """The column has one of some values, in the comparable form; None among them stands for null."""

    column: str
    form: ValueForm
    values: frozenset[Any]

    def holds(self, value: Any) -> bool:
        """Return whether a value in the comparable form may be one of them."""
        return value is UNKNOWN or value in self.values


@dataclass(frozen=True, slots=True)
class Between:
    """
    The column has a value in a range.

    Args:
        column: Name of the column.
        form: Comparable form of its values.
        low, high: Bounds; None if there is none.
        low_in, high_in: Whether the bounds are part of the range.
    """

    column: str
    form: ValueForm
    low: Any = None
    high: Any = None
    low_in: bool = True
    high_in: bool = True

    def holds(self, value: Any) -> bool:
        """Return whether a value in the comparable form may be in the range."""
        if value is UNKNOWN:
            return True
        if value is None:
            return False
        if self.low is not None and (value < self.low or (value == self.low and not self.low_in)):
            return False
        return self.high is None or value < self.high or (value == self.high and self.high_in)


Term = OneOf | Between


def terms_of(
    catalog: Catalog, codec: Codec, where: Condition | None, values: Sequence[Any]
) -> list[Term]:
    """
    Return terms that all hold for each row that matches a filter.

    Args:
        catalog: Catalog with the types.
        codec: Encodes parameter values as PostgreSQL's text.
        where: The planned filter.
        values: Parameter values of the call.
    """
    found: dict[tuple[str, type], Term] = {}
    for term in _terms(catalog, codec, where, values):
        key = (term.column, type(term))
        found[key] = _both(found[key], term) if key in found else term
    return list(found.values())


def _terms(
    catalog: Catalog, codec: Codec, where: Condition | None, values: Sequence[Any]
) -> Iterator[Term]:
    if isinstance(where, BoolExpr) and not where.any:
        for each in where.conditions:
            yield from _terms(catalog, codec, each, values)
    elif isinstance(where, BoolExpr):
        ways = [list(_terms(catalog, codec, each, values)) for each in where.conditions]
        either = [way[0] for way in ways if len(way) == 1 and isinstance(way[0], OneOf)]
        if len(either) == len(ways) and len({term.column for term in either}) == 1:
            among = frozenset[Any]().union(*(term.values for term in either))
            yield replace(either[0], values=among)
    elif isinstance(where, IsTest):
        form = _form(catalog, where.left)
        word = {"NULL": None, "TRUE": True, "FALSE": False}.get(where.word, UNKNOWN)
        if form is not None and word is not UNKNOWN:
            yield OneOf(where.left.column.name, form, frozenset([word]))
    elif isinstance(where, Compare) and (term := _comparison(catalog, codec, where, values)):
        yield term


def _comparison(
    catalog: Catalog, codec: Codec, test: Compare, values: Sequence[Any]
) -> Term | None:
    form = _form(catalog, test.left)
    name, many = test.operator.name, test.quantifier == "any"
    if form is None or test.operator.schema != PG_CATALOG or test.not_distinct:
        return None
    if test.quantifier == "all" or test.candidate is not None or (many and name != "="):
        return None
    right = test.right
    if not isinstance(right, Bound):  # another column
        return None
    given = values[right.slot]
    type = catalog.type(right.type.element) if many else right.type
    if catalog.plain(type) is not test.left.type:
        return None
    if many and not isinstance(given, list | tuple):  # an array given as PostgreSQL's text
        return None
    read = [_operand(codec, form, type, each) for each in (given if many else [given])]
    if UNKNOWN in read:
        return None
    column = test.left.column.name
    if name == "=" or None in read:  # a comparison with null matches no row: a term without values
        return OneOf(column, form, frozenset(read) - {None})
    if not form.sorted:
        return None
    inside = name.endswith("=")
    if name in ("<", "<="):
        return Between(column, form, high=read[0], high_in=inside)
    return Between(column, form, low=read[0], low_in=inside) if name in (">", ">=") else None


def _operand(codec: Codec, form: ValueForm, type: Any, value: Any) -> Any:
    try:
        text = codec.encode(type, value, "")
    except InvalidArgument:
        return UNKNOWN
    return None if text is None else form.read(text)


def _form(catalog: Catalog, value: Expression) -> ValueForm | None:
    """Return the comparable form of a plain column of the root relation; None for any other expression."""
    if value.source != ROOT or value.links or value.steps or value.applied or value.function:
        return None
    if value.row or value.column.loose or not value.column.logged:
        return None
    type = catalog.plain(value.type)
    if type.kind == "enum":
        return ENUM
    return FORMS.get(type.name) if type.schema == PG_CATALOG and type.kind == "base" else None


def _both(one: Term, other: Term) -> Term:
    """Return the conjunction of two terms of one column."""
    if isinstance(one, OneOf) and isinstance(other, OneOf):
        return replace(one, values=one.values & other.values)
    assert isinstance(one, Between)
    assert isinstance(other, Between)
    low, low_in, high, high_in = one.low, one.low_in, one.high, one.high_in
    if other.low is not None:
        if low is None or other.low > low:
            low, low_in = other.low, other.low_in
        elif other.low == low:
            low_in = low_in and other.low_in
    if other.high is not None:
        if high is None or other.high < high:
            high, high_in = other.high, other.high_in
        elif other.high == high:
            high_in = high_in and other.high_in
    return Between(one.column, one.form, low, high, low_in, high_in)


MOST_COPIES = 256
"""
Maximum number of index entries of one query, one for each combination of the values of its terms.

An entry takes about 150 bytes. The values of a longer list are compared with each change instead.
"""

Query = TypeVar("Query", bound=Hashable)


class Index(Generic[Query]):
    """
    Queries by the terms of their filters; each operation takes O(log n), plus the number of results.

    To save memory the index does not keep a query's terms: they have to be given again to remove it.
    """

    def __init__(self) -> None:
        self._relations: dict[int, _Relation[Query]] = {}

    def add(self, query: Query, relation: int, terms: Sequence[Term]) -> None:
        """
        Add a query.

        Args:
            query: The query; it must not be in the index yet.
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
        entry = _Entry(query, chosen.rest)
        for key in chosen.combinations():
            group.add(key, chosen.between, entry)

    def remove(self, query: Query, relation: int, terms: Sequence[Term]) -> None:
        """Remove a query that was added with the same relation and terms."""
        known = self._relations[relation]
        known.columns.subtract(term.column for term in terms)
        known.queries -= 1
        chosen = _Chosen.of(terms)
        group = known.groups.get(chosen.shape)
        if group is not None:  # a term without values has no combination, and so no entry
            for key in chosen.combinations():
                group.remove(key, chosen.between, query)
            if not group.buckets:
                del known.groups[chosen.shape]
        if not known.queries:
            del self._relations[relation]

    def __len__(self) -> int:
        """Return the number of queries."""
        return sum(each.queries for each in self._relations.values())

    def matching(
        self, relation: int, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None
    ) -> set[Query]:
        """
        Return the queries that a change of a row can concern.

        Args:
            relation: Number of the row's relation.
            old: Old image of the row from the log; None if there was no row before.
            new: New image of the row, likewise.
        """
        found: set[Query] = set()
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


class _Relation(Generic[Query]):
    """The queries of one relation."""

    def __init__(self) -> None:
        self.groups: dict[_Shape, _Group[Query]] = {}
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
class _Entry(Generic[Query]):
    """A query, and the terms that have to be checked for each row."""

    query: Query
    rest: tuple[Term, ...]

    def holds(self, image: Mapping[str, Any]) -> bool:
        return all(term.holds(_comparable(image, term.column, term.form)) for term in self.rest)


class _Group(Generic[Query]):
    """The queries that are indexed by the same columns."""

    __slots__ = ("buckets",)

    def __init__(self) -> None:
        # A bucket with a single query is the query's entry itself: a dict takes 230 bytes, and most
        # filters have one query for each value.
        self.buckets: dict[
            tuple[Any, ...], _Entry[Query] | _Ranges[Query] | dict[Query, _Entry[Query]]
        ] = {}

    def add(self, key: tuple[Any, ...], between: Between | None, entry: _Entry[Query]) -> None:
        bucket = self.buckets.get(key)
        if between is not None:
            if bucket is None:
                bucket = self.buckets[key] = _Ranges()
            assert isinstance(bucket, _Ranges)
            bucket.add(between, entry)
        elif bucket is None:
            self.buckets[key] = entry
        elif isinstance(bucket, _Entry):
            self.buckets[key] = {bucket.query: bucket, entry.query: entry}
        else:
            assert isinstance(bucket, dict)
            bucket[entry.query] = entry

    def remove(self, key: tuple[Any, ...], between: Between | None, query: Query) -> None:
        bucket = self.buckets[key]
        if isinstance(bucket, _Ranges):
            assert between is not None
            bucket.remove(between, query)
        elif isinstance(bucket, dict):
            del bucket[query]
        if isinstance(bucket, _Entry) or not bucket:
            del self.buckets[key]

    def collect(self, shape: _Shape, image: Mapping[str, Any], found: set[Query]) -> None:
        """Add the queries that a row may concern to `found`."""
        key = tuple([_comparable(image, name, form) for name, form in shape.columns])
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
        value = None if shape.between is None else _comparable(image, *shape.between)
        for bucket in buckets:
            entries: Iterable[_Entry[Query]]
            if isinstance(bucket, _Entry):
                entries = (bucket,)
            else:
                entries = bucket.values() if isinstance(bucket, dict) else bucket.at(value)
            for entry in entries:
                if not entry.rest or entry.holds(image):
                    found.add(entry.query)


class _Ranges(Generic[Query]):
    """
    Queries with the same indexed values, and a range.

    Ranges with one bound are sorted by it. Ranges with two are kept in one list per power of two of their
    length, sorted by the lower bound. A lookup reads those whose lower bound is at most the longest length
    of the list below the value; of evenly spread ranges at least half of these contain it.
    """

    __slots__ = ("_lists", "_longest", "entries")

    def __init__(self) -> None:
        self.entries: dict[Query, tuple[Any, int, Between, _Entry[Query]]] = {}
        self._lists: dict[Hashable, SortedList] = {}
        self._longest: dict[Hashable, Any] = {}

    def add(self, between: Between, entry: _Entry[Query]) -> None:
        kind, end = _placed(between)
        # id(entry) makes the tuples distinct, so sorting never compares the ranges or entries.
        place = self.entries[entry.query] = end, id(entry), between, entry
        if kind is None:
            return
        self._lists.setdefault(kind, SortedList()).add(place)
        if isinstance(kind, int):
            self._longest[kind] = max(self._longest.get(kind, 0), between.high - between.low)

    def remove(self, between: Between, query: Query) -> None:
        place = self.entries.pop(query)
        kind, _ = _placed(between)
        if kind is None:
            return
        self._lists[kind].remove(place)
        if not self._lists[kind]:
            del self._lists[kind]
            self._longest.pop(kind, None)

    def __len__(self) -> int:
        return len(self.entries)

    def at(self, value: Any) -> Iterator[_Entry[Query]]:
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


def _comparable(image: Mapping[str, Any], column: str, form: ValueForm) -> Any:
    """Return a row's value in comparable form; unknown if the image is older than the column."""
    value = image.get(column, UNKNOWN)
    return UNKNOWN if value is UNKNOWN else form.of(value)
