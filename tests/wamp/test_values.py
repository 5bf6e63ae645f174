"""
A value has one form: what a client sends is what every client reads, for every type.

The forms are those of docs/values.md. Rows go from a client through the router and the service
into PostgreSQL and back, over each transport and serializer, in Python and in JavaScript.
"""

from __future__ import annotations

import json
import math
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.threads import blockingCallFromThread
from twisted.internet.utils import getProcessOutputAndValue

from service.waiting import in_thread
from tests.amounts import amount
from tests.conftest import Router
from tests.wamp import test_clients
from tests.wamp.callers import Caller, join
from tests.wamp.service import served

node = test_clients.node

KINDS = ["rawsocket cbor", "websocket json", "websocket msgpack", "rawsocket json"]

TYPES = """
CREATE EXTENSION citext;
CREATE EXTENSION ltree;
CREATE EXTENSION hstore;
CREATE TYPE mood AS ENUM ('sad', 'so, so', 'a "quoted" \\ word', '', 'NULL');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE DOMAIN words AS text[];
CREATE TYPE pair AS (a int, "B c" text, d timestamptz);
CREATE TYPE nest AS (p pair, ps pair[], m mood, j jsonb, x bytea, f float8);
CREATE TABLE other (id int PRIMARY KEY, name text, at date);
"""

BIG = 2**63 - 1

VALUES: dict[str, tuple[str, list[Any]]] = {
    "bool": ("boolean", [True, False]),
    "int2": ("smallint", [0, -(2**15), 2**15 - 1]),
    "int4": ("integer", [0, -(2**31), 2**31 - 1]),
    "int8": ("bigint", [0, 2**53 + 1, BIG, -(2**63)]),
    "oid": ("oid", [0, 2**32 - 1]),
    "float4": ("real", [0.1, -1.5, 2.0, "NaN", "Infinity", "-Infinity"]),
    "float8": ("double precision", [0.1, 1e300, 5e-324, 3.0, "NaN", "Infinity", "-Infinity"]),
    "numeric": ("numeric", ["12.50", "0", "-0.001", "9" * 1000, "NaN", "Infinity"]),
    "text": ("text", ["", "ü € 🚗 \u2028", "a'b\\c\"d%s\n\t", "NULL", "\\x00", "123", "null"]),
    "varchar": ("varchar(9)", ["", "abc"]),
    "char": ("char(3)", ["abc"]),
    "name": ("name", ["abc"]),
    "mood": ("mood", ["sad", "so, so", 'a "quoted" \\ word', "", "NULL"]),
    "citext": ("citext", ["AbC"]),
    "inet": ("inet", ["10.0.0.1", "10.0.0.1/8", "::1"]),
    "cidr": ("cidr", ["10.0.0.0/8"]),
    "macaddr": ("macaddr", ["08:00:2b:01:02:03"]),
    "tsvector": ("tsvector", ["'a':1 'b c':2"]),
    "bit": ("bit(3)", ["101"]),
    "money": ("money", ["$1,234.50"]),
    "point": ("point", ["(1,2.5)"]),
    "box": ("box", ["(3,4),(1,2)"]),
    "path": ("path", ["[(0,0),(1,1)]"]),
    "polygon": ("polygon", ["((0,0),(1,1),(1,0))"]),
    "circle": ("circle", ["<(1,2),3>"]),
    "ltree": ("ltree", ["a.b.c"]),
    "uuid": ("uuid", ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]),
    "date": ("date", ["2026-11-21", "0044-03-15 BC", "infinity"]),
    "time": ("time", ["14:03:00.25", "24:00:00"]),
    "timestamp": ("timestamp", ["2026-11-21T14:03:00.25", "-infinity"]),
    "timestamptz": ("timestamptz", ["2026-11-21T14:03:00.25Z", "infinity", "-infinity"]),
    "interval": ("interval", ["P1DT2S", "PT0S", "P1Y2M3DT4H5M6.789S", "P-1DT-2.5S"]),
    "bytea": ("bytea", [b"", b"\x00\xff\\x", bytes(range(256))]),
    "json": ("json", [1, "text", True, [1, [2, {}]], {"b": 1, "a": [None, 1.5]}, "", BIG]),
    "jsonb": ("jsonb", [1, "text", False, [], {"ü": "€🚗", '"': "\\"}, 0.1, -(2**63), ["$int"]]),
    "hstore": ("hstore", [{}, {"a": "1", "b": None}, {'"': "\\", "": "", "a=>b": ", "}]),
    "ints": ("int[]", [[], [1, None, 2], [[1, 2], [3, 4]]]),
    "texts": ("text[]", [[], ["", "NULL", None, "a,b", '"', "\\", "{}"], [["a"], [None]]]),
    "bytes": ("bytea[]", [[b"a\x00", b"", None]]),
    "docs": ("jsonb[]", [[{"a": [1]}, None, "x", 5, [1, 2]]]),
    "times": ("timestamptz[]", [["2026-11-21T14:03:00Z", "infinity"]]),
    "pair": (
        "pair",
        [
            {"a": 1, "B c": 'x "y" \\ (z), ', "d": "2026-11-21T14:03:00Z"},
            {"a": None, "B c": "", "d": None},
        ],
    ),
    "pairs": ("pair[]", [[{"a": 1, "B c": '",\\{}', "d": None}, None], []]),
    "nest": (
        "nest",
        [
            {
                "p": {"a": 1, "B c": '"', "d": None},
                "ps": [{"a": 2, "B c": "(,)", "d": "infinity"}, None],
                "m": "so, so",
                "j": {"k": ['"', 1]},
                "x": b"\x00\\",
                "f": "NaN",
            }
        ],
    ),
    "row": ("other", [{"id": 1, "name": None, "at": "2026-11-21"}]),
    "range": ("int4range", ["[1,5)", "empty", "(,)"]),
    "multirange": ("nummultirange", ["{[1.5,2.5),[3,4]}", "{}"]),
    "positive": ("positive", [1]),
    "words": ("words", [["a", None], []]),
}
"""By column, its type and the values that go there and back."""

