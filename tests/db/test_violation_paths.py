"""
The row that a refusal of several rows names: the `path` of a violated constraint, for each kind of write.
"""

from __future__ import annotations

from threading import current_thread
from typing import Any

import pytest
import pytest_twisted

from service.api.roles import Roles
from service.db import error_paths, sqlstate
from service.db.error_paths import point_at_row
from service.errors import ServiceError
from service.request.arguments import Caller
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller
from tests.deferreds import failure_of

SCHEMA = """
CREATE DOMAIN odd AS int CHECK (VALUE % 2 = 1);
CREATE DOMAIN word AS varchar(9);
CREATE TYPE color AS ENUM ('red', 'green', 'null');
CREATE TABLE tops (id int PRIMARY KEY, name text UNIQUE);
CREATE TABLE kin (id int PRIMARY KEY, name text UNIQUE, up_id int REFERENCES kin, t text,
    made text GENERATED ALWAYS AS (upper(t)) STORED UNIQUE);
INSERT INTO kin (id, name, up_id, t) VALUES (1, 'a', NULL, NULL), (2, 'b', 1, NULL), (4, 'c', 2, 'z');
CREATE TABLE things (
    id int PRIMARY KEY, name text UNIQUE, up_id int REFERENCES things, top_id int REFERENCES tops,
    n int CHECK (n > 0), need text NOT NULL DEFAULT 'x', odd odd, word word, color color, day date,
    flag boolean, a int, b text, made text GENERATED ALWAYS AS (b || '!') STORED, UNIQUE (a, b));
CREATE TABLE late (id int PRIMARY KEY, up_id int REFERENCES late DEFERRABLE INITIALLY DEFERRED,
    name text, UNIQUE (name) DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE partly (id serial PRIMARY KEY, a int, b int, CHECK (b <> 13));
CREATE UNIQUE INDEX partly_a ON partly (a) WHERE b > 0;
CREATE UNIQUE INDEX partly_of ON partly (abs(b));
CREATE TABLE stays (room int, span int4range,
    EXCLUDE USING gist (int4range(room, room, '[]') WITH &&, span WITH &&));
CREATE TABLE rooms (room int, at int, EXCLUDE USING btree (room WITH =, at WITH =));
CREATE TABLE marks (text text, EXCLUDE USING btree (text WITH =));
CREATE TABLE low (name text PRIMARY KEY, n int);
CREATE FUNCTION lower_name() RETURNS trigger LANGUAGE plpgsql
    AS 'BEGIN NEW.name = lower(NEW.name); RETURN NEW; END';
CREATE TRIGGER low BEFORE INSERT ON low FOR EACH ROW EXECUTE FUNCTION lower_name();
CREATE TABLE noted (name text PRIMARY KEY);
CREATE TABLE notes (id serial, name text PRIMARY KEY);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql
    AS 'BEGIN INSERT INTO notes (name) VALUES (left(NEW.name, 1)); RETURN NULL; END';
CREATE TRIGGER note AFTER INSERT ON noted FOR EACH ROW EXECUTE FUNCTION note();
CREATE VIEW swapped AS SELECT id, a AS n, n AS a FROM things;
CREATE TABLE parted (id int PRIMARY KEY, n int CONSTRAINT pos CHECK (n > 0)) PARTITION BY RANGE (id);
CREATE TABLE parted_low (n int CONSTRAINT pos CHECK (n > 0), id int NOT NULL);
ALTER TABLE parted ATTACH PARTITION parted_low FOR VALUES FROM (0) TO (10);
CREATE TABLE parted_high PARTITION OF parted FOR VALUES FROM (10) TO (20);
CREATE TRIGGER low BEFORE INSERT ON parted_high FOR EACH ROW WHEN (false) EXECUTE FUNCTION lower_name();
CREATE TABLE folded (k int DEFAULT 1, v float8) PARTITION BY LIST (abs(k));
CREATE TABLE folded_five PARTITION OF folded FOR VALUES IN (5);
CREATE TABLE halves (k numeric, n int) PARTITION BY RANGE (k);
CREATE TABLE halves_low PARTITION OF halves FOR VALUES FROM (0) TO (10);
CREATE TABLE halves_high PARTITION OF halves (n NOT NULL) FOR VALUES FROM (10) TO (20);
CREATE TABLE "tops (old)" (id int PRIMARY KEY);
CREATE TABLE bottoms (id int PRIMARY KEY, top_id int REFERENCES "tops (old)");
CREATE TABLE words (a text, b text, PRIMARY KEY (a, b));
CREATE TABLE said (id int PRIMARY KEY, a text, b text, FOREIGN KEY (a, b) REFERENCES words);
INSERT INTO words VALUES ('x', 'y, z');
CREATE TABLE pairs (id int PRIMARY KEY, a int DEFAULT 1, b int, UNIQUE (a, b));
INSERT INTO pairs VALUES (1, 5, 3), (2, 6, 2), (9, 1, 3);
INSERT INTO tops VALUES (1, 'one'), (5, 'two');
INSERT INTO things (id, name, a, b, n, top_id)
    VALUES (1, 'one', 1, 'x, y', 1, 1), (2, 'two', 2, 'null', 2, NULL);
INSERT INTO partly (a, b) VALUES (1, 1), (1, -2), (2, 8);
INSERT INTO stays VALUES (1, '[1,9)');
INSERT INTO rooms VALUES (1, 1);
INSERT INTO marks VALUES ('x (text)=(y'), ('(text)=(text)=('), ('b) (text)=(');
INSERT INTO low VALUES ('ada');
INSERT INTO noted VALUES ('s');
INSERT INTO late VALUES (1, NULL, 'one');
INSERT INTO parted VALUES (1, 1);
"""

