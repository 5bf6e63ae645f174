"""Embeds: each kind of relationship, each option, in one statement."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from service.describe.document import describe
from service.errors import InvalidArgument
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller
from tests.deferreds import failure_of, until

SCHEMA = """
CREATE SCHEMA app;
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TABLE people (
    id int PRIMARY KEY, name text NOT NULL, boss int CONSTRAINT people_boss REFERENCES people,
    pay numeric(8,2), since timestamptz, photo bytea, moods mood[], prices numeric[]);
CREATE TABLE projects (
    id int PRIMARY KEY, title text, lead int CONSTRAINT projects_lead REFERENCES people,
    helper int CONSTRAINT projects_helper REFERENCES people);
CREATE TABLE members (
    person int REFERENCES people, project int REFERENCES projects, role text,
    PRIMARY KEY (person, project));
CREATE TABLE badges (person int PRIMARY KEY REFERENCES people, code uuid);
CREATE TABLE places (country text, city text, note text, PRIMARY KEY (country, city));
CREATE TABLE visits (
    id int PRIMARY KEY, country text, city text, person int REFERENCES people,
    FOREIGN KEY (country, city) REFERENCES places);
CREATE TABLE app.letters (id int PRIMARY KEY, sender int REFERENCES public.people, doc jsonb);
CREATE TABLE app."odd name.x" (id int PRIMARY KEY, person int REFERENCES public.people);
CREATE VIEW staff AS SELECT p.id AS person_id, p.name AS called, p.boss FROM people p;
CREATE VIEW app.staff2 AS SELECT person_id AS id2, called FROM staff;
CREATE VIEW plans AS SELECT pr.id, pr.title, pr.lead, (SELECT max(id) FROM people) AS top
    FROM projects pr JOIN people l ON l.id = pr.lead;
CREATE MATERIALIZED VIEW seen AS SELECT id, person FROM visits WITH NO DATA;
CREATE SCHEMA private;
CREATE TABLE private.a (id int PRIMARY KEY, note text);
CREATE TABLE private.b (id int PRIMARY KEY, a int REFERENCES private.a);
CREATE VIEW api_a AS SELECT * FROM private.a;
CREATE VIEW api_b AS SELECT * FROM private.b;
INSERT INTO private.a VALUES (1, 'x'); INSERT INTO private.b VALUES (7, 1), (8, NULL);
INSERT INTO people VALUES
    (1, 'Ada', NULL, 10.50, '2026-01-01T12:00:00.25Z', '\\x00ff', '{ok,sad}', '{1.50,NULL}'),
    (2, 'Bob', 1, NULL, NULL, NULL, NULL, NULL), (3, 'Cyd', 1, 7, 'infinity', '', '{}', '{}');
INSERT INTO projects VALUES (1, 'Alpha', 1, 2), (2, 'Beta', 1, NULL), (3, 'Gamma', 3, 1),
    (4, 'Delta', NULL, NULL);
