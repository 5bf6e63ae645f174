"""
Composite values with hidden fields: no call reveals a hidden field.
"""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from service.errors import DatabaseRefused, InvalidArgument
from tests.conftest import execute
from tests.db.dispatchers import ANYONE, DirectCaller
from tests.deferreds import failure_of

SCHEMA = """
CREATE TABLE people (id int PRIMARY KEY, name text, secret text);
COMMENT ON COLUMN people.secret IS '@hidden';
CREATE TYPE pair AS (who people, n int);
CREATE DOMAIN somebody AS people;
CREATE TABLE visits (
    id int PRIMARY KEY, who people, friends people[], duo pair, anyone somebody, host int);
CREATE TABLE hosts (id int PRIMARY KEY);
ALTER TABLE visits ADD FOREIGN KEY (host) REFERENCES hosts;
INSERT INTO hosts VALUES (1);
INSERT INTO people VALUES (1, 'Ada', 'xyzzy'), (2, 'Bob', 'plugh');
INSERT INTO visits
    SELECT id, p, ARRAY[p], (p, id)::pair, p, 1 FROM people p;
CREATE FUNCTION greeted(p people) RETURNS text STABLE
    LANGUAGE sql AS 'SELECT concat(p.name, p.secret)';
CREATE TABLE vault (code text, "to" int); COMMENT ON TABLE vault IS '@hidden';
INSERT INTO vault VALUES ('xyzzy', 1);
CREATE FUNCTION told() RETURNS record STABLE LANGUAGE sql
    AS 'SELECT 1 AS n, p, ARRAY[(p, 2)::pair] AS pairs, v FROM people p, vault v WHERE p.id = 1';
CREATE FUNCTION all_told() RETURNS SETOF record STABLE LANGUAGE sql
    AS 'SELECT p.*, ROW(p) AS more FROM people p ORDER BY id';
CREATE FUNCTION some_told() RETURNS SETOF record STABLE LANGUAGE sql
    AS 'SELECT p.* FROM people p ORDER BY id';
CREATE FUNCTION unknown(OUT r record) STABLE LANGUAGE sql AS 'SELECT p FROM people p LIMIT 1';
CREATE FUNCTION unknowns(OUT n int, OUT r record) RETURNS SETOF record STABLE LANGUAGE sql
    AS 'SELECT id, p FROM people p';
CREATE PROCEDURE unknown_too(OUT r record) LANGUAGE plpgsql
    AS 'BEGIN SELECT p INTO r FROM people p LIMIT 1; END';
CREATE FUNCTION guests() RETURNS TABLE (who people, n int) STABLE
    LANGUAGE sql AS 'SELECT p, id FROM people p ORDER BY id';
"""


ADA = {"id": 1, "name": "Ada"}
ROW = {"id": 1, "who": ADA, "friends": [ADA], "duo": {"who": ADA, "n": 1}, "anyone": ADA, "host": 1}


@pytest_twisted.ensureDeferred
async def test_value_with_a_hidden_field_is_returned_without_it(db: DirectCaller) -> None:
    """Its other fields can be used like columns."""
    assert await db.call("visits.get", 1) == ROW
    found = await db.call("hosts.find", embed={"visits": {"limit": 1}})
    assert found["rows"] == [{"id": 1, "visits": [ROW]}]
    fields = ["who->name", "first:friends->0->>name", "inner:duo->who->name", "of:anyone->id"]
    assert await db.call("visits.get", 1, select=fields) == {
        "name": "Ada", "first": "Ada", "inner": "Ada", "of": 1,
    }  # fmt: skip
    query = {"where": {"duo->who->>name": "Bob"}, "order": ["-who->id"], "select": ["id"]}
    assert (await db.call("visits.find", **query))["rows"] == [{"id": 2}]
    assert await db.call("visits.count", where={"who": {"is": "not null"}}) == 2
    assert await db.call("visits.aggregate", {"n": {"count": "who"}, "m": {"max": "who->>name"}}) == [
        {"n": 2, "m": "Bob"}
    ]  # fmt: skip
    (found,) = await db.call("fn.guests.aggregate", measures={"all": {"array_agg": "who"}})
    assert found["all"][0] == ADA