GOOD = {"id": 100}
POINTED: list[tuple[str, Any, str | None]] = [
    # unique
    ("things", [GOOD, {"id": 1}], "values.1.id"),
    ("things", [GOOD, {"id": "2"}, {"id": 101}], "values.1.id"),
    ("things", [{"id": 7, "name": "a"}, {"id": 8, "name": "two"}, {"id": 9}], "values.1.name"),
    ("things", [{"id": 7, "name": "a"}, {"id": 8, "name": "b"}, {"id": 9, "name": "a"}], "values.2.name"),
    ("things", [{"id": 7, "a": 1, "b": "x"}, {"id": 8, "a": 1, "b": "x, y"}], "values.1"),
    ("things", [{"id": 7, "a": 2, "b": None}, {"id": 8, "a": 2, "b": "null"}], "values"),
    # spelled otherwise than by PostgreSQL
    ("things", [{"id": "007"}, {"id": 7}], "values"),
    # "x, y, z" may be the text of either
    ("words", [{"a": "x", "b": "y, z"}, {"a": "x, y", "b": "z"}], "values"),
    ("words", [{"a": "x, y", "b": "z"}, {"a": "x", "b": "y, z"}], "values"),
    ("words", [{"a": "x, y", "b": "u"}, {"a": "x", "b": "y, z"}], "values.1"),
    ("words", [{"a": "x", "b": "y, u"}, {"a": "x, y", "b": "u"}, {"a": "x", "b": "y, u"}], "values"),
    # foreign keys
    ("said", [{"id": 1, "a": "x", "b": "y, z"}, {"id": 2, "a": "x, y", "b": "z"}], "values"),
    ("said", [{"id": 1, "a": "x", "b": "y, z"}, {"id": 2, "a": "x", "b": "y"}], "values.1"),
    ("things", [{"id": 7, "up_id": 8}, {"id": 8, "up_id": 9}, {"id": 10}], "values.1.up_id"),
    ("things", [{"id": 7, "top_id": 1}, {"id": 8, "top_id": 3}, {"id": 9, "top_id": 3}], "values.1.top_id"),
    # null, and checks
    ("things", [{"id": 7, "b": "null"}, {"id": 8, "n": -1}, {"id": 9, "n": 1}], "values.1.n"),
    ("things", [{"id": 7, "n": -1}, {"id": 8, "n": -1}], "values.0.n"),
    ("things", [{"id": 7, "b": "8, 1", "n": 1}, {"id": 8, "b": "x", "n": 0}], "values.1.n"),
    ("things", [{"id": 7, "odd": 1}, {"id": 8, "odd": None}, {"id": 9, "odd": 2}], "values"),
    ("things", [{"id": 7}, {"id": 8, "odd": None}, {"id": 9, "odd": 2}], "values.2.odd"),
    ("things", [{"id": 7, "day": "2020-01-01", "n": 1}, {"id": 8, "day": "2020-01-02", "n": 0}], "values.1.n"),
    # bad values
    ("things", [GOOD, {"id": "1x"}], "values.1.id"),
    ("things", [GOOD, {"id": 2**40}], "values.1.id"),
    ("things", [GOOD, {"id": 7, "day": "x"}], "values.1.day"),
    # partial indexes and indexes on expressions name no row
    ("partly", [{"a": 1, "b": 3}, {"a": 1, "b": -5}], "values"),
    ("partly", [{"a": 5, "b": 3}, {"a": 1, "b": 5}], "values.1"),
    ("partly", [{"a": 5, "b": 3}, {"a": 6, "b": -3}], "values"),
    ("partly", [{"a": 5, "b": 3}, {"a": 6, "b": 13}], "values.1.b"),
    # exclusion
    ("rooms", [{"room": 1, "at": 2}, {"room": 1, "at": 1}], "values.1"),
    ("marks", [{"text": "a"}, {"text": "x (text)=(y"}, {"text": "x"}], "values.1.text"),
    ("marks", [{"text": "a"}, {"text": "(text)=(text)=("}, {"text": "x"}], "values.1.text"),
    ("marks", [{"text": "a"}, {"text": "b) (text)=("}, {"text": "x"}], "values.1.text"),
    ("stays", [{"room": 2, "span": "[1,3)"}, {"room": 1, "span": "[2,3)"}], "values"),
    # triggers
    ("low", [{"name": "Ada"}, {"name": "ada"}], "values"),
    ("noted", [{"name": "x"}, {"name": "sun"}], "values"),
    # a view whose columns have names of other columns of its table
    ("swapped", [{"id": 7, "n": 1, "a": 5}, {"id": 8, "n": 5, "a": 0}], "values"),
    # partitions, with columns in another order and triggers of their own
    ("parted", [{"id": 2, "n": 1}, {"id": 1, "n": 2}], "values"),
    ("parted", [{"id": 2, "n": 1}, {"id": 25, "n": 2}], "values"),
    # partitions by an expression, or with a NOT NULL on one partition
    ("folded", [{"k": 7, "v": 1.5}, {"k": "05", "v": 2.5}], "values"),
    ("halves", [{"k": 2.5, "n": None}, {"k": 12.5, "n": None}], "values"),
    # the name of a table is not part of its key
    ("bottoms", [{"id": 1, "top_id": 3}, {"id": 2, "top_id": "03"}], "values"),
    # deferred constraints are checked at COMMIT
    ("late", [{"id": 7, "up_id": 8}, {"id": 8, "up_id": 9}], None),
    ("late", [{"id": 7, "name": "a"}, {"id": 8, "name": "one"}], None),
    # a single row is not in a list
    ("things", {"id": 1}, None),
    ("things", [{"id": 1}], "values.0.id"),
]  # fmt: skip


