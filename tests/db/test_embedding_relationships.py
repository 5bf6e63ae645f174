"""Which of several relationships an embed means: through views, by names, by `via`."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from service.errors import InvalidArgument
from tests.db.dispatchers import DirectCaller
from tests.deferreds import failure_of

SCHEMA = """
CREATE SCHEMA private;
CREATE TABLE private.pupils (id int PRIMARY KEY, name text);
CREATE TABLE private.clubs (id int PRIMARY KEY, title text);
CREATE TABLE private.joined (
    pupil int REFERENCES private.pupils, club int REFERENCES private.clubs,
    since date, PRIMARY KEY (pupil, club));
CREATE VIEW pupils AS SELECT * FROM private.pupils;
CREATE VIEW clubs AS SELECT id AS club_id, title FROM private.clubs;
CREATE VIEW joined AS SELECT * FROM private.joined;
CREATE TABLE rooms (id int PRIMARY KEY, name text);
CREATE TABLE lessons (
    id int PRIMARY KEY, room int CONSTRAINT lessons_in REFERENCES rooms, name text);
CREATE TABLE tools (id int PRIMARY KEY, name text, home int REFERENCES rooms);
CREATE TABLE bikes (id int PRIMARY KEY, name text, home int REFERENCES rooms);
CREATE TABLE lent (
    home int REFERENCES rooms, bike int REFERENCES bikes, PRIMARY KEY (home, bike));
CREATE TABLE kept (room int REFERENCES rooms, tool int REFERENCES tools, PRIMARY KEY (room, tool));
CREATE VIEW kept_low AS SELECT room, tool FROM kept WHERE room < 2;
CREATE VIEW fittings AS SELECT * FROM tools;
CREATE TABLE follows (
    who int CONSTRAINT follows_who REFERENCES rooms,
    whom int CONSTRAINT follows_whom REFERENCES rooms, PRIMARY KEY (who, whom));
CREATE VIEW twice AS SELECT id, room AS room_one, room AS room_two FROM lessons;
CREATE TABLE private.parts (id int PRIMARY KEY, whole int REFERENCES private.parts, kind text);
CREATE VIEW small AS SELECT p.id, p.whole, w.whole AS upper FROM private.parts p
    JOIN private.parts w ON w.id = p.whole WHERE p.kind = 's';