WAYS: list[tuple[str, dict[str, Any], str]] = [
    *(("visits.find", {"select": [item]}, "select.0") for item in (
        "who->secret", "who->>secret", "friends->0->secret", "duo->who->>secret", "duo->who",
        "duo->>who", "anyone->secret", "friends->0", "friends->>0", "who::text", "friends::text",
        "duo::text", "anyone::text", "who->0", "who->'secret'", 'who->"secret"')),
    *(("visits.find", {"where": {"who": {operator: "(1,Ada,xyzzy)"}}}, "where.who")
      for operator in ("eq", "neq", "gt", "isdistinct", "like", "ilike", "match", "fts")),
    ("visits.find", {"where": {"who": {"in": ["(1,Ada,xyzzy)"]}}}, "where.who"),
    ("visits.find", {"where": {"friends": {"cs": ["(1,Ada,xyzzy)"]}}}, "where.friends"),
    ("visits.find", {"where": {"who->>secret": "xyzzy"}}, "where.who->>secret"),
    ("visits.find", {"where": {"who->secret": {"is": "null"}}}, "where.who->secret"),
    ("visits.find", {"where": {"duo->who": {"cs": {"secret": "xyzzy"}}}}, "where.duo->who"),
    ("hosts.find", {"where": {"visits.who": "(1,Ada,xyzzy)"}}, "where.visits.who"),
    ("visits.find", {"order": ["who"]}, "order.0"),
    ("visits.find", {"order": ["-duo->who->secret"]}, "order.0"),
    ("visits.find", {"distinct": True, "select": ["who"]}, "select.0"),
    ("visits.find", {"distinct": ["who"]}, "distinct.0"),
    ("visits.aggregate", {"measures": {"m": {"max": "who"}}}, "measures.m.max"),
    ("visits.aggregate", {"measures": {"m": {"count": "who", "distinct": True}}},
     "measures.m.count"),
    ("visits.aggregate", {"measures": {"m": {"array_agg": "who", "cast": "text"}}},
     "measures.m.array_agg"),
    ("visits.aggregate", {"measures": {"m": {"string_agg": "who::text"}}},
     "measures.m.string_agg"),
    ("visits.aggregate", {"measures": {"n": {"count": "*"}}, "group": ["who"]}, "group.0"),
    ("hosts.find", {"embed": {"visits": {"measures": {"m": {"min": "duo"}}}}},
     "embed.visits.measures.m.min"),
    ("hosts.find", {"embed": {"visits": {"order": ["who"]}}}, "embed.visits.order.0"),
    ("visits.update", {"key": 1, "changes": {"host": 1}, "expect": {"who": "(1,Ada,xyzzy)"}},
     "expect.who"),
    ("fn.guests.find", {"select": ["who->secret"]}, "select.0"),
    ("fn.guests.find", {"where": {"who": {"gt": "(1,Ada,x)"}}}, "where.who"),
    ("visits.export", {}, None),
    ("fn.guests.export", {}, None),
    ("fn.guests.find", {"distinct": True}, None),
    ("visits.export", {"select": ["friends"]}, "select.0"),
    ("hosts.export", {"embed": {"visits": {"select": ["duo"]}}}, "embed.visits.select.0"),
    ("hosts.export", {"embed": {"visits": {"measures": {"m": {"array_agg": "who"}}}}}, None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kwargs", "path"), WAYS)
@pytest_twisted.ensureDeferred
async def test_hidden_field_by_any_path_is_not_returned(
    db: DirectCaller, name: str, kwargs: dict[str, Any], path: str | None
) -> None:
    """The field is unknown, and expressions that depend on the entire value are refused."""
    parts: list[Any] = []

    async def take(part: Any) -> None:
        parts.append(part)

    refused = await failure_of(db.dispatcher.answer(name, [], kwargs, ANYONE, progress=take))
    assert isinstance(refused, InvalidArgument), refused
    assert not parts
    if path is not None:
        assert refused.details["path"].startswith(path)
    assert "xyzzy" not in f"{refused} {refused.details}".replace("(1,Ada,xyzzy)", "")


EVIL = "(9,Eve,evil)"


@pytest.mark.parametrize(
    ("name", "kwargs", "path"),
    [
        ("visits.create", {"values": {"id": 9, "who": EVIL}}, "values.who"),
        ("visits.create", {"values": {"id": 9, "friends": f'{{"{EVIL}"}}'}}, "values.friends"),
        ("visits.create", {"values": {"id": 9, "friends": [EVIL]}}, "values.friends.0"),
        ("visits.create", {"values": {"id": 9, "duo": {"who": EVIL}}}, "values.duo.who"),
        ("visits.create", {"values": {"id": 9, "duo": f'("{EVIL}",1)'}}, "values.duo"),
        ("visits.create", {"values": {"id": 9, "anyone": EVIL}}, "values.anyone"),
        ("visits.update", {"key": 1, "changes": {"who": EVIL}}, "changes.who"),
        ("visits.import", {"rows": [{"id": 9, "who": EVIL}]}, "rows.0.who"),
        ("visits.import", {"csv": f'id,who\n9,"{EVIL}"\n'}, "csv.who"),
        ("visits.import", {"csv": '9,"{}"\n', "columns": ["id", "friends"]}, "columns.1"),
        ("fn.greeted", {"p": EVIL}, "p"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_text_of_a_value_with_a_hidden_field_is_refused(
    db: DirectCaller, name: str, kwargs: dict[str, Any], path: str
) -> None:
    """PostgreSQL's text form of such a value would set the hidden field."""
    refused = await failure_of(db.call(name, **kwargs))
    assert isinstance(refused, InvalidArgument), refused
    assert refused.details["path"] == path


@pytest_twisted.ensureDeferred
async def test_value_given_by_parts_is_written_without_the_hidden_field(
    db: DirectCaller, dsn: str
) -> None:
    """A value given as a dict or list is written; the hidden field is null."""
    new = {"id": 9, "who": ADA, "friends": [ADA], "duo": {"who": ADA, "n": 1}, "anyone": ADA}
    assert await db.call("visits.create", {**new, "host": 1}) == {**ROW, "id": 9}
    found = execute(dsn, "DELETE FROM visits WHERE id = 9 RETURNING (who).secret IS NULL")
    assert found == [(True,)]
    assert await db.call("fn.greeted", p=ADA) == "Ada"


@pytest_twisted.ensureDeferred
async def test_export_as_json_lines_lacks_hidden_fields(db: DirectCaller) -> None:
    """JSON lines are encoded by the codec, as all results are."""
    parts: list[Any] = []

    async def take(part: Any) -> None:
        parts.append(part)

    await db.dispatcher.answer("visits.export", [], {"format": "ndjson"}, ANYONE, progress=take)
    assert "Ada" in parts[0]
    assert "xyzzy" not in parts[0]


@pytest_twisted.ensureDeferred
async def test_record_of_no_known_type_is_returned_without_hidden_fields(db: DirectCaller) -> None:
    """Rows inside of an untyped record, too, have no hidden fields."""
    bob = {"id": 2, "name": "Bob"}
    told = {"n": 1, "p": ADA, "pairs": [{"who": ADA, "n": 2}], "v": {}}
    assert await db.call("fn.told") == told
    assert await db.call("fn.some_told") == [ADA, bob]
    for call in (
        db.call("fn.unknown"),
        db.call("fn.unknowns"),
        db.call("fn.unknowns.find"),
        db.call("fn.unknowns.find", select=["r::text"]),
        db.call("fn.unknowns.find", form="json"),
        db.call("fn.unknowns.aggregate", measures={"all": {"array_agg": "r"}}),
        db.call("fn.unknowns.aggregate", measures={"all": {"string_agg": "r::text"}}),
        db.call("fn.unknowns.aggregate", measures={"all": {"max": "r"}}),
        db.call("fn.unknowns.aggregate", group=["r"], measures={"n": {"count": "*"}}),
        db.call("fn.unknown_too"),
    ):
        refused = await failure_of(call)
        assert isinstance(refused, DatabaseRefused | InvalidArgument), refused
        assert "xyzzy" not in f"{refused} {refused.details}"
    assert [row["more"] for row in await db.call("fn.all_told")] == [{"f1": ADA}, {"f1": bob}]


@pytest_twisted.ensureDeferred
async def test_array_type_that_no_column_has_is_known(db: DirectCaller) -> None:
    """The type of an array that only an aggregate returns is known, too."""
    for column, value in (("duo", {"who": ADA, "n": 1}), ("anyone", ADA), ("friends", [ADA])):
        measures = {"all": {"array_agg": column}}
        (found,) = await db.call("visits.aggregate", measures, where={"id": 1})
        assert found["all"] == [value]
        refused = await failure_of(db.call("visits.aggregate", measures, form="json"))
        assert isinstance(refused, InvalidArgument)