@pytest.mark.parametrize(("relation", "rows", "path"), POINTED, ids=str)
@pytest_twisted.ensureDeferred
async def test_refused_bulk_create_has_the_path_of_its_row(
    db: DirectCaller, relation: str, rows: Any, path: str | None
) -> None:
    refused = await failure_of(db.call(f"{relation}.create", rows))
    assert isinstance(refused, ServiceError), refused
    assert refused.details.get("path") == path, refused.details


CALLS: list[tuple[str, list[Any], dict[str, Any], str | None]] = [
    # existing rows are updated in some columns only
    ("things.upsert", [[{"id": 7, "name": "a"}, {"id": 2, "name": "one"}]], {}, "values.1.name"),
    ("things.upsert", [[{"id": 1, "name": "uno"}, {"id": 3, "name": "two"}]], {}, "values.1.name"),
    ("things.upsert", [[{"id": 2, "n": 1, "name": "b"}, {"id": 7, "name": "one"}]],
     {"update": ["n"]}, "values"),
    ("things.upsert", [[{"id": 2, "name": "b"}, {"id": 7, "name": "one"}]],
     {"update": {"name": "one"}}, "values"),
    ("things.upsert", [[{"id": 2, "n": 5}, {"id": 1, "name": "two"}]], {"update": {"name": "one"}}, "values"),
    ("things.upsert", [[{"id": 2, "b": "x"}, {"id": 1, "b": "y"}]], {"update": {"n": {"$add": -1}}},
     "values.1"),
    ("things.upsert", [[{"id": 2, "n": 5}, {"id": 7, "n": 6}]], {"update": {"n": -5}}, "values.0"),
    ("things.upsert", [[{"id": 1, "name": "uno"}]], {"update": {"name": "two"}}, "values.0"),
    ("things.upsert", [{"id": 1, "name": "two"}], {}, None),
    # existing rows that are left unchanged
    ("things.upsert", [[{"id": 1, "up_id": 99}, {"id": 8, "up_id": 99}]], {"update": []}, "values"),
    ("things.upsert", [[{"id": 1, "up_id": 98}, {"id": 8, "up_id": 99}]], {"update": []}, "values.1.up_id"),
    ("things.upsert", [{"id": 8, "up_id": 99}], {}, None),
    ("things.upsert", [[{"id": 9}, {"id": 8, "up_id": 99}]], {}, "values.1.up_id"),
    # read first: one statement for existing rows, one for new ones
    ("things.upsert", [[{"id": 9}, {"id": 1, "n": 5}, {"id": 8, "top_id": 99}, {"id": 2, "top_id": 1}]],
     {"returning": "both"}, "values.2.top_id"),
    ("things.upsert", [[{"id": 9}, {"id": 1, "n": 5}, {"id": 8}, {"id": 2, "top_id": 98}]],
     {"returning": "both"}, "values.3.top_id"),
    ("things.upsert", [{"id": 2, "top_id": 98}], {"returning": "both"}, None),
    # updates
    ("things.update", [], {"rows": [{"id": 1, "n": 3}, {"id": 2, "n": -3}]}, "rows.1.n"),
    ("things.update", [], {"rows": [{"id": 1, "name": "two"}, {"id": 2, "n": 4}]}, "rows.0.name"),
    ("things.update", [], {"rows": [{"id": 1, "name": "b"}, {"id": 2, "name": "b"}]}, "rows"),
    ("things.update", [], {"rows": [{"id": 1, "top_id": 1}, {"id": 2, "top_id": 9}]}, "rows.1.top_id"),
    ("things.update", [], {"rows": [{"id": 1, "n": {"$add": 1}}, {"id": 2, "n": {"$add": -5}}]}, "rows.1.n"),
    ("things.update", [], {"rows": [{"id": 1, "n": {"$add": -1}}, {"id": 2, "n": 1}]}, "rows.0.n"),
    ("things.update", [], {"rows": [{"id": 1, "odd": 1}, {"id": 2, "odd": 2}]}, "rows"),
    ("pairs.update", [], {"rows": [{"id": 1, "a": {"$default": True}},
        {"id": 2, "a": {"$default": True}, "b": {"$add": 5}}]}, "rows"),
    # a partial index gets a row whose key does not change
    ("partly.update", [], {"rows": [{"id": 2, "b": 4}, {"id": 3, "a": 1}]}, "rows"),
    # the old row that others reference is not the one that gets its key
    ("tops.update", [], {"rows": [{"name": "two", "id": 11}, {"name": "one", "id": 12}], "by": ["name"]}, "rows"),
    ("kin.update", [], {"rows": [{"name": "b", "id": 20}, {"name": "c", "id": 21}], "by": ["name"]}, None),
    # columns of a generated column
    ("kin.update", [], {"rows": [{"id": 1, "t": "q"}, {"id": 2, "t": "z"}]}, "rows"),
    # imports, which name a row by its line
    ("things.import", [[GOOD, {"id": 1}]], {}, "rows.1.id"),
    ("things.import", [[GOOD, {"id": 7, "n": -1}]], {}, "rows.1.n"),
    ("things.import", [[GOOD, {"id": "x"}]], {}, "rows.1.id"),
    ("things.import", [[[3, "a"], [4, "two"]]], {"columns": ["id", "name"]}, "rows.1.name"),
    ("things.import", [[GOOD, {"id": 7, "top_id": 9}]], {}, "rows.1.top_id"),
    ("things.import", [[{"id": 8, "name": "u"}, {"id": 7, "name": "one"}]], {"on_conflict": ["id"]},
     "rows.1.name"),
    ("things.import", [[{"id": 1, "top_id": 8}, {"id": 7, "top_id": 9}]],
     {"on_conflict": ["id"], "update": []}, "rows.1.top_id"),
    ("things.import", [], {"csv": "id,name\n3,a\n4,two\n"}, None),
    # nested, and linked
    ("tops.create", [[{"id": 7, "things": [{"id": 20}]}, {"id": 8, "things": [{"id": 21}, {"id": 22, "n": 0}]}]],
     {}, "values.1.things.1.n"),
    ("tops.create", [{"id": 7, "things": [{"$link": 1}, {"id": 22, "name": "two"}]}], {}, "values.things.1.name"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "args", "kwargs", "path"), CALLS, ids=str)
