"""
Operators and functions created in a served schema are not used by the service's statements.

An attacker who may create objects there plants one for each name that a statement could use and each
type of a column, which PostgreSQL would prefer for its exact types. Each of them only raises an error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults, succeed

from service.api.roles import Roles
from service.db.session_settings import SessionSettings
from service.errors import ServiceError
from service.plan.operators import SEARCH_FUNCTIONS, SQL_OPERATORS
from service.request.embeds import MEASURE_FUNCTIONS
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller, serving
from tests.db.served import database_at, load, model, registry
from tests.db.test_roles import caller

SCHEMA = """
CREATE ROLE sh_clerk; CREATE ROLE sh_evil;
CREATE SCHEMA ext; CREATE SCHEMA app;
CREATE EXTENSION citext SCHEMA ext; CREATE EXTENSION hstore SCHEMA ext;
CREATE EXTENSION ltree SCHEMA ext;
CREATE TYPE app.mood AS ENUM ('sad', 'ok');
CREATE TYPE app.pair AS (a int, b text);
CREATE DOMAIN app.word AS varchar; CREATE DOMAIN app.email AS ext.citext;
CREATE TABLE app.kinds (name varchar PRIMARY KEY, label ext.citext UNIQUE);
CREATE TABLE app.things (
    id varchar PRIMARY KEY, kind varchar REFERENCES app.kinds,
    label ext.citext REFERENCES app.kinds (label), text text, number numeric, small int2, int4 int4,
    int8 int8, float8 float8, bool bool, day date, at timestamptz, uuid uuid, bytes bytea, char char(3),
    json json, jsonb jsonb, texts text[], ints int4[], words varchar[], span int4range, vector tsvector,
    mood app.mood, pair app.pair, word app.word, email app.email, store ext.hstore, path ext.ltree,
    address inet, "interval" interval, UNIQUE NULLS NOT DISTINCT (word, mood));
CREATE TABLE app.tags (name app.word PRIMARY KEY);
CREATE TABLE app.tagged (thing varchar REFERENCES app.things, tag app.word REFERENCES app.tags,
    PRIMARY KEY (thing, tag));
CREATE FUNCTION app.loud(app.things) RETURNS varchar LANGUAGE sql STABLE AS 'SELECT $1.id';
CREATE FUNCTION app.all_things() RETURNS SETOF app.things LANGUAGE sql STABLE
    AS 'SELECT * FROM app.things';
CREATE FUNCTION app.anything(OUT a varchar, OUT b int) LANGUAGE sql STABLE AS $$SELECT 'x', 1$$;
CREATE FUNCTION app.rows() RETURNS SETOF record LANGUAGE sql STABLE AS $$SELECT 'x'::varchar, 1$$;
GRANT USAGE ON SCHEMA app, ext TO sh_clerk, sh_evil; GRANT CREATE ON SCHEMA app TO sh_evil;
GRANT ALL ON ALL TABLES IN SCHEMA app TO sh_clerk;
INSERT INTO app.kinds VALUES ('k', 'Label'), ('l', 'other');
INSERT INTO app.things (id, kind, label, text, number, int4, jsonb, json, texts, ints, span, mood,
                        word, email, store, path)
VALUES ('a', 'k', 'LABEL', 'one two', 1, 1, '{"a": [1]}', '{"a": 1}', '{x}', '{1}', '[1,3)', 'ok',
        'w', 'Me@X', 'a=>1', 'top.one'),
       ('b', 'k', 'label', NULL, 2, 2, '{}', NULL, '{}', '{}', NULL, NULL, NULL, 'you@x', NULL, 'top');
