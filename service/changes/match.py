"""
Which queries a changed row can concern, by their filters: an index of terms.

A query whose filter asks for one of some values of a column, or for values between two, is found by the
row's value: by hash, or in a sorted list. Terms over other operators and types are left out, and so is
what stands beside an OR: a query may be found that the row does not concern, never the other way
around. Values compare as PostgreSQL's do, for the types of `FORMS`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import count, product
from typing import Any, Generic, TypeVar
from uuid import UUID

from sortedcontainers import SortedList

from service.catalog import Catalog
from service.db.codec import Codec
from service.errors import InvalidArgument
from service.plan.conditions import (
    PG_CATALOG,
    BoolExpr,
    Bound,
    Compare,
    Condition,
    Expression,
    IsTest,
)
from service.plan.keyed import ROOT

MOST_COPIES = 256
"""
How often a query may stand in the index, for each combination of the values that it asks for.

It takes some 300 bytes each time. A longer list is looked into for each change instead.
"""

UNKNOWN: Any = object()
"""The value of a row that this module cannot read, such as a date before Christ."""

Watch = TypeVar("Watch", bound=Hashable)


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
    """Return the microseconds since the year 1."""
    if not re.fullmatch(
        rf"\d{{4}}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d{{1,6}})?{zone}", text, re.ASCII
    ):
        return UNKNOWN
    text = re.sub(r"\.(\d+)", lambda found: f".{found[1]:<06}", text)
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
    How values of a type are compared.

    Args:
        name: Of the type.
        read: Returns what stands for a value, given as text: equal if and only if the values are,
            and in their order.
        sorted: Whether they have the same order.
    """

    name: str
    read: Callable[[str], Any]
    sorted: bool = True

    def of(self, value: Any) -> Any:
        """Return what stands for a value as the log has it."""
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
        ValueForm("uuid", _uuid),
        ValueForm("date", _date),
        ValueForm("timestamp", _timestamp),
        ValueForm("timestamptz", _timestamptz),
        # their order is a matter of the collation
        *(ValueForm(name, str, sorted=False) for name in ("text", "varchar")),
    )
}
ENUM = ValueForm("enum", str, sorted=False)


@dataclass(frozen=True, slots=True)
class OneOf:
    """A column has one of some values, perhaps null; they are as the form reads them."""

    column: str
    form: ValueForm
    values: frozenset[Any]

    def holds(self, value: Any) -> bool:
        """Return whether a value, read by the form, may be one of them."""
        return value is UNKNOWN or value in self.values


@dataclass(frozen=True, slots=True)
class Between:
    """
    A column has a value between two.

    Args:
        column: Which one.
        form: Of the values.
        low, high: The ends; None where there is none.
        low_in, high_in: Whether they are among the values.
    """

    column: str
    form: ValueForm
    low: Any = None
    high: Any = None
    low_in: bool = True
    high_in: bool = True

    def holds(self, value: Any) -> bool:
        """Return whether a value, read by the form, may be between them."""
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
    Return the terms that all have to hold of a row, for a filter to hold of it.

    Args:
        catalog: For types.
        codec: Writes the values.
        where: The filter, as planned.
        values: Of the call.
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
    if many and not isinstance(given, list | tuple):  # an array as PostgreSQL's text
        return None
    read = [_operand(codec, form, type, each) for each in (given if many else [given])]
    if UNKNOWN in read:
        return None
    column = test.left.column.name
    if name == "=" or None in read:  # nothing compares with null
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
    """Return how the values of a column of the row itself compare; None for anything else."""
    if value.source != ROOT or value.links or value.steps or value.applied or value.function:
        return None
    if value.row or value.column.loose or not value.column.logged:
        return None
    type = catalog.plain(value.type)
    if type.kind == "enum":
        return ENUM
    return FORMS.get(type.name) if type.schema == PG_CATALOG and type.kind == "base" else None


def _both(one: Term, other: Term) -> Term:
    """Return the term that holds where two of one column do."""
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


class Index(Generic[Watch]):
    """Queries by the terms of their filters; each operation takes O(log n) for what it finds."""

    def __init__(self) -> None:
        self._relations: dict[int, _Relation[Watch]] = {}
        self._standing: dict[Watch, _Places[Watch]] = {}

    def add(self, watch: Watch, relation: int, terms: Sequence[Term]) -> None:
        """
        Add a query.

        Args:
            watch: The query; it is in no other place.
            relation: Whose changes are asked about.
            terms: That all hold of a row that concerns it.
        """
        columns, between = _chosen(terms)
        rest = tuple(term for term in terms if term is not between and term not in columns)
        shape = _Shape(
            tuple((each.column, each.form) for each in columns),
            None if between is None else (between.column, between.form),
        )
        entry = _Entry(watch, rest, {term.column for term in terms})
        known = self._relations.get(relation)
        if known is None:
            known = self._relations[relation] = _Relation(relation)
        known.columns.update(entry.columns)
        group = known.groups.get(shape)
        if group is None:
            group = known.groups[shape] = _Group()
        keys = product(*(each.values for each in columns))
        places = [group.add(key, between, entry) for key in keys]
        self._standing[watch] = _Places(known, shape, entry, places)
        known.queries += 1

    def remove(self, watch: Watch) -> None:
        """Remove a query."""
        found = self._standing.pop(watch)
        known, group = found.relation, found.relation.groups.get(found.shape)
        if group is not None:  # without a value to ask for, it stands nowhere
            for place in found.places:
                group.remove(place)
            if not group.buckets:
                del known.groups[found.shape]
        known.columns.subtract(found.entry.columns)
        known.queries -= 1
        if not known.queries:
            del self._relations[known.number]

    def __len__(self) -> int:
        """Return how many queries there are."""
        return len(self._standing)

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

    def __init__(self, number: int) -> None:
        self.number = number
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