CREATE VIEW large AS SELECT id, whole FROM private.parts;
INSERT INTO private.pupils VALUES (1, 'Ann'), (2, 'Ben');
INSERT INTO private.clubs VALUES (7, 'chess'), (8, 'choir');
INSERT INTO private.joined VALUES (1, 7, '2026-01-01'), (1, 8, NULL), (2, 8, NULL);
INSERT INTO rooms VALUES (1, 'hall'), (2, 'attic');
INSERT INTO lessons VALUES (1, 1, 'art'), (2, 2, 'maths');
INSERT INTO tools VALUES (1, 'saw', 2), (2, 'file', 2);
INSERT INTO bikes VALUES (1, 'red', 2);
INSERT INTO lent VALUES (1, 1);
INSERT INTO kept VALUES (1, 1), (2, 1), (2, 2);
INSERT INTO follows VALUES (1, 2);
INSERT INTO private.parts VALUES (1, NULL, 'l'), (2, 1, 's'), (3, 2, 's');
"""

NAME = {"select": ["name"]}


WAYS: list[tuple[str, dict[str, Any], Any]] = [
    # the junction is a view, between views
    ("pupils", {"clubs": {"select": ["title"]}}, [["chess", "choir"], ["choir"]]),
    ("clubs", {"pupils": NAME}, [["Ann"], ["Ann", "Ben"]]),
    # a junction table is preferred to its views, which have their own names
    ("tools", {"rooms": {"via": "kept", **NAME}}, [["hall", "attic"], ["attic"]]),
    ("tools", {"rooms": {"via": "kept_low", **NAME}}, [["hall"], []]),
    ("fittings", {"rooms": {"via": "kept_low", **NAME}}, [["hall"], []]),
    # a column of either relation is preferred to a junction's
    ("bikes", {"rooms": {"via": "home", **NAME}}, [["attic"]]),
    ("rooms", {"bikes": {"via": "home", **NAME}}, [[], ["red"]]),
    ("bikes", {"rooms": {"via": "lent", **NAME}}, [["hall"]]),
    # names of an embed are also accepted as "relation"
    ("lessons", {"x": {"relation": "room", **NAME}}, [["hall"], ["attic"]]),
    ("lessons", {"x": {"relation": "lessons_in", **NAME}}, [["hall"], ["attic"]]),
    # one relation twice, by each column of the junction
    ("rooms", {"x": {"relation": "rooms", "via": "whom", **NAME}}, [["attic"], []]),
    ("rooms", {"x": {"relation": "rooms", "via": "follows_who", **NAME}}, [[], ["hall"]]),
    # a column that a view shows twice
    ("twice", {"rooms": {"via": "room_two", **NAME}}, [["hall"], ["attic"]]),
    ("twice", {"room_one": NAME}, [["hall"], ["attic"]]),
    ("rooms", {"twice": {"via": "room_two", "select": ["id"]}}, [[1], [2]]),
    # a junction of a table with itself, by both columns
    ("small", {"whole": {"select": ["id"]}}, [[], [2]]),
    ("small", {"upper": {"select": ["id"]}}, [[], []]),
    ("small", {"large": {"via": "upper", "select": ["id"]}}, [[], [1]]),
]


@pytest.mark.parametrize(("relation", "embed", "expected"), WAYS)
@pytest_twisted.ensureDeferred
async def test_embed_by_any_name_or_via_has_the_rows_of_that_relationship(
    db: DirectCaller, relation: str, embed: dict[str, Any], expected: Any
) -> None:
    found = await db.call(f"{relation}.find", select=[], embed=embed)
    (name,) = embed
    related = [row[name] for row in found["rows"]]
    lists = [each if isinstance(each, list) else [each] if each else [] for each in related]
    assert [[next(iter(row.values())) for row in rows] for rows in lists] == expected


REFUSED: list[tuple[str, dict[str, Any], list[str]]] = [
    ("tools", {"rooms": True}, ["kept", "kept_low", "tools_home_fkey"]),
    ("rooms", {"x": {"relation": "rooms"}}, ["follows_who", "follows_whom"]),
    ("twice", {"rooms": True}, ["room_one", "room_two"]),
    ("tools", {"rooms": {"via": "lessons"}}, ["kept", "kept_low", "tools_home_fkey"]),
]


@pytest.mark.parametrize(("relation", "embed", "candidates"), REFUSED)
@pytest_twisted.ensureDeferred
async def test_candidates_of_a_refused_embed_can_be_embedded(
    db: DirectCaller, relation: str, embed: dict[str, Any], candidates: list[str]
) -> None:
    """Each candidate means one of the relationships."""
    refused = await failure_of(db.call(f"{relation}.find", embed=embed))
    assert isinstance(refused, InvalidArgument)
    assert refused.details["candidates"] == candidates
    (options,) = embed.values()
    for way in candidates:
        given = {} if options is True else options
        named = {next(iter(embed)): {**given, "via": way}}
        assert (await db.call(f"{relation}.find", select=[], embed=named))["rows"]


@pytest.mark.parametrize(("relation", "name"), [("tools", "fittings"), ("fittings", "tools")])
@pytest_twisted.ensureDeferred
async def test_table_and_its_view_by_one_foreign_key_are_not_related(
    db: DirectCaller, relation: str, name: str
) -> None:
    """The foreign key refers to both."""
    refused = await failure_of(db.call(f"{relation}.find", embed={name: True}))
    assert isinstance(refused, InvalidArgument)
    assert refused.details["path"] == f"embed.{name}"
    assert "candidates" not in refused.details