INSERT INTO app.tags VALUES ('t'), ('u'); INSERT INTO app.tagged VALUES ('a', 't');
"""
TYPES = [
    "varchar",
    "text",
    "numeric",
    "int2",
    "int4",
    "int8",
    "float8",
    "bool",
    "date",
    "timestamptz",
    "uuid",
    "bytea",
    "bpchar",
    "json",
    "jsonb",
    "text[]",
    "int4[]",
    "varchar[]",
    "int4range",
    "tsvector",
    "app.mood",
    "app.pair",
    "app.word",
    "app.email",
    "ext.citext",
    "ext.hstore",
    "ext.ltree",
    "inet",
    "interval",
    "app.things",
    "app.kinds",
    "name",
    "record",
]
OPERATORS = sorted({*SQL_OPERATORS.values(), "@@", "->", "->>", "<", ">", "="})
ONE = [
    *MEASURE_FUNCTIONS,
    *SEARCH_FUNCTIONS.values(),
    *[
        "to_json",
        "to_jsonb",
        "row_to_json",
        "json_agg",
        "jsonb_agg",
        "to_tsvector",
        "unnest",
        "num_nulls",
        "convert_to",
        "length",
        "cardinality",
        "date_trunc",
    ],
]
TWO = [
    "date_trunc",
    "num_nulls",
    "convert_to",
    "to_tsvector",
    "to_tsquery",
    "plainto_tsquery",
    "phraseto_tsquery",
    "websearch_to_tsquery",
    "string_agg",
    "generate_series",
    "set_config",
    "current_setting",
]
CLERK = caller("clerk")
SESSION = SessionSettings(schemas=("app",))


def planted() -> Iterator[str]:
    """Return the statements that create the planted operators and functions."""
    yield "SET ROLE sh_evil; SET search_path = app, pg_catalog; SET check_function_bodies = off"
    body = "LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'shadowed'; END$$"
    pairs = {(each, each) for each in TYPES} | {(each, "text") for each in TYPES}
    pairs |= {("jsonb", "int4"), ("ext.ltree", "ext.lquery"), ("app.email", "ext.citext")}
    pairs |= {("app.word", "varchar"), ("varchar", "app.word"), ("ext.hstore", "text[]")}
    pairs |= {("jsonb", "text[]"), ("tsvector", "tsquery"), ("int4range", "int4")}
    for left, right in sorted(pairs):
        yield f"CREATE FUNCTION app.evil({left}, {right}) RETURNS bool {body}"
        if "record" not in (left, right):
            for name in OPERATORS:
                yield (
                    f"CREATE OPERATOR app.{name}"
                    f" (leftarg = {left}, rightarg = {right}, function = app.evil)"
                )
        for name in TWO:
            yield f"CREATE FUNCTION app.{name}({left}, {right}) RETURNS text {body}"
    for one in TYPES:
        for name in ONE:
            yield f"CREATE FUNCTION app.{name}({one}) RETURNS text {body}"
    for name in ("to_tsvector", *SEARCH_FUNCTIONS.values()):
        yield f"CREATE FUNCTION app.{name}(regconfig, varchar) RETURNS text {body}"


@pytest.fixture(scope="module")
def made(dsn: str) -> str:
    """Create the schema with the planted objects; return the DSN."""
    execute(dsn, ";".join(planted()))
    return dsn


@pytest_twisted.async_yield_fixture(scope="module", params=[True, False], ids=["role", "service"])
async def served(made: str, request: pytest.FixtureRequest) -> AsyncIterator[DirectCaller]:
    """Serve the schema, with a mapped role or with the service's own."""
    roles = Roles({"clerk": "sh_clerk"}) if request.param else Roles()
    async with serving(made, "app", roles=roles) as callee:
        yield callee


@pytest.fixture
def db(made: str, served: DirectCaller) -> DirectCaller:
    """Restore the rows."""
    execute(made, "DELETE FROM app.things WHERE id > 'b'")
    return served


