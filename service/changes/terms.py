"""
Terms of a filter: conditions on single columns that Python can check against the images of a change.

A term restricts a column to some values, or to a range. Values compare as in PostgreSQL, for the types of
`FORMS`. Conditions with other operators and types are left out, and so are most with OR. So the terms are
necessary, not sufficient: if a row violates one, the filter does not match it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from service.catalog import Catalog
from service.db.codec import Codec
from service.errors import InvalidArgument
from service.plan.plans import PG_CATALOG, BoolExpr, Bound, Compare, Condition, Expression, IsTest
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
        ValueForm("uuid", _uuid),
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