@pytest_twisted.ensureDeferred
async def test_refused_write_of_rows_has_the_path_of_its_row(
    db: DirectCaller, name: str, args: list[Any], kwargs: dict[str, Any], path: str | None
) -> None:
    refused = await failure_of(db.call(name, *args, **kwargs))
    assert isinstance(refused, ServiceError), refused
    assert refused.details.get("path") == path, refused.details


@pytest_twisted.ensureDeferred
async def test_cause_among_many_rows_is_searched_in_a_thread(
    db: DirectCaller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each kind of write; few rows are searched in the reactor's thread."""
    threads: list[str] = []

    def seen(*args: Any) -> None:
        threads.append(current_thread().name)
        point_at_row(*args)

    monkeypatch.setattr(sqlstate, "point_at_row", seen)
    rows = [{"id": 1000 + at} for at in range(error_paths.MANY)]
    broken = {"id": 1}
    updates = [{"id": 2, "n": 1}, *({**row, "n": 1} for row in rows), {"id": 1, "n": 0}]
    for name, args, kwargs, path in [
        ("things.create", [[*rows, broken]], {}, f"values.{len(rows)}.id"),
        ("things.import", [[*rows, broken]], {}, f"rows.{len(rows)}.id"),
        ("things.upsert", [[*rows, {"id": 1, "n": 0}]], {}, f"values.{len(rows)}.n"),
        ("things.update", [], {"rows": updates}, f"rows.{len(updates) - 1}.n"),
        ("transaction", [], {"operations": [{"call": "things.create", "args": [[*rows, broken]]}]}, f"values.{len(rows)}.id"),
    ]:  # fmt: skip
        refused = await failure_of(db.call(name, *args, **kwargs))
        assert isinstance(refused, ServiceError), refused
        assert refused.details["path"] == path
    assert set(threads) == {"pg-rows"}
    threads.clear()
    await failure_of(db.call("things.create", [GOOD, broken]))
    assert threads == ["MainThread"]


HIDDEN = """
CREATE ROLE br_guest;
CREATE TABLE codes (id int PRIMARY KEY, code text, n int CHECK (n > 0), secret int DEFAULT 5,
    CONSTRAINT of_secret UNIQUE (code, secret));
CREATE TABLE few (id int PRIMARY KEY, a text, n int CHECK (n > 0));
GRANT SELECT (id, a), INSERT, UPDATE ON few TO br_guest;
GRANT SELECT (id, code, n), INSERT (id, code, n), UPDATE (id, code, n) ON codes TO br_guest;
CREATE TABLE owned (id int PRIMARY KEY, a text UNIQUE, n int CHECK (n > 0));
ALTER TABLE owned ENABLE ROW LEVEL SECURITY;
CREATE POLICY see ON owned FOR SELECT USING (id < 10);
CREATE POLICY make ON owned FOR INSERT WITH CHECK (id < 20);
GRANT ALL ON owned TO br_guest;
INSERT INTO codes VALUES (1, 'a', 1, 5);
INSERT INTO owned VALUES (11, 'hidden', 1);
"""
ROLES = Roles({"guest": "br_guest"})
GUEST = Caller(7, "g", "guest", "realm1")


@pytest.mark.serving(roles=ROLES)
@pytest_twisted.ensureDeferred
async def test_error_names_rows_only_by_columns_that_the_caller_may_read(
    db: DirectCaller, dsn: str
) -> None:
    """With column privileges, only these columns are shown; under policies, none."""
    execute(dsn, HIDDEN)
    await db.catch_up()
    for name, rows, path in [
        ("codes", [{"id": 2, "code": "b"}, {"id": 3, "code": "a"}], None),
        ("codes", [{"id": 2, "code": "b"}, {"id": 3, "n": 0}], "values.1.n"),
        (
            "codes",
            [{"id": 2, "code": "5, 5", "n": 1}, {"id": 5, "code": "5", "n": -5}],
            "values.1.n",
        ),
        ("few", [{"id": 2, "a": "b", "n": 1}, {"id": 3, "a": "c", "n": 0}], "values.1.n"),
        ("few", [{"id": 2, "a": "id, a) = (3, c"}, {"id": 3, "a": "c", "n": 0}], "values.1.n"),
        ("owned", [{"id": 2, "a": "b"}, {"id": 3, "a": "hidden"}], None),
        ("owned", [{"id": 2, "a": "b"}, {"id": 3, "n": 0}], None),
    ]:
        refused = await failure_of(db.call_as(GUEST, f"{name}.create", rows))
        assert isinstance(refused, ServiceError), refused
        assert refused.details.get("path") == path, (rows, refused.details)
        assert "secret" not in str(refused.details)
