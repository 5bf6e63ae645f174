"""Each value has one form: a client reads what it has sent, for every type."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from typing import Any

import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg2.extensions import connection

from service.catalog import Catalog, Type
from service.db.codec import Codec
from service.db.introspect import catalog_txn
from service.errors import InvalidArgument
from service.plan.plans import Bound
from tests.amounts import amount
from tests.conftest import missing

OPTIONS = (
    "-c timezone=UTC -c intervalstyle=iso_8601 -c datestyle=ISO -c bytea_output=hex"
    " -c extra_float_digits=1"
)

SCHEMA = r"""
CREATE EXTENSION citext;
CREATE EXTENSION ltree;
CREATE TYPE "Mood" AS ENUM ('sad', 'so, so', 'a "quoted" \ word', '', 'NULL');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE DOMAIN tags AS text[];
CREATE DOMAIN deep AS tags;
CREATE TYPE pair AS (a int, "B c" text, d timestamptz);
CREATE DOMAIN twin AS pair;
CREATE TYPE outer_ AS (p pair, ps pair[], m "Mood", t tags, j jsonb, x bytea, f float8, b box[]);
CREATE TYPE nothing AS ();
CREATE TABLE kept (id int, secret text, name text);
COMMENT ON COLUMN kept.secret IS '@hidden';
"""


class Bench:
    """A connection with a codec, to send and read values."""

    def __init__(self, connection: connection, catalog: Catalog) -> None:
        self.catalog = catalog
        self.codec = Codec(catalog)
        self.cursor = connection.cursor()
        self.codec.install(self.cursor)

    def type(self, name: str) -> Type:
        """Return the type of a cast, also of one that callers may not use."""
        found = self.catalog.types_by_name.get(name)
        return found or self.catalog.type_named(name)

    def back(self, name: str, value: Any) -> Any:
        """Send a value and read it back."""
        type = self.type(name)
        bound = Bound(0, type, "value")
        text = f"SELECT CAST(%s AS {type.sql})"
        self.cursor.execute(text, self.codec.parameters([bound], [value]))
        (found,) = self.cursor.fetchone() or ()
        return found

    def read(self, sql: str) -> Any:
        """Read the value of an SQL expression."""
        self.cursor.execute(sql)
        (found,) = self.cursor.fetchone() or ()
        return found


@pytest.fixture(scope="module")
def bench(dsn: str) -> Iterator[Bench]:
    made = psycopg2.connect(dsn, options=OPTIONS)
    made.autocommit = True
    yield Bench(made, catalog_txn(made, ("public",), 1))
    made.close()


ROUND = {
    "bool": [True, False, None],
    "int2": [0, -(2**15), 2**15 - 1],
    "int4": [0, -(2**31), 2**31 - 1],
    "int8": [0, -(2**63), 2**63 - 1, 2**53 + 1],
    "oid": [0, 2**32 - 1],
    "float4": [0.1, 1.5, "NaN", "Infinity", "-Infinity"],
    "float8": [0.1, 1e300, 5e-324, "NaN", "Infinity", "-Infinity", 1.7976931348623157e308],
    "numeric": ["12.50", "0", "-0.001", "9" * 1000, "0." + "1" * 1000, "NaN", "Infinity"],
    "text": ["", "a", "ü € 🚗", "a'b\\c\"d%s\n\t", "NULL", "\\x00"],
    "varchar": ["", "abc"],
    "bpchar": ["abc"],
    '"char"': [],
    "name": ["abc"],
    "citext": ["AbC"],
    "ltree": ["a.b.c"],
    "Mood": ["sad", "so, so", 'a "quoted" \\ word', "", "NULL"],
    "inet": ["10.0.0.1", "10.0.0.1/8", "::1"],
    "cidr": ["10.0.0.0/8"],
    "macaddr": ["08:00:2b:01:02:03"],
    "tsvector": ["'a':1 'b c':2"],
    "tsquery": ["'a' & !'b'"],
    "bit": ["1"],
    "varbit": ["", "10101"],
    "money": ["$1,234.50"],
    "point": ["(1,2.5)"],
    "box": ["(3,4),(1,2)"],
    "polygon": ["((0,0),(1,1),(1,0))"],
    "uuid": ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"],
    "date": ["2026-11-21", "0044-03-15 BC", "infinity", "-infinity", "12026-01-01"],
    "time": ["14:03:00.25", "00:00:00", "24:00:00"],
    "timetz": ["14:03:00+02"],
    "timestamp": [
        *("2026-11-21T14:03:00.25", "infinity", "-infinity", "0044-03-15T01:02:03 BC"),
        "294276-12-31T23:59:59.999999",
    ],
    "timestamptz": [
        *("2026-11-21T14:03:00.25Z", "infinity", "-infinity", "0044-03-15T01:02:03Z BC"),
        "294276-12-31T23:59:59.999999Z",
    ],
    "interval": ["P1DT2S", "PT0S", "P1Y2M3DT4H5M6.789S", "P-1DT-2.5S", "infinity"],
    "bytea": [b"", b"\x00\xff\\x", bytes(range(256))],
    "json": [None, 1, "text", True, [1, [2, {}]], {"a": {"b": [None, 1.5]}}, "", 2**63 - 1],
    "jsonb": [None, 1, "text", False, [], {"ü": "€🚗", '"': "\\"}, 0.1, -(2**63)],
    "int4range": ["[1,5)", "empty", "(,)"],
    "tstzrange": ['["2026-01-01 00:00:00+00",)'],
    "nummultirange": ["{[1.5,2.5),[3,4]}", "{}"],
    "int2vector": ["1 2 3"],
    "oidvector": ["1 2"],
    "pg_lsn": ["16/B374D848"],
    "positive": [1],
    "int4[]": [[], [1, None, 2], [[1, 2], [3, 4]], [[[1]], [[2]]]],
    "text[]": [
        [],
        ["", "NULL", None, "a,b", '"', "\\", "{}", " ", "\n", "ü", "\x85", "\xa0 a "],
        [["a"], [None]],
    ],
    "bool[]": [[True, None, False]],
    "float8[]": [[1.5, "NaN", "-Infinity", None]],
    "numeric[]": [["1.50", "NaN"]],
    "bytea[]": [[b"a\x00", b"", None]],
    "timestamptz[]": [["2026-11-21T14:03:00Z", "infinity"]],
    "jsonb[]": [[{"a": [1]}, None, "x", 5, [1, 2], []]],
    "box[]": [[], ["(3,4),(1,2)", None, "(1,1),(0,0)"], [["(3,4),(1,2)"]]],
    "Mood[]": [["so, so", "NULL", None, ""]],
    "positive[]": [[1, 2]],
    "tags": [["a", None], []],
    "deep": [["a"], [["b"], ["c"]]],
    "tags[]": [[["a", "b"], ["c"], [], None, ["\x85", "\xa0 a ", "null", "\t"]]],
    "interval[]": [["P1DT2S"]],
    "int4range[]": [["[1,5)", "empty"]],
    "pair": [
        {"a": 1, "B c": 'x "y" \\ (z), ', "d": "2026-11-21T14:03:00Z"},
        {"a": None, "B c": "", "d": None},
        {"a": None, "B c": None, "d": None},
    ],
    "twin": [{"a": 1, "B c": "b", "d": None}],
    "pair[]": [[{"a": 1, "B c": '",\\{}', "d": None}, None], []],
    "twin[]": [[{"a": 1, "B c": "b", "d": None}]],
    "nothing": [{}],
    "outer_": [
        {
            "p": {"a": 1, "B c": '"', "d": None},
            "ps": [{"a": 2, "B c": "(,)", "d": "infinity"}, None],
            "m": "so, so",
            "t": ["a,b", None],
            "j": {"k": ['"', 1]},
            "x": b"\x00\\",
            "f": "NaN",
            "b": ["(3,4),(1,2)"],
        }
    ],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in ROUND.items() for value in values]
)
def test_value_of_any_type_round_trips(bench: Bench, name: str, value: Any) -> None:
    """The value that is read can be sent again."""
    once = bench.back(name, value)
    assert once == value
    assert type(once) is type(value)
    if value is not None:
        text = bench.read(
            bench.cursor.mogrify(
                f"SELECT CAST(%s AS {bench.type(name).sql})::text",
                [bench.codec.encode(bench.type(name), value, "value")],
            ).decode()
        )
        if bench.type(name).name not in ("bpchar", "char"):
            assert bench.codec.read(bench.type(name), text) == value or name in ("bool", "inet")


@pytest.mark.parametrize(
    ("sql", "value"),
    [
        ("'[2:3]={1,2}'::int[]", [1, 2]),
        ("'[0:0][2:3]={{1,2}}'::int[]", [[1, 2]]),
        ("'[0:1]={(3,4),(1,2);(1,1),(0,0)}'::box[]", ["(3,4),(1,2)", "(1,1),(0,0)"]),
        ("row(1, 'a b', NULL, '')", ["1", "a b", None, ""]),
        ("ARRAY[row(1, 'a'), row(2, NULL)]", [["1", "a"], ["2", None]]),
        ("row(1, 'secret', 'name')::kept", {"id": 1, "name": "name"}),
        ("ARRAY[row(1, 'secret', 'name')::kept]", [{"id": 1, "name": "name"}]),
        ("pg_notify('a', 'b')", None),
        ("'x'::\"char\"", "x"),
        ("'pg_class'::regclass", "pg_class"),
        ("1::int2", 1),
        ("'1e400'::json", {"$number": "1e400"}),
        ("'1E+400'::json", {"$number": "1E+400"}),
        ("'[1e400, 1.5e3]'::jsonb", [{"$number": "1" + "0" * 400}, 1500]),
        ("'9223372036854775808'::jsonb", {"$number": "9223372036854775808"}),
        ("'[-9223372036854775808]'::jsonb", [-(2**63)]),
        ("('[' || repeat('9', 5000) || ']')::jsonb", [{"$number": "9" * 5000}]),
        ("'\"a\\u0000b\\ud800\\ud83d\\ude97\"'::json", "a\ufffdb\ufffd🚗"),
        ('\'{"\\u0000": ["\\u0000"]}\'::json', {"\ufffd": ["\ufffd"]}),
        ('\'{"a": 1, "a": 2}\'::json', {"a": 2}),
        ("to_jsonb('NaN'::float8)", "NaN"),
        ("'1 day'::interval * 0", "PT0S"),
        ("'2026-01-01'::date + time '10:00'", "2026-01-01T10:00:00"),
    ],
)
def test_value_that_only_sql_produces_is_read(bench: Bench, sql: str, value: Any) -> None:
    """Values that only SQL can produce."""
    assert bench.read(f"SELECT {sql}") == value


@pytest.mark.parametrize("depth", [90, 100])
def test_deep_json_is_read(bench: Bench, depth: int) -> None:
    """Up to the depth that serializers support."""
    value = json.loads("[" * depth + "]" * depth)
    assert bench.back("jsonb", value) == value


@pytest.mark.parametrize("depth", [101, 5000])
def test_too_deep_json_is_read_as_text(bench: Bench, depth: int) -> None:
    """JSON that serializers do not support is text, and the session stays open."""
    text = "[" * depth + "]" * depth
    assert bench.read(f"SELECT '{text}'::json") == text
    many = json.dumps(["[{" * 200] * 200)
    assert bench.read(f"SELECT '{many}'::json") == json.loads(many)


def test_bytea_in_the_escape_format_is_read(bench: Bench) -> None:
    bench.cursor.execute("SET bytea_output = escape")
    assert bench.read(r"SELECT '\x00ff5c'::bytea") == b"\x00\xff\\"
    bench.cursor.execute("SET bytea_output = hex")


def test_value_of_a_changed_row_type_is_not_misread(bench: Bench) -> None:
    """A composite type that changed after the catalog was read."""
    bench.cursor.execute("BEGIN")
    try:
        bench.cursor.execute("ALTER TABLE kept DROP COLUMN id")
        with pytest.raises(Exception, match="schema has just changed"):
            bench.read("SELECT row('secret', 'name')::kept")
    finally:
        bench.cursor.execute("ROLLBACK")


ACCEPTED: list[tuple[str, Any, Any]] = [
    ("int4", 5.0, 5),
    ("int4", " +5 ", 5),
    ("int8", "9223372036854775807", 2**63 - 1),
    ("numeric", 5, "5"),
    ("numeric", 0.1, "0.1"),
    ("numeric", float("nan"), "NaN"),
    ("numeric", "1e3", "1000"),
    ("float8", "1e3", 1000.0),
    ("float8", 10**20, 1e20),
    ("float8", float("inf"), "Infinity"),
    ("bool", "yes", True),
    ("bool", "OFF", False),
    ("text", 5, "5"),
    ("text", 1.5, "1.5"),
    ("date", "20261121", "2026-11-21"),
    ("date", "November 21, 2026", "2026-11-21"),
    ("timestamptz", "2026-11-21T16:03:00+02:00", "2026-11-21T14:03:00Z"),
    ("timestamptz", "2026-11-21 14:03", "2026-11-21T14:03:00Z"),
    ("interval", "1 day 2 seconds", "P1DT2S"),
    ("uuid", "A0EEBC999C0B4EF8BB6D6BB9BD380A11", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    ("bytea", "\\x00FF", b"\x00\xff"),
    ("bytea", "\0AP8=", b"\x00\xff"),
    ("bytea", bytearray(b"ab"), b"ab"),
    ("bytea", memoryview(b"ab"), b"ab"),
    ("int4[]", "{1,2}", [1, 2]),
    ("int4[]", "[2:3]={1,2}", [1, 2]),
    ("int4[]", (1, "2"), [1, 2]),
    ("int4[]", [[], []], []),
    ("pair", '(1,"x",)', {"a": 1, "B c": "x", "d": None}),
    ("pair", {"a": 1}, {"a": 1, "B c": None, "d": None}),
    ("pair", [1, "x", None], {"a": 1, "B c": "x", "d": None}),
    ("kept", {"name": "n"}, {"id": None, "name": "n"}),
    ("kept", [1, "n"], {"id": 1, "name": "n"}),
    ("jsonb", 10**30, {"$number": str(10**30)}),
    ("money", 12.5, "$12.50"),
    ("date", date(2026, 11, 21), "2026-11-21"),
    ("timestamp", datetime(2026, 11, 21, 14, 3, 0, 250000), "2026-11-21T14:03:00.25"),
    ("interval", timedelta(days=-1, seconds=-90), "P-1DT-1M-30S"),
]


@pytest.mark.parametrize(("name", "sent", "kept"), ACCEPTED)
def test_argument_in_another_form_is_accepted(
    bench: Bench, name: str, sent: Any, kept: Any
) -> None:
    """Arguments may have other forms than results."""
    assert bench.back(name, sent) == kept


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
integers = st.integers(-(2**63), 2**63 - 1)
jsons = st.recursive(
    st.none() | st.booleans() | integers | texts | st.floats(-1e9, 1e9).map(lambda f: f + 0.5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)
pairs = st.fixed_dictionaries(
    {
        "a": st.none() | st.integers(-(2**31), 2**31 - 1),
        "B c": st.none() | texts,
        "d": st.none() | st.just("infinity"),
    }
)
floats = st.floats(allow_nan=False, allow_infinity=False)


def boxes(items: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Draw nested lists of equal lengths."""
    return st.integers(1, 3).flatmap(
        lambda n: st.lists(st.lists(items, min_size=n, max_size=n), min_size=1, max_size=3)
    )