INSERT INTO members VALUES (1, 1, 'x'), (2, 1, 'y'), (2, 2, 'x'), (3, 3, 'z');
INSERT INTO badges VALUES (2, '6b0c0e1e-0000-4000-8000-000000000001');
INSERT INTO places VALUES ('de', 'ulm', 'n1'), ('at', 'ulm', 'n2');
INSERT INTO visits VALUES (1, 'de', 'ulm', 1), (2, 'at', 'ulm', 1), (3, NULL, NULL, 2);
REFRESH MATERIALIZED VIEW seen;
INSERT INTO app.letters VALUES (1, 1, '{"a": [1.50, null]}'), (2, NULL, NULL);
"""


pytestmark = pytest.mark.serving("public", "app")


NAME = {"select": ["name"]}
TITLE = {"select": ["title"]}

SHAPES: list[tuple[str, dict[str, Any], Any]] = [
    (
        "visits",
        {"key": 1, "select": ["id"], "embed": {"people": NAME}},
        {"id": 1, "people": {"name": "Ada"}},
    ),
    (
        "visits",
        {"key": 1, "select": [], "embed": {"person": NAME}},
        {"person": {"name": "Ada"}},
    ),
    (
        "visits",
        {"key": 1, "select": [], "embed": {"places": {"select": ["note"]}}},
        {"places": {"note": "n1"}},
    ),
    ("visits", {"key": 3, "select": [], "embed": {"places": True}}, {"places": None}),
    (
        "people",
        {"key": 1, "select": ["id"], "embed": {"visits": {"select": ["id"], "order": ["-id"]}}},
        {"id": 1, "visits": [{"id": 2}, {"id": 1}]},
    ),
    ("people", {"key": 3, "select": [], "embed": {"visits": True}}, {"visits": []}),
    (
        "people",
        {"key": 2, "select": ["name"], "embed": {"badges": {"select": ["code"]}}},
        {"name": "Bob", "badges": {"code": "6b0c0e1e-0000-4000-8000-000000000001"}},
    ),
    ("people", {"key": 1, "select": [], "embed": {"badges": True}}, {"badges": None}),
    ("people", {"key": 2, "select": [], "embed": {"boss": NAME}}, {"boss": {"name": "Ada"}}),
    (
        "people",
        {"key": 1, "select": [], "embed": {"reports": {
            "relation": "people", "direction": "many", **NAME}}},
        {"reports": [{"name": "Bob"}, {"name": "Cyd"}]},
    ),
    (
        "projects",
        {"key": 1, "select": ["title"], "embed": {"lead": NAME, "projects_helper": NAME}},
        {"title": "Alpha", "lead": {"name": "Ada"}, "projects_helper": {"name": "Bob"}},
    ),
    (
        "people",
        {"key": 1, "select": [], "embed": {"led": {
            "relation": "projects", "via": "projects_lead", **TITLE}}},
        {"led": [{"title": "Alpha"}, {"title": "Beta"}]},
    ),
    (
        "people",
        {"key": 2, "select": [], "embed": {"joined": {
            "relation": "projects", "via": "members", **TITLE, "order": ["-title"]}}},
        {"joined": [{"title": "Beta"}, {"title": "Alpha"}]},
    ),
    (
        "projects",
        {"key": 1, "select": [], "embed": {"crew": {
            "relation": "people", "via": "members", **NAME, "limit": 1, "offset": 1}}},
        {"crew": [{"name": "Bob"}]},
    ),
    (
        "people",
        {"key": 1, "select": [], "embed": {"letters": {"relation": "app.letters"}}},
        {"letters": [{"id": 1, "sender": 1, "doc": {"a": [1.5, None]}}]},
    ),
    (
        "app.letters",
        {"key": 1, "select": [], "embed": {"people": {"select": ["n:name", "boss::text"]}}},
        {"people": {"n": "Ada", "boss": None}},
    ),
    (
        "people",
        {"key": 1, "select": [], "embed": {"projects": {
            "via": "lead", "select": ["title"], "where": {"title": {"like": "B%"}},
            "embed": {"members": {"select": ["role"], "embed": {"person": NAME}}}}}},
        {"projects": [{"title": "Beta", "members": [{"role": "x", "person": {"name": "Bob"}}]}]},
    ),
    (
        "visits",
        {"key": 1, "select": ["id"], "embed": {"people": {"select": ["name", "pay"],
                                                         "spread": True}}},
        {"id": 1, "name": "Ada", "pay": "10.50"},
    ),
    (
        "visits",
        {"key": 3, "select": ["id"], "embed": {"places": {"select": ["note"], "spread": True}}},
        {"id": 3, "note": None},
    ),
    (
        "people",
        {"key": 1, "select": ["id"], "embed": {"visits": {
            "select": ["visit:id", "city"], "spread": True}}},
        {"id": 1, "visit": [1, 2], "city": ["ulm", "ulm"]},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("relation", "kwargs", "expected"), SHAPES)
@pytest_twisted.ensureDeferred
async def test_embed_of_any_relationship_is_a_row_null_or_list(
    db: DirectCaller, relation: str, kwargs: dict[str, Any], expected: Any
) -> None:
    """Each relationship is found by name."""
    assert await db.call(f"{relation}.get", **kwargs) == expected
    key = kwargs.pop("key")
    column = "person" if relation == "badges" else "id"
    found = await db.call(f"{relation}.find", where={column: key}, **kwargs)
    assert found["rows"] == [expected]


@pytest_twisted.ensureDeferred
async def test_values_in_an_embed_have_their_usual_form(db: DirectCaller) -> None:
    whole = await db.call("people.find")
    by_id = {row["id"]: row for row in whole["rows"]}
    assert by_id[1]["prices"] == ["1.50", None]
    found = await db.call("projects.find", embed={"lead": True})
    for row in found["rows"]:
        lead = row["lead"]
        assert lead == (by_id[lead["id"]] if lead else None)
    bosses = await db.call("people.get", 1, embed={"them": {"relation": "people",
                                                           "direction": "many"}})  # fmt: skip
    assert bosses["them"] == [by_id[2], by_id[3]]
    assert by_id[3]["since"] == "infinity"
    assert by_id[1]["photo"] == b"\0\xff"
    cast = await db.call("visits.get", 1, select=[], embed={"people": {"select": ["id::float8"]}})
    assert isinstance(cast["people"]["id"], float)


@pytest_twisted.ensureDeferred
async def test_columns_spread_in_lists_have_their_own_names(db: DirectCaller) -> None:
    found = await db.call(
        "visits.find",
        select=["id"],
        embed={"people": {"select": ["name"], "spread": True}, "places": {"select": ["note"]}},
        form="lists",
        limit=1,
    )
    assert found["columns"] == ["id", "name", "places"]
    assert found["rows"] == [[1, "Ada", {"note": "n1"}]]


async def titles(db: DirectCaller, **kwargs: Any) -> list[str]:
    """Return the titles of the projects that a find returns."""
    found = await db.call("projects.find", select=["title"], **kwargs)
    return [row["title"] for row in found["rows"]]


@pytest_twisted.ensureDeferred
async def test_filter_on_related_rows_holds_if_one_matches(db: DirectCaller) -> None:
    assert await titles(db, where={"lead.name": "Ada"}) == ["Alpha", "Beta"]
    assert await titles(db, where={"lead.name": {"neq": "Ada"}}) == ["Gamma"]
    assert await titles(db, where={"members.role": "x"}) == ["Alpha", "Beta"]
    assert await titles(db, where={"members.person.name": "Cyd"}) == ["Gamma"]
    assert await titles(db, where={"members": None}) == ["Delta"]
    assert await titles(db, where={"not": {"members": {"is": "not null"}}}) == ["Delta"]
    assert await titles(db, where={"members.role": {"not": {"eq": "x"}}}) == ["Alpha", "Gamma"]
    assert await titles(db, where={"not": {"members.role": "x"}}) == ["Gamma", "Delta"]
    assert await titles(db, where={"members.person.name": {"not": ["Ada", "Cyd"]}}) == [
        "Alpha",
        "Beta",
    ]
    # all terms of a condition hold for one related row
    assert await titles(db, where={"members.role": {"gt": "x", "lt": "y"}}) == []
    assert await titles(db, where={"members.role": {"between": ["xa", "ya"]}}) == ["Alpha"]
    assert await titles(db, where={"members.role": {"neq": "x", "isdistinct": None}}) == [
        "Alpha",
        "Gamma",
    ]
    assert await titles(db, where={"or": [{"members": None}, {"lead.boss.name": "Ada"}]}) == [
        "Gamma",
        "Delta",
    ]
    crew = {"relation": "people", "via": "members", "select": [], "where": {"id": 3}}
    assert await titles(db, embed={"crew": crew}, where={"crew": {"is": "not null"}}) == ["Gamma"]
    assert await db.call("projects.count", where={"members.role": "x"}) == 2


@pytest_twisted.ensureDeferred
async def test_embed_that_is_inner_leaves_out_rows_without_a_match(db: DirectCaller) -> None:
    """Without columns it only filters."""
    inner = {"select": ["name"], "inner": True, "where": {"name": "Ada"}}
    found = await db.call("projects.find", select=["id"], embed={"lead": inner}, count="exact")
    assert found["rows"] == [
        {"id": 1, "lead": {"name": "Ada"}},
        {"id": 2, "lead": {"name": "Ada"}},
    ]
    assert found["count"] == 2
    only = {"select": [], "inner": True, "where": {"role": "z"}}
    assert (await db.call("projects.find", select=["id"], embed={"members": only}))["rows"] == [
        {"id": 3}
    ]
    deep = {"select": [], "inner": True, "embed": {"person": {"inner": True, "select": [],
                                                            "where": {"name": "Bob"}}}}  # fmt: skip
    assert await titles(db, embed={"members": deep}) == ["Alpha", "Beta"]
    outer = {"members": {**deep, "inner": False}}
    assert await titles(db, embed=outer, where={"members": {"is": "not null"}}) == ["Alpha", "Beta"]
    assert await titles(db, embed=outer, where={"members": None}) == ["Gamma", "Delta"]
    assert await titles(db, embed=outer, where={"members.role": "x"}) == ["Beta"]


@pytest_twisted.ensureDeferred
async def test_order_by_a_column_of_a_related_row_sorts_and_pages(db: DirectCaller) -> None:
    expected = ["Gamma", "Beta", "Alpha", "Delta"]
    order = [{"by": "lead.name", "desc": True, "nulls": "last"}, "-title"]
    assert await titles(db, order=order) == expected
    found: list[str] = []
    after = None
    while True:
        page = await db.call("projects.find", order=order, limit=1, after=after)
        found += [row["title"] for row in page["rows"]]
        after = page["next"]
        if after is None:
            break
    assert found == expected
    first = await titles(db, distinct=["lead.name"], order=["-lead.name", "title"])
    assert first == ["Delta", "Gamma", "Alpha"]
    refused = await failure_of(titles(db, order=["members.role"]))
    assert isinstance(refused, InvalidArgument)


@pytest_twisted.ensureDeferred
async def test_order_by_an_embed_sorts_by_its_row(db: DirectCaller) -> None:
    """The embed's filter may leave out the row."""
    lead = {"relation": "people", "via": "projects_lead", "where": {"name": {"neq": "Ada"}}}
    plain = {"relation": "people", "via": "projects_lead"}
    embed = {"lead": lead, "first": plain}
    for order, ids in (
        (["lead.name", "id"], [3, 1, 2, 4]),
        ([{"by": "lead.name", "nulls": "first"}, "-id"], [4, 2, 1, 3]),
        (["lead.name", "-first.name", "id"], [3, 4, 1, 2]),
        (["-first.name", "lead.name", "id"], [4, 3, 1, 2]),
    ):
        seen: list[int] = []
        page: dict[str, Any] = {"next": None}
        while not seen or page["next"] is not None:
            page = await db.call(
                "projects.find", embed=embed, order=order, limit=1, after=page["next"]
            )
            seen += [row["id"] for row in page["rows"]]
        assert seen == ids
    page = await db.call("projects.find", embed=embed, order=["lead.name"], limit=1)
    other = {**embed, "lead": {**lead, "where": {"name": {"neq": "Cyd"}}}}
    call = db.call("projects.find", embed=other, order=["lead.name"], after=page["next"])
    refused = await failure_of(call)
    assert isinstance(refused, InvalidArgument)
    assert refused.details["path"] == "after"
    boss = {"boss": {"relation": "people", "direction": "one", "where": {"name": "Bob"}}}
    deep = {"lead": {**plain, "embed": boss}}
    found = await db.call("projects.find", embed=deep, order=["lead.boss.name", "-id"])
    assert [row["id"] for row in found["rows"]] == [4, 3, 2, 1]
    inner = {"lead": {**plain, "embed": {"boss": {**boss["boss"], "where": {}, "inner": True}}}}
    found = await db.call("projects.find", embed=inner, order=["lead.name", "id"])
    assert [row["id"] for row in found["rows"]] == [3, 1, 2, 4]
    same = [{"id": 1, "title": "Alpha"}, {"id": 2, "title": "Beta"}, {"id": 3, "title": "Gamma"}]
    first = [{"by": "lead.name", "nulls": "first"}, "-id"]
    written = await db.call("projects.upsert", same, embed=embed, order=first)
    assert [row["id"] for row in written] == [2, 1, 3]


