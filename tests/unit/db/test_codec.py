"""Values of models: Python's types, and text where Python has no type."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pytest

from service.catalog import Catalog, Type
from service.db.codec import Codec
from service.errors import InvalidArgument

BASES = {
    **{"bool": 16, "bytea": 17, "int8": 20, "int4": 23, "text": 25, "jsonb": 3802},
    **{"float8": 701, "numeric": 1700, "date": 1082, "time": 1083, "timestamp": 1114},
    **{"timestamptz": 1184, "interval": 1186, "uuid": 2950},
}
NUMBERS = ("int4", "int8", "float8", "numeric")
TYPES = [
    *(
        Type(oid, "pg_catalog", name, name, "base", "N" if name in NUMBERS else "U")
        for name, oid in BASES.items()
    ),
    Type(1, "pg_catalog", "_int4", "int4[]", "array", element=23),
    Type(2, "pg_catalog", "_jsonb", "jsonb[]", "array", element=3802),
    Type(3, "app", "days", "app.days", "domain", base=1082),
    Type(4, "app", "pair", "app.pair", "composite", fields=(("a", 23), ("", 25), ("d", 3))),
    Type(5, "app", "_pair", "app.pair[]", "array", element=4),
    Type(6, "app", "hstore", "app.hstore", "base"),
    Type(7, "pg_catalog", "_numeric", "numeric[]", "array", element=1700),
]


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(catalog())


def catalog() -> Catalog:
    """Return a catalog of a few types."""
    return Catalog(1, ("app",), {}, {each.oid: each for each in TYPES})


def named(name: str) -> Type:
    return next(each for each in TYPES if each.name == name)


@pytest.mark.parametrize(
    ("name", "sent", "seen"),
    [
        ("int4", None, None),
        ("int4", "5", 5),
        ("int4", "0x10", 16),
        ("int4", "1_000", 1000),
        ("int4", 5.0, 5),
        ("numeric", "12.50", Decimal("12.50")),
        ("numeric", 5, Decimal(5)),
        ("float8", "Infinity", float("inf")),
        ("bool", "on", True),
        ("bool", " YES", True),
        ("bool", "of", False),
        ("date", "2026-11-21", date(2026, 11, 21)),
        ("date", "infinity", "infinity"),
        ("date", date(2026, 11, 21), date(2026, 11, 21)),
        ("days", "2026-11-21", date(2026, 11, 21)),
        ("time", "14:03:00.25", time(14, 3, 0, 250000)),
        ("time", "24:00:00", "24:00:00"),
        ("timestamp", "2026-11-21T14:03:00.25", datetime(2026, 11, 21, 14, 3, 0, 250000)),
        ("timestamp", "2026-11-21T14:03:00Z", datetime(2026, 11, 21, 14, 3)),
        ("timestamp", "0044-03-15T01:02:03 BC", "0044-03-15T01:02:03 BC"),
        ("timestamptz", "2026-11-21T14:03:00Z", datetime(2026, 11, 21, 14, 3, tzinfo=UTC)),
        ("timestamptz", "2026-11-21T16:03:00+02", datetime(2026, 11, 21, 14, 3, tzinfo=UTC)),
        ("timestamptz", "2026-11-21 14:03", datetime(2026, 11, 21, 14, 3, tzinfo=UTC)),
        ("timestamptz", "0001-01-01T00:00:00+05", "0001-01-01T00:00:00+05"),
        ("interval", "P-1DT2H3M4.5S", timedelta(days=-1, hours=2, minutes=3, seconds=4.5)),
        ("interval", "P1M", "P1M"),
        ("interval", "P9999999999D", "P9999999999D"),
        ("uuid", "x", "x"),
        ("bytea", "\\x00", b"\x00"),
        ("jsonb", {"a": [1]}, {"a": [1]}),
        ("_int4", [[1, None]], [[1, None]]),
        ("_int4", "{1,NULL}", [1, None]),
        ("_jsonb", [[1], {"a": 1}], [[1], {"a": 1}]),
        ("pair", {"d": "2026-01-01"}, {"a": None, "d": date(2026, 1, 1)}),
        ("pair", [1, None], {"a": 1, "d": None}),
        ("_pair", [{"a": 1}, None], [{"a": 1, "d": None}, None]),
        ("hstore", {"a": None}, {"a": None}),
        ("hstore", '"a"=>"b"', {"a": "b"}),
    ],
)
def test_value_for_a_model_is_what_python_holds(
    codec: Codec, name: str, sent: Any, seen: Any
) -> None:
    assert codec.python(named(name), sent, "v") == seen


@pytest.mark.parametrize(
    ("name", "sent", "path"),
    [
        ("int4", "x", "v"),
        ("numeric", "x", "v"),
        ("float8", "x", "v"),
        ("bool", 1, "v"),
        ("bytea", 1, "v"),
        ("jsonb", {"a": b""}, "v.a"),
        ("_int4", [1, "x"], "v.1"),
        ("_int4", "{1", "v"),
        ("_numeric", "{x}", "v"),
        ("pair", {"a": "x"}, "v.a"),
        ("pair", {"b": 1}, "v.b"),
        ("pair", "(1", "v"),
        ("hstore", "a", "v"),
        ("hstore", {"a": 1}, "v.a"),
    ],
)
def test_value_not_of_its_type_is_refused_with_its_path(
    codec: Codec, name: str, sent: Any, path: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        codec.python(named(name), sent, "v")
    assert refused.value.details["path"] == path


def test_hidden_fields_cannot_be_set(codec: Codec) -> None:
    """A field without a name takes no value."""
    assert codec.encode(named("pair"), {"a": 1, "d": "x"}, "v") == '("1",,"x")'
    with pytest.raises(InvalidArgument):
        codec.encode(named("pair"), {"": "x"}, "v")