@dataclass(frozen=True, slots=True, eq=False)
class _Entry(Generic[Watch]):
    """A query, what else has to hold of a row, and the columns of all terms."""

    watch: Watch
    rest: tuple[Term, ...]
    columns: set[str]

    def holds(self, image: Mapping[str, Any]) -> bool:
        return all(term.holds(_value(image, term.column, term.form)) for term in self.rest)


@dataclass(slots=True, eq=False)
class _Place(Generic[Watch]):
    """Where a query stands, for its removal."""

    key: tuple[Any, ...]
    entry: _Entry[Watch]
    between: Between | None
    number: int


@dataclass(frozen=True, slots=True, eq=False)
class _Places(Generic[Watch]):
    """All places of a query."""

    relation: _Relation[Watch]
    shape: _Shape
    entry: _Entry[Watch]
    places: list[_Place[Watch]]


class _Group(Generic[Watch]):
    """The queries of one shape."""

    def __init__(self) -> None:
        self.buckets: dict[tuple[Any, ...], _Bucket[Watch] | _Ranges[Watch]] = {}
        self._numbers = count()

    def add(
        self, key: tuple[Any, ...], between: Between | None, entry: _Entry[Watch]
    ) -> _Place[Watch]:
        place = _Place(key, entry, between, next(self._numbers))
        bucket = self.buckets.get(key)
        if bucket is None:
            bucket = self.buckets[key] = _Bucket() if between is None else _Ranges()
        bucket.add(place)
        return place

    def remove(self, place: _Place[Watch]) -> None:
        bucket = self.buckets[place.key]
        bucket.remove(place)
        if not bucket.places:
            del self.buckets[place.key]

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
            for entry in bucket.at(value):
                if not entry.rest or entry.holds(image):
                    found.add(entry.watch)


class _Bucket(Generic[Watch]):
    """Queries that ask for the same values."""

    def __init__(self) -> None:
        self.places: dict[int, _Entry[Watch]] = {}

    def add(self, place: _Place[Watch]) -> None:
        self.places[place.number] = place.entry

    def remove(self, place: _Place[Watch]) -> None:
        del self.places[place.number]

    def at(self, _: Any) -> Iterable[_Entry[Watch]]:
        return self.places.values()


class _Ranges(Generic[Watch]):
    """
    Queries for values between two.

    Those with one end stand in the order of it. Those with two stand by the power of two that the
    distance of the ends comes to, in the order of the lower one: of those that begin before a value,
    and no farther from it than the longest of them, half hold it or more, if they are spread evenly.
    """

    def __init__(self) -> None:
        self.places: dict[int, _Place[Watch]] = {}
        self._lists: dict[Hashable, SortedList] = {}
        self._longest: dict[Hashable, Any] = {}

    def add(self, place: _Place[Watch]) -> None:
        between = place.between
        assert between is not None
        self.places[place.number] = place
        kind, end = _placed(between)
        if kind is None:
            return
        self._lists.setdefault(kind, SortedList()).add((end, place.number))
        if isinstance(kind, int):
            self._longest[kind] = max(self._longest.get(kind, 0), between.high - between.low)

    def remove(self, place: _Place[Watch]) -> None:
        assert place.between is not None
        del self.places[place.number]
        kind, end = _placed(place.between)
        if kind is None:
            return
        self._lists[kind].remove((end, place.number))
        if not self._lists[kind]:
            del self._lists[kind]
            self._longest.pop(kind, None)

    def at(self, value: Any) -> Iterator[_Entry[Watch]]:
        """Yield the queries that ask for a value."""
        if value is None:
            return
        if value is UNKNOWN:
            yield from (place.entry for place in self.places.values())
            return
        for kind, ends in self._lists.items():
            if kind == "high":
                near = ends.irange(minimum=(value, -1))
            elif kind == "low":
                near = ends.irange(maximum=(value, math.inf))
            else:
                near = ends.irange((value - self._longest[kind], -1), (value, math.inf))
            for _, number in near:
                place = self.places[number]
                if place.between is not None and place.between.holds(value):
                    yield place.entry


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


def _chosen(terms: Iterable[Term]) -> tuple[list[OneOf], Between | None]:
    """Return the terms by which a query is found: those for the fewest values, and a range."""
    found: list[OneOf] = []
    copies = 1
    values = [term for term in terms if isinstance(term, OneOf)]
    for term in sorted(values, key=lambda term: (len(term.values), term.column)):
        if copies * len(term.values) <= MOST_COPIES:
            found.append(term)
            copies *= len(term.values)
    ranges = [term for term in terms if isinstance(term, Between)]
    return sorted(found, key=lambda term: term.column), min(
        ranges, key=lambda term: term.column, default=None
    )


def _value(image: Mapping[str, Any], column: str, form: ValueForm) -> Any:
    """Return what stands for a value of a row; one of before a column was added is not known."""
    value = image.get(column, UNKNOWN)
    return UNKNOWN if value is UNKNOWN else form.of(value)