PROPERTIES: list[tuple[str, st.SearchStrategy[Any]]] = [
    ("text", texts),
    ("int8", integers),
    ("float8", floats),
    ("float4", st.floats(width=32, allow_nan=False, allow_infinity=False)),
    ("numeric", st.decimals(allow_nan=False, allow_infinity=False).map(lambda d: f"{d:.20f}")),
    ("bytea", st.binary(max_size=50)),
    ("jsonb", jsons),
    ("json", jsons),
    ("text[]", st.lists(st.none() | texts, max_size=6)),
    ("text[]", boxes(st.none() | texts)),
    ("int8[]", st.lists(st.none() | integers)),
    ("jsonb[]", st.lists(jsons.filter(lambda value: value is not None), max_size=4)),
    ("bytea[]", boxes(st.binary(max_size=9))),
    ("pair", pairs),
    ("pair[]", st.lists(st.none() | pairs, max_size=4)),
    ("tags[]", st.lists(st.none() | st.lists(st.none() | texts, max_size=3), max_size=3)),
    ("timestamp", st.datetimes().map(lambda d: d.isoformat().rstrip("0").rstrip(".:"))),
]


@pytest.mark.parametrize(("name", "values"), PROPERTIES)
def test_value_of_any_kind_sent_round_trips(
    bench: Bench, name: str, values: st.SearchStrategy[Any]
) -> None:
    @settings(
        max_examples=amount(10, 60),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(values)
    def check(value: Any) -> None:
        found = bench.back(name, value)
        if name == "timestamp":
            assert datetime.fromisoformat(found) == datetime.fromisoformat(
                value if len(value) > 16 else f"{value}:00"[:19]
            )
        elif name == "numeric":
            assert found == value.replace("-0.00000000000000000000", "0.00000000000000000000")
        elif isinstance(value, float):
            assert struct.pack("d" if name == "float8" else "f", found) == struct.pack(
                "d" if name == "float8" else "f", value
            )
        else:
            assert found == value

    check()


class Unheard:
    """A value of an unknown class."""


class CBORTag:
    """A tag as cbor2 decodes an unknown one."""

    def __init__(self, tag: int, value: object) -> None:
        self.tag = tag
        self.value = value


HOSTILE: list[Any] = [
    *(True, 5, -1, 2**31, 2**63, 2**64, 10**5000, 1.5, 1e308),
    *(float("nan"), float("inf"), "", "a", "\0", "a\0b", "\ud800", "{", "(", "\\x0", "\0!"),
    *("9" * 5000, b"a", bytearray(b"a"), memoryview(b"a"), Unheard(), object, CBORTag(1, "x")),
    *(CBORTag(64, Unheard()), [], [[]], [1, [2]], [[1], [1, 2]], [[1], None], ["\0"], {}),
    *({"a": "\0"}, {1: 2}, {"\ud800": 1}, {"a": {"\0": 1}}, {"a": [float("nan")]}, {None: 1}),
    *([[[[[[[1]]]]]]], {"p": {"a": "x"}}, {"unknown": 1}, set(), (1,), [b"a"], {"a": b"a"}),
    *([Unheard()], {"a": Unheard()}, datetime.max, date.min, timedelta.max, 1 + 2j, range(3)),
]


def attempt(way: Callable[[Type, Any, str], Any], type: Type, value: Any) -> Any:
    """Return the result or the refusal of an encoding; other exceptions are raised."""
    try:
        return way(type, value, "where.x")
    except InvalidArgument as refusal:
        return refusal


@pytest.mark.parametrize("name", [*ROUND, "kept", "record", "void"])
def test_argument_of_any_kind_is_encoded_or_refused(bench: Bench, name: str) -> None:
    """The refusal has a path."""
    type = next((t for t in bench.catalog.types.values() if t.name == name), None)
    type = type or bench.type(name)
    endless: list[Any] = []
    endless.append(endless)
    for value in [*HOSTILE, endless, {"a": endless}]:
        encoded = attempt(bench.codec.encode, type, value)
        if isinstance(encoded, InvalidArgument):
            assert encoded.details["path"].startswith("where.x")
            for words in (encoded.message, *encoded.details.values()):
                words.encode()
        else:
            encoded.encode()
            assert "\0" not in encoded
        attempt(bench.codec.python, type, value)


REFUSED: list[tuple[str, Any, str]] = [
    ("int2", 2**15, "v"),
    ("int4", True, "v"),
    ("int4", 1.5, "v"),
    ("int8", "9223372036854775808", "v"),
    ("int8", "x", "v"),
    ("oid", -1, "v"),
    ("numeric", True, "v"),
    ("bool", 1, "v"),
    ("bool", "maybe", "v"),
    ("text", True, "v"),
    ("text", b"a", "v"),
    ("text", ["a"], "v"),
    ("text", {"a": 1}, "v"),
    ("text", "a\0b", "v"),
    ("text", "\udfff", "v"),
    ("text", float("nan"), "v"),
    ("date", 20261121, "v"),
    ("uuid", 5, "v"),
    ("bytea", "text", "v"),
    ("bytea", "\\xzz", "v"),
    ("bytea", "\0*", "v"),
    ("jsonb", float("nan"), "v"),
    ("jsonb", {"a": [1, "\0"]}, "v.a.1"),
    ("jsonb", {"a": {1: 2}}, "v.a.1"),
    ("jsonb", [b"a"], "v.0"),
    ("int4[]", [1, "x"], "v.1"),
    ("int4[]", [[1, 2], [3]], "v.1"),
    ("int4[]", [1, [2]], "v.1"),
    ("int4[]", [[1], 2], "v.1"),
    ("int4[]", 5, "v"),
    ("int4[]", "1,2", "v"),
    ("pair", {"a": 1, "b": 2}, "v.b"),
    ("pair", {"a": "x"}, "v.a"),
    ("pair[]", [{"a": "x"}], "v.0.a"),
    ("pair", [1], "v"),
    ("pair", 5, "v"),
    ("kept", {"secret": "x"}, "v.secret"),
    ("outer_", {"ps": [{"d": 5}]}, "v.ps.0.d"),
]


@pytest.mark.parametrize(("name", "value", "path"), REFUSED)
def test_value_of_the_wrong_type_is_refused_with_its_path(
    bench: Bench, name: str, value: Any, path: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        bench.codec.encode(bench.type(name), value, "v")
    assert refused.value.details["path"] == path


@pytest.mark.parametrize("name", ["numeric", "jsonb", "text", "float8"])
def test_integer_of_too_many_digits_is_refused(bench: Bench, name: str) -> None:
    """Python does not convert it to a string."""
    with pytest.raises(InvalidArgument, match="too many digits"):
        bench.codec.encode(bench.type(name), 10**5000, "v")


def test_parameters_of_a_statement_are_bound_in_its_order(bench: Bench) -> None:
    """The text of a token is bound unchanged."""
    integer, text = bench.type("int4"), bench.type("text")
    bounds = [Bound(1, text, "b"), Bound(0, integer, "a"), Bound(2, integer, "c", raw=True)]
    assert bench.codec.parameters(bounds, [5, "x", "7"]) == ["x", "5", "7"]
    assert bench.codec.parameters(bounds, [None, None, None]) == [None, None, None]
    for tampered in (7, "\0"):
        with pytest.raises(InvalidArgument) as refused:
            bench.codec.parameters(bounds, [5, "x", tampered])
        assert refused.value.details["path"] == "c"


HSTORES: list[dict[str, str | None]] = [
    {},
    {"a": "1", "b": None},
    {'"': "\\", "": "", "a=>b": ", ", "ü": "NULL", "\x85": "\n"},
]


@pytest.mark.parametrize("value", HSTORES)
def test_hstore_with_the_extension_is_a_dict(bench: Bench, value: dict[str, str | None]) -> None:
    """Of strings and nulls, if the server has the extension."""
    connection = bench.cursor.connection
    with connection.cursor() as cursor:
        try:
            cursor.execute("CREATE EXTENSION IF NOT EXISTS hstore")
        except psycopg2.Error:
            missing("the tests of hstore need the extension on the server")
    known = Bench(connection, catalog_txn(connection, ("public",), 2))
    assert known.back("hstore", value) == value
    assert known.back("hstore[]", [value, None]) == [value, None]
    assert known.back("hstore", 'a=>1, "b"=>NULL') == {"a": "1", "b": None}
    assert known.codec.python(known.type("hstore"), value, "v") == value
    for wrong, path in (({"a": 1}, "v.a"), ({"a": "\0"}, "v.a"), (5, "v"), ({1: "a"}, "v.1")):
        with pytest.raises(InvalidArgument) as refused:
            known.codec.encode(known.type("hstore"), wrong, "v")
        assert refused.value.details["path"] == path


@pytest.mark.parametrize("name", ROUND)
def test_wire_value_has_a_python_form(bench: Bench, name: str) -> None:
    """The codec encodes Python's form as the same value."""
    for value in ROUND[name]:
        python = bench.codec.python(bench.type(name), value, "v")
        back = bench.back(name, python)
        assert back == value or name == "json"