@pytest.fixture
def current(db: DirectCaller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let refusals not check the catalog, which took nearly all of the time of thousands of refusals."""
    monkeypatch.setattr(db.dispatcher, "refresh", lambda: succeed(True))


async def _fits(db: DirectCaller, name: str, **kwargs: Any) -> bool:
    """
    Return whether a call has a result; most are refused.

    `call` would compare each of the many refusals with its description.
    """
    try:
        await db.dispatcher.answer(name, (), kwargs, CLERK)
    except ServiceError as error:
        assert "shadowed" not in str(error), (name, kwargs)
        return False
    return True


async def _call(db: DirectCaller, name: str, *args: Any, **kwargs: Any) -> Any:
    return await db.call_as(CLERK, name, *args, **kwargs)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT id = id FROM app.things",
        "SELECT mood IS DISTINCT FROM mood FROM app.things",
        "SELECT unnest(texts) FROM app.things",
        "SELECT to_json(t) FROM app.things t",
        "SELECT label = label FROM app.things",
    ],
)
def test_planted_operator_runs_in_a_plain_statement(made: str, sql: str) -> None:
    with pytest.raises(psycopg2.errors.RaiseException, match="shadowed"):
        execute(made, f"SET search_path = app, ext; {sql}")


@pytest.mark.parametrize("served", [True], indirect=True)
@pytest_twisted.ensureDeferred
async def test_planted_operators_are_not_run_by_filters(db: DirectCaller, current: None) -> None:
    """This holds whether the filter is valid for the type or not."""
    columns = list(db.dispatcher.served_to(CLERK).catalog.relations["app", "things"].columns)
    fitted = 0
    scalars = ["1", "2020-01-01", "[1,2)"]
    others: list[Any] = [["1"], {"a": 1}, None, {"any": ["ok", "1"]}]
    others += [{"$column": "id"}, {"$column": "texts"}, {"$column": "email"}]

    async def fits(column: str, name: str, *values: Any) -> bool:
        """Return whether a filter of the column is valid; filters that differ only in the value have the same SQL."""
        for value in values:
            if await _fits(db, "things.exists", where={column: {name: value}}):
                return True
        return False

    for column in columns:
        for name in (*SQL_OPERATORS, *SEARCH_FUNCTIONS):
            calls = [fits(column, name, *scalars), *(fits(column, name, each) for each in others)]
            fitted += sum(await gatherResults(map(Deferred.fromCoroutine, calls)))
    assert fitted > 300


READS: list[tuple[str, dict[str, Any]]] = [
    ("things.find", {"order": ["kind"], "limit": 1}),
    ("things.find", {"order": ["-label::varchar", "number::int"], "limit": 1}),
    (
        "things.find",
        {"order": [{"by": "at", "trunc": "day", "zone": "UTC"}, {"by": "day", "trunc": "month"}]},
    ),
    ("things.count", {"where": {"label": {"isdistinct": {"$column": "email"}}}}),
    ("things.count", {"where": {"int4": {"lt": {"$column": "int8"}}}}),
    ("things.count", {"where": {"jsonb->a::text": {"like": {"$column": "word"}}}}),
    ("things.find", {"order": ["-email", "mood"], "limit": 1}),
    ("things.find", {"order": ["label"], "limit": 1}),
    ("things.find", {"select": ["jsonb->a->0", "json->>a", "x:texts->0", "p:pair->a", "loud"]}),
    ("things.find", {"embed": {"kinds": {"via": "kind"}, "tags": True}}),
    ("things.find", {"embed": {"tags": {"inner": True}}, "count": "exact"}),
    ("things.find", {"where": {"tags.name": "t"}, "count": "planned"}),
    ("things.find", {"distinct": True, "select": ["kind", "label"], "count": "estimated"}),
    ("kinds.find", {"embed": {"things": {"via": "things_label_fkey"}}}),
    ("kinds.find", {"embed": {"things": {"via": "kind", "measures": {"n": {"count": "*"}}}}}),
    ("things.aggregate", {"measures": {"n": {"count": "*"}}, "group": ["label", "mood"]}),
    ("fn.all_things", {}),
    ("fn.all_things.find", {"where": {"kind": "k"}, "count": "exact"}),
    ("fn.all_things.aggregate", {"measures": {"n": {"max": "id"}}}),
    ("fn.anything", {}),
    ("fn.rows", {}),
]


@pytest.mark.parametrize(("name", "kwargs"), READS)
@pytest_twisted.ensureDeferred
async def test_planted_functions_are_not_run_by_reads(
    db: DirectCaller, name: str, kwargs: dict[str, Any]
) -> None:
    answer = await _call(db, name, **kwargs)
    while isinstance(answer, dict) and answer.get("next"):
        answer = await _call(db, name, **kwargs, after=answer["next"])


@pytest.mark.parametrize("served", [True], indirect=True)
@pytest_twisted.ensureDeferred
async def test_planted_functions_are_not_run_over_rows(db: DirectCaller, current: None) -> None:
    fitted = 0
    for column in db.dispatcher.served_to(CLERK).catalog.relations["app", "things"].columns:
        for name in MEASURE_FUNCTIONS:
            more = {"string_agg": {"separator": ","}, "percentile": {"fraction": 0.5}}
            measure = {name: column} | more.get(name, {})
            for distinct in ({}, {"distinct": True}):
                measures = {"m": measure | distinct}
                fitted += await _fits(db, "things.aggregate", measures=measures)
    assert fitted > 100


@pytest_twisted.ensureDeferred
async def test_planted_operators_are_not_run_by_writes(db: DirectCaller) -> None:
    rows = [{"id": "x", "kind": "k", "mood": "ok"}, {"id": "y", "word": "v"}]
    await _call(db, "things.create", rows, embed={"kinds": {"via": "kind"}}, order=["id"])
    await _call(db, "things.upsert", [{"id": "x", "text": "t"}, {"id": "y", "int4": 1}])
    await _call(
        db,
        "things.upsert",
        [
            {"id": "x2", "word": "v", "mood": None, "int4": 3},
            {"id": "x3", "word": "n", "mood": None},
        ],
        on_conflict=["word", "mood"],
        update=["int4"],
    )
    key, change = {"id": "x"}, {"text": "z"}
    expect = {"mood": "ok", "kind": "k", "email": None, "word": None, "pair": None}
    await _call(db, "things.update", key, change, expect=expect)
    await _call(db, "things.update", where={"kind": "k", "id": "x"}, changes=change)
    assert (await _call(db, "things.get", "y"))["int4"] == 3
    rows = [
        {"id": "x4", "word": "v", "mood": None},
        {"id": "x5", "word": "o", "mood": None, "int4": 4},
    ]
    await _call(db, "things.upsert", rows, on_conflict=["word", "mood"])
    assert (await _call(db, "things.get", "x4"))["int4"] == 3
    await _call(
        db, "kinds.upsert", [{"name": "k2", "label": "LABEL"}], on_conflict=["label"], update=[]
    )
    data = [{"id": "i", "word": "i"}, {"id": "j", "word": "j"}]
    await _call(db, "things.import", data, on_conflict=["id"])
    await _call(
        db, "things.delete", where={"id": {"in": ["x", "y", "x2", "x3", "x4", "x5", "i", "j"]}}
    )


@pytest_twisted.ensureDeferred
async def test_planted_operators_are_not_run_by_computed_changes(db: DirectCaller) -> None:
    """Computed values, rows with different changes, claims, old rows, conditions and links."""
    row = {"number": 1, "int4": 1, "texts": ["a"], "jsonb": {"a": 1}}
    rows = [{"id": id, "word": f"{id}{id}", **row} for id in "xyz"]
    await _call(db, "things.create", rows)
    numbers = ("number", "small", "int4", "int8", "float8")
    changes: list[dict[str, Any]] = [
        *({name: {word: 2}} for name in numbers for word in ("$add", "$multiply")),
        *({name: {"$add": "P1D"}} for name in ("day", "at", "interval")),
        {"interval": {"$multiply": 2}},
        *({name: {word: ["1"]}} for name in ("texts", "words") for word in ("$append", "$prepend", "$remove")),
        {"ints": {"$append": [1]}}, {"ints": {"$remove": [1]}}, {"jsonb": {"$merge": {"b": 1}}},
        {"jsonb": {"$remove": ["b"]}}, {"jsonb->a": {"$add": 1}, "jsonb->l->0": 1, "json->a": 2},
        {"jsonb->l": {"$append": [1]}, "jsonb->m->n": {"$remove": ["o"]}, "json->l": {"$prepend": [1]}},
    ]  # fmt: skip
    for each in changes:
        await _call(db, "things.update", "x", each)
        await _call(db, "things.update", where={"id": "x"}, changes=each, returning="both")
        await _call(db, "things.update", rows=[{"id": "x", **each}, {"id": "y", "bool": True}])
    claim = {
        "order": ["-number", "kind"],
        "limit": 1,
        "skip_locked": True,
        "changes": {"bool": True},
    }
    await _call(db, "things.update", where={"id": ["x", "y"]}, **claim)
    keyed = [{"id": id, "word": id, "mood": "ok"} for id in "xy"]
    await _call(db, "things.update", rows=keyed)
    by = {"rows": [{**row, "text": "t"} for row in keyed], "by": ["word", "mood"]}
    for row in by["rows"]:
        row.pop("id")
    await _call(db, "things.update", **by, returning="old")
    where = {"email": None, "label": {"isdistinct": "x"}, "kind.label": {"not": "label"}}
    await _call(db, "things.upsert", keyed, where={"or": [where, {"number": {"gt": 0}}]})
    await _call(
        db,
        "things.upsert",
        [{"id": "w", "word": "x", "mood": "ok"}],
        on_conflict=["word", "mood"],
        where=where,
    )
    values = {
        "id": "n",
        "word": "n",
        "kinds!kind": {"$link": {"label": "LABEL"}},
        "tags": [{"$link": "t"}, {"name": "n"}],
    }
    await _call(db, "things.create", values)
    kind = {
        "name": "n",
        "label": "n",
        "things!kind": [{"id": "nn", "word": "nn"}, {"$link": "z"}],
    }
    made = await _call(db, "kinds.create", kind)
    assert {row["id"] for row in made["things!kind"]} == {"nn", "z"}
    await _call(db, "tagged.delete", where={"thing": "n"})
    await _call(db, "things.delete", where={"id": [*"xyzn", "nn"]}, returning="both")
    await _call(db, "kinds.delete", "n")
    await _call(db, "tags.delete", "n")


@pytest_twisted.ensureDeferred
async def test_operators_of_extensions_outside_the_search_path_are_used(db: DirectCaller) -> None:
    async def ids(where: dict[str, Any]) -> list[str]:
        found = await _call(db, "things.find", where=where, select=["id"], order=["id"])
        return [row["id"] for row in found["rows"]]

    assert await ids({"label": "lAbEl"}) == ["a", "b"]
    assert await ids({"email": "ME@x"}) == ["a"]
    assert await ids({"email": {"in": ["ME@x", "YOU@X"]}}) == ["a", "b"]
    assert await ids({"email": {"isdistinct": "me@x"}}) == ["b"]
    assert await ids({"email": {"like": "ME%"}}) == ["a"]
    assert await ids({"store": {"has_key": "a"}}) == ["a"]
    assert await ids({"path": {"match": "top.*{1}"}}) == ["a"]
    assert await ids({"path": {"cd": "top"}}) == ["a", "b"]
    kinds = await _call(
        db, "kinds.get", {"label": "label"}, embed={"t": {"relation": "things", "via": "label"}}
    )
    assert [row["id"] for row in kinds["t"]] == ["a", "b"]
    measures = {"low": {"min": "email"}, "high": {"max": "label"}}
    answer = await _call(db, "things.aggregate", measures=measures)
    assert answer == [{"low": "Me@X", "high": "LABEL"}] or answer[0]["high"].lower() == "label"


@pytest_twisted.ensureDeferred
async def test_planted_operators_are_not_run_by_models(made: str) -> None:
    execute(made, "DELETE FROM app.things WHERE id > 'b'")
    join = {"join_table": "app.tagged", "foreign_key": "thing", "association_foreign_key": "tag"}
    tags = model("app.tags")
    things = model("app.things", HABTM=[{"name": "tags", "class_name": "Tags", **join}])
    kinds = model(
        "app.kinds", HASMANY=[{"name": "things", "class_name": "Things", "foreign_key": "kind"}]
    )
    with registry():
        async with database_at(made, SESSION) as database:
            await load(database, (tags, things, kinds), "app")
            await _use(tags, things, kinds)


async def _use(tags: Any, things: Any, kinds: Any) -> None:
    kind = await kinds.find("k")
    assert await kinds.exists(["name OPERATOR(pg_catalog.=) ?", "k"])
    assert await kinds.count() == 2
    (one, other) = await things.findBy(id=["a", "b"], label="LABEL")
    assert [each.id for each in await kind.things.get()] == ["a", "b"]
    await kind.things.set([one])
    await kind.things.set([one, other])
    await one.tags.set([await tags.find("t"), await tags.find("u")])
    assert len(await one.tags.get(where=["name OPERATOR(pg_catalog.<>) ?", "t"])) == 1
    assert [len(await each.tags.get()) for each in await things.find(orderby="id")] == [2, 0]
    await one.tags.set([await tags.find("t")])
    other.text = "written"
    await other.save()
    await other.refresh()
    await (await things(id="new", word="new").save()).delete()