@pytest_twisted.ensureDeferred
async def test_write_with_embed_returns_the_related_rows(db: DirectCaller, dsn: str) -> None:
    embed = {"lead": NAME, "members": {"select": ["role"]}}
    made = await db.call(
        "projects.create", {"id": 9, "title": "Nine", "lead": 2}, select=["title"], embed=embed
    )
    assert made == {"title": "Nine", "lead": {"name": "Bob"}, "members": []}
    changed = await db.call("projects.update", 9, {"lead": 3}, select=["title"], embed=embed)
    assert changed["lead"] == {"name": "Cyd"}
    many = await db.call(
        "projects.update", where={"id": 9}, changes={"lead": 1}, select=[], embed={"lead": NAME}
    )
    assert many == {"rows": [{"lead": {"name": "Ada"}}], "affected": 1}
    same = await db.call("projects.update", 9, {}, select=[], embed={"lead": NAME})
    assert same == {"lead": {"name": "Ada"}}
    gone = await db.call("projects.delete", 9, select=["id"], embed={"lead": NAME})
    assert gone == {"id": 9, "lead": {"name": "Ada"}}


@pytest.mark.parametrize(
    ("relation", "embed", "path"),
    [
        ("people", 5, "embed"),
        ("people", {"visits": 5}, "embed.visits"),
        ("people", {"visits": {"nope": 5}}, "embed.visits.nope"),
        ("people", {"visitz": True}, "embed.visitz"),
        ("people", {"visits": {"select": ["nope"]}}, "embed.visits.select.0"),
        ("people", {"visits": {"where": {"id": "x"}}}, "embed.visits.where.id"),
        ("people", {"visits": {"order": ["nope"]}}, "embed.visits.order.0"),
        ("people", {"visits": {"limit": -1}}, "embed.visits.limit"),
        ("people", {"visits": {"inner": 1}}, "embed.visits.inner"),
        ("people", {"visits": {"direction": "up"}}, "embed.visits.direction"),
        ("people", {"visits": {"via": "nope"}}, "embed.visits"),
        ("people", {"x": {"relation": "nope"}}, "embed.x"),
        ("people", {"visits": {"spread": True}}, "embed"),
        ("visits", {"people": {"select": ["id"], "spread": True}}, "embed"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_embed_that_is_malformed_is_refused_with_its_path(
    db: DirectCaller, relation: str, embed: Any, path: str
) -> None:
    refused = await failure_of(db.call(f"{relation}.find", embed=embed))
    assert isinstance(refused, InvalidArgument), refused
    assert refused.details["path"] == path


VIEWS: list[tuple[str, dict[str, Any], list[Any]]] = [
    (
        "plans",
        {"select": ["title"], "embed": {"lead": NAME}, "where": {"id": 1}},
        [{"title": "Alpha", "lead": {"name": "Ada"}}],
    ),
    (
        "plans",
        {
            "select": [],
            "embed": {"staff": {"via": "lead", "select": ["called"]}},
            "where": {"id": 3},
        },
        [{"staff": {"called": "Cyd"}}],
    ),
    (
        "projects",
        {
            "select": ["id"],
            "embed": {"staff": {"via": "projects_lead", "select": ["called"]}},
            "where": {"id": 1},
        },
        [{"id": 1, "staff": {"called": "Ada"}}],
    ),
    (
        "staff",
        {
            "select": ["called"],
            "embed": {"plans": {"via": "projects_lead", **TITLE}},
            "where": {"person_id": 1},
        },
        [{"called": "Ada", "plans": [{"title": "Alpha"}, {"title": "Beta"}]}],
    ),
    (
        "app.staff2",
        {"select": ["called"], "embed": {"badges": {"select": ["code"]}}, "where": {"id2": 2}},
        [{"called": "Bob", "badges": {"code": "6b0c0e1e-0000-4000-8000-000000000001"}}],
    ),
    (
        "seen",
        {"select": ["id"], "embed": {"people": NAME}, "where": {"people.name": "Bob"}},
        [{"id": 3, "people": {"name": "Bob"}}],
    ),
    (
        "api_b",
        {"embed": {"a": {"select": ["note"]}}, "order": ["id"]},
        [{"id": 7, "a": {"note": "x"}}, {"id": 8, "a": None}],
    ),
    (
        "api_a",
        {"select": ["note"], "embed": {"api_b": {"select": ["id"]}}},
        [{"note": "x", "api_b": [{"id": 7}]}],
    ),
]


@pytest.mark.parametrize(("relation", "kwargs", "expected"), VIEWS)
@pytest_twisted.ensureDeferred
async def test_embed_of_a_view_is_related_as_its_tables(
    db: DirectCaller, relation: str, kwargs: dict[str, Any], expected: Any
) -> None:
    """As the tables whose columns it shows, also if these are not served."""
    assert (await db.call(f"{relation}.find", **kwargs))["rows"] == expected


@pytest_twisted.ensureDeferred
async def test_ambiguous_embed_is_refused_with_candidates(db: DirectCaller) -> None:
    """Each candidate is one of the relationships."""
    refused = await failure_of(db.call("people.find", embed={"projects": True}))
    assert isinstance(refused, InvalidArgument)
    assert refused.details["candidates"] == ["members", "projects_helper", "projects_lead"]
    refused = await failure_of(db.call("people.find", embed={"people": True}))
    assert isinstance(refused, InvalidArgument)


@pytest_twisted.ensureDeferred
async def test_embed_nested_too_deep_is_refused(db: DirectCaller) -> None:
    """Embeds of the maximum depth are still one statement."""
    embed: dict[str, Any] = {}
    for _ in range(8):
        embed = {"boss": {"select": ["id"], "embed": embed}}
    assert (await db.call("people.get", 2, embed=embed))["boss"]["id"] == 1
    refused = await failure_of(db.call("people.get", 2, embed={"boss": {"embed": embed}}))
    assert isinstance(refused, InvalidArgument)


@pytest_twisted.ensureDeferred
async def test_columns_named_like_aliases_are_read_as_columns(db: DirectCaller, dsn: str) -> None:
    columns = ", ".join(f'"{name}" int' for name in ("r", "v", "t", "t1", "et1", "e1"))
    execute(
        dsn,
        f"CREATE TABLE ones (id int PRIMARY KEY, {columns});"
        f"CREATE TABLE manies (id int PRIMARY KEY, one int REFERENCES ones, {columns});"
        "INSERT INTO ones (id, r) VALUES (1, 5); INSERT INTO manies (id, one, r) VALUES (2, 1, 6)",
    )
    db.catalogs.reload()
    await until(lambda: ("public", "manies") in db.dispatcher.served.catalog.relations)
    found = await db.call("ones.get", 1, embed={"manies": {"select": ["id", "r"]}})
    assert found["manies"] == [{"id": 2, "r": 6}]
    found = await db.call("manies.get", 2, select=[], embed={"one": {"select": ["r", "t"]}})
    assert found == {"one": {"r": 5, "t": None}}


@pytest_twisted.ensureDeferred
async def test_relationships_as_described_can_be_embedded(db: DirectCaller) -> None:
    """With the names that `describe` lists."""
    served = db.dispatcher.served
    document = describe(served.catalog, "rowcast", "1", db.dispatcher.verbs, {})
    known = 0
    for name, relation in document["relations"].items():
        for way in relation["relationships"]:
            options = {"relation": way["relation"], "via": way["via"], "select": []}
            options["direction"] = "many" if way["many"] else "one"
            await db.call(f"{name}.find", embed={"x": {**options, "inner": True}}, limit=1)
            for called in way["names"]:
                await db.call(f"{name}.find", select=[], embed={called: {"inner": True}}, limit=1)
            known += 1
    assert known > 20