UNEQUAL = {"point", "box", "path", "polygon", "circle", "json", "nest"}
"""Columns whose types PostgreSQL does not compare, or not by all of their value."""

SENT: dict[str, list[tuple[Any, Any]]] = {
    "int4": [(5.0, 5), ("5", 5)],
    "int8": [(str(BIG), BIG)],
    "numeric": [(5, "5"), (0.1, "0.1"), ("1e3", "1000")],
    "float8": [(3, 3.0), ("1e3", 1000.0)],
    "bool": [("yes", True), ("OFF", False)],
    "date": [("November 21, 2026", "2026-11-21")],
    "timestamptz": [("2026-11-21T16:03:00+02:00", "2026-11-21T14:03:00Z")],
    "interval": [("1 day 2 seconds", "P1DT2S")],
    "uuid": [("A0EEBC999C0B4EF8BB6D6BB9BD380A11", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")],
    "bytea": [("\\x00FF", b"\x00\xff")],
    "ints": [("{1,2}", [1, 2])],
    "pair": [('(1,"x",)', {"a": 1, "B c": "x", "d": None}), ({}, dict.fromkeys(["a", "B c", "d"]))],
    "hstore": [("a=>1", {"a": "1"})],
    "money": [(12.5, "$12.50")],
    "positive": [(7.0, 7)],
}
"""By column, other forms that an argument may have, and what is read then."""


COLUMNS = ", ".join(f'"{name}" {declared}' for name, (declared, _) in VALUES.items())
SCHEMA = f"{TYPES} CREATE TABLE kept (id bigserial PRIMARY KEY, {COLUMNS});"


@pytest_twisted.async_yield_fixture(scope="module")
async def callers(dsn: str, router: Router) -> AsyncIterator[dict[str, Caller]]:
    """Serve the module's database, and join over each transport and serializer."""
    async with served(dsn, router):
        joined = {how: await join(router, how) for how in KINDS}
        yield joined
        await gatherResults([caller.close() for caller in joined.values()])


def alike(one: Any, other: Any) -> bool:
    """Return whether two values are equal, and of the same types at each depth."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return bool(one == other)


@pytest.mark.parametrize("column", VALUES)
@pytest_twisted.ensureDeferred
async def test_value_written_by_a_client_is_read_and_found_by_all(
    callers: dict[str, Caller], column: str
) -> None:
    """Each client reads it, and finds it by a filter."""
    values = [*VALUES[column][1], None]
    for caller in callers.values():
        rows = await caller.call(
            "rowcast.kept.create", [{column: value} for value in values], select=["id", column]
        )
        assert alike([row[column] for row in rows], values)
        keys = [row["id"] for row in rows]
        for reader in callers.values():
            page = await reader.call(
                "rowcast.kept.find", where={"id": keys}, select=["id", column], form="lists"
            )
            assert alike(page["rows"], [list(each) for each in zip(keys, values, strict=True)])
        for row in [] if column in UNEQUAL else rows:
            where = {"id": row["id"], column: {"isdistinct": row[column]}}
            assert not await caller.call("rowcast.kept.exists", where=where), row


@pytest.mark.parametrize("column", SENT)
@pytest_twisted.ensureDeferred
async def test_value_in_another_form_is_returned_in_wire_form(
    callers: dict[str, Caller], column: str
) -> None:
    """Arguments may have each form that PostgreSQL accepts."""
    sent, read = zip(*SENT[column], strict=True)
    for caller in callers.values():
        rows = await caller.call("rowcast.kept.create", [{column: value} for value in sent])
        assert alike([row[column] for row in rows], list(read))


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
integers = st.integers(-(2**63), BIG)
floats = st.floats(allow_nan=False, allow_infinity=False)
jsons = st.recursive(
    st.none() | st.booleans() | integers | texts | st.floats(-1e9, 1e9).map(lambda f: f + 0.5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)
pairs = st.fixed_dictionaries(
    {"a": st.none() | st.integers(-(2**31), 2**31 - 1), "B c": texts, "d": st.none()}
)
ROWS = st.fixed_dictionaries(
    {
        "bool": st.booleans(),
        "int8": integers,
        "float8": floats,
        "numeric": st.decimals(allow_nan=False, allow_infinity=False, places=4).map(
            lambda number: f"{abs(number):f}"
        ),
        "text": texts,
        "bytea": st.binary(max_size=40),
        "jsonb": jsons,
        "json": jsons,
        "texts": st.lists(st.none() | texts, max_size=4),
        "bytes": st.lists(st.none() | st.binary(max_size=9), max_size=3),
        "hstore": st.dictionaries(texts, st.none() | texts, max_size=3),
        "pairs": st.lists(st.none() | pairs, max_size=3),
        "timestamp": st.datetimes().map(
            lambda at: at.replace(microsecond=0, second=at.second).isoformat()
        ),
        "uuid": st.uuids().map(str),
    }
)


def unlike_an_operator(value: Any) -> Any:
    """Return a value as a client writes it: a dict that looks like an operator is wrapped in `$value`."""
    alone = isinstance(value, dict) and len(value) == 1 and next(iter(value)).startswith("$")
    return {"$value": value} if alone else value


@pytest.mark.parametrize("operator", [{"$": None}, {"$add": "1"}, {"$value": "x"}])
@pytest_twisted.ensureDeferred
async def test_hstore_that_looks_like_an_operator_is_written_wrapped(
    callers: dict[str, Caller], operator: dict[str, Any]
) -> None:
    caller = callers["websocket json"]
    row = {"hstore": unlike_an_operator(operator)}
    made = await caller.call("rowcast.kept.create", row, select=["hstore"])
    assert made == {"hstore": operator}


@pytest.mark.parametrize("how", KINDS[:3])
@pytest_twisted.ensureDeferred
async def test_row_of_any_values_is_read_as_written_by_all(
    callers: dict[str, Caller], how: str
) -> None:
    readers = [caller for kind, caller in callers.items() if kind != how]

    async def travel(row: dict[str, Any]) -> None:
        written = {column: unlike_an_operator(value) for column, value in row.items()}
        made = await callers[how].call("rowcast.kept.create", written, select=["id", *row])
        key = made.pop("id")
        assert alike(made, row), made
        calls = [reader.call("rowcast.kept.get", key, select=list(row)) for reader in readers]
        for read in await gatherResults(calls):
            assert alike(read, row), read

    @settings(
        max_examples=amount(10, 60),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(ROWS)
    def check(row: dict[str, Any]) -> None:
        blockingCallFromThread(reactor, lambda: ensureDeferred(travel(row)))

    await in_thread(reactor, "hypothesis", check)


def marked(value: Any) -> Any:
    """Replace values that JSON in JavaScript cannot represent by marks."""
    if isinstance(value, bytes):
        return {"$bytes": b64encode(value).decode()}
    if isinstance(value, list | tuple):
        return [marked(item) for item in value]
    if isinstance(value, dict):
        return {key: marked(item) for key, item in value.items()}
    if isinstance(value, int) and abs(value) > 2**53:
        return {"$int": str(value)}
    return value


def unmarked(value: Any) -> Any:
    """Replace marks by their values."""
    if isinstance(value, list):
        return [unmarked(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$bytes" in value:
        return b64decode(value["$bytes"])
    return int(value["$int"]) if "$int" in value else {k: unmarked(v) for k, v in value.items()}


async def javascript(
    node: str, router: Router, serializer: str, calls: list[dict[str, Any]], folder: Path
) -> list[Any]:
    """Make calls from JavaScript; return their results."""
    file = folder / "calls.json"
    file.write_text(json.dumps(marked(calls)), "utf-8")
    program = [
        str(test_clients.NODE / "values.js"),
        router.websocket,
        router.realm,
        serializer,
        str(file),
    ]
    out, err, status = await getProcessOutputAndValue(node, program)
    assert not status, err.decode()
    return [unmarked(json.loads(line)) for line in out.decode().split("\n")[:-1]]


@pytest.mark.parametrize("serializer", ["json", "msgpack", "cbor"])
@pytest_twisted.ensureDeferred
async def test_value_written_by_javascript_is_read_by_python_the_same(
    callers: dict[str, Caller],
    node: str,
    router: Router,
    serializer: str,
    tmp_path: Path,
) -> None:
    """JavaScript writes and reads the same, and Python reads what it wrote."""
    small = {name: [v for v in values if not big(v)] for name, (_, values) in VALUES.items()}
    values = small if serializer != "cbor" else {name: v for name, (_, v) in VALUES.items()}
    calls = [
        {
            "call": "rowcast.kept.create",
            "args": [[{name: value} for value in each]],
            "kwargs": {"select": ["id", name]},
        }
        for name, each in values.items()
    ]
    answers = await javascript(node, router, serializer, calls, tmp_path)
    for (name, each), rows in zip(values.items(), answers, strict=True):
        assert isinstance(rows, list), (name, rows)
        assert [row[name] for row in rows] == each, name
        page = await callers["rawsocket cbor"].call(
            "rowcast.kept.find", where={"id": [row["id"] for row in rows]}, select=[name]
        )
        assert [row[name] for row in page["rows"]] == each, name


def big(value: Any) -> bool:
    """Return whether a value is an integer that a number in JavaScript cannot represent."""
    return isinstance(value, int) and abs(value) > 2**53


@pytest.mark.parametrize(
    ("serializer", "exact"), [("json", False), ("msgpack", False), ("cbor", True)]
)
@pytest_twisted.ensureDeferred
async def test_large_integers_in_javascript_are_exact_as_text_or_cbor(
    callers: dict[str, Caller],
    node: str,
    router: Router,
    serializer: str,
    exact: bool,
    tmp_path: Path,
) -> None:
    """The npm package autobahn reads 64-bit integers from CBOR only; as text they are always exact."""
    calls = [
        {
            "call": "rowcast.kept.create",
            "args": [{"int8": str(value)}],
            "kwargs": {"select": ["int8", "text:int8::text"]},
        }
        for value in (BIG, -(2**63), 2**53 + 1, 2**53 - 1)
    ]
    rows = await javascript(node, router, serializer, calls, tmp_path)
    assert [row["text"] for row in rows] == [call["args"][0]["int8"] for call in calls]
    assert all(str(row["int8"]) == row["text"] for row in rows) is exact
    assert rows[-1]["int8"] == 2**53 - 1
