"""
describe, health and stats, as a caller receives them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import CallOptions
from jsonschema import Draft202012Validator
from psycopg2.extensions import make_dsn
from twisted.internet.threads import deferToThread

from schema.database_url import Place
from service.app import Serving, service_line
from service.settings import Settings
from tests.conftest import Router, execute
from tests.db.described import Described, plain
from tests.deferreds import pause, until
from tests.wamp.callers import Caller, join
from tests.wamp.service import served
from tests.wamp.test_values import COLUMNS, TYPES, VALUES

SCHEMA = f"""
{TYPES}
CREATE SCHEMA app; CREATE SCHEMA apart;
CREATE TABLE app.owners (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name varchar(10) NOT NULL);
COMMENT ON TABLE app.owners IS 'Who owns things';
CREATE TABLE app.things (
    id bigint PRIMARY KEY, owner_id int CONSTRAINT owned REFERENCES app.owners,
    code text CONSTRAINT coded UNIQUE, price numeric(8,2) DEFAULT 1.5,
    doubled numeric GENERATED ALWAYS AS (price * 2) STORED, secret text, mood mood DEFAULT 'sad');
COMMENT ON COLUMN app.things.secret IS '@hidden';
COMMENT ON COLUMN app.things.price IS 'In euros';
CREATE TABLE app.vault (id int PRIMARY KEY, thing_id bigint REFERENCES app.things);
COMMENT ON TABLE app.vault IS E'For nobody\\n@hidden';
CREATE TABLE app.held (id int PRIMARY KEY, vault_id int REFERENCES app.vault);
CREATE TABLE app.stats (id int PRIMARY KEY);
CREATE TABLE app."odd name" (id int PRIMARY KEY);
CREATE TABLE app.keyless (n int);
CREATE VIEW app.named AS SELECT id, name FROM app.owners;
CREATE MATERIALIZED VIEW app.counted AS SELECT count(*) AS n FROM app.owners;
CREATE TABLE apart.things (id int PRIMARY KEY);
CREATE TABLE public.unserved (id int PRIMARY KEY);
INSERT INTO app.owners (name) VALUES ('Ada');
INSERT INTO app.things (id, owner_id, price) VALUES (1, 1, 2), (2, NULL, NULL);
INSERT INTO app.things (id, price, mood) VALUES (3, 'NaN', NULL), (4, -0.5, 'a "quoted" \\ word');
CREATE TABLE app.kept (id bigserial PRIMARY KEY, {COLUMNS});
"""

DOCUMENT = {
    *("$schema", "version", "prefix", "schemas", "names", "verbs", "relations", "functions"),
    *("procedures", "$defs"),
}
RELATION = {
    *("schema", "name", "kind", "comment", "columns", "computed", "primary_key"),
    *("unique_keys", "unique_indexes", "foreign_keys", "relationships", "row_security", "verbs"),
    "json_schema",
}
COLUMN = {
    *("type", "nullable", "default", "generated", "comment", "json_schema", "readable", "writable"),
}


@pytest_twisted.async_yield_fixture(scope="module")
async def service(dsn: str, router: Router) -> AsyncIterator[Serving]:
    """Serve two schemas of the module's database."""
    async with served(dsn, router, schemas=("app", "apart")) as serving:
        yield serving


@pytest_twisted.async_yield_fixture(scope="module")
async def caller(service: Serving, router: Router) -> AsyncIterator[Caller]:
    session = await join(router, "websocket json")
    yield session
    await session.close()


@pytest_twisted.ensureDeferred
async def test_start_line_counts_the_procedures_that_are_described(
    service: Serving, caller: Caller
) -> None:
    """Views and tables without a key have fewer verbs than others."""
    relations = (await caller.call("rowcast.describe"))["relations"]
    many = sum(len(each["verbs"]) for each in relations.values())
    assert many < len(relations) * len(service.dispatcher.verbs)
    line = service_line(Settings(), service)
    assert line == f"joined realm1; 10 relations with {many} procedures as rowcast.*"


@pytest_twisted.ensureDeferred
async def test_description_of_a_service_has_the_names_that_calls_use(caller: Caller) -> None:
    """It names the service, and has all that is served, under the names that calls use."""
    document = await caller.call("rowcast.describe")
    assert document.keys() >= DOCUMENT
    assert document["prefix"] == "rowcast"
    assert document["version"]
    assert document["schemas"] == ["app", "apart"]
    own = {"describe", "health", "stats", "transaction", "transaction.begin", "why"}
    own |= {"changes", "position"}
    assert (
        document["procedures"].keys() == own
    )  # without the table actions, its procedure is missing
    names = {"owners", "things", "held", "app.stats", "odd%20name", "keyless", "named", "counted"}
    assert set(document["relations"]) == names | {"kept", "apart.things"}
    for name, relation in document["relations"].items():
        assert relation.keys() >= RELATION, name
        assert all(column.keys() >= COLUMN for column in relation["columns"].values())
        for verb in set(relation["verbs"]) & {"find", "count", "exists"}:
            await caller.call(f"rowcast.{name}.{verb}")
    assert (await caller.call("rowcast.stats")).keys() == {"calls", "pool", "changes", "watches"}, (
        "not the table"
    )


@pytest_twisted.ensureDeferred
async def test_description_of_a_relation_has_kinds_keys_and_defaults(caller: Caller) -> None:
    """The description has kinds, comments, keys, defaults and generated columns."""
    relations = (await caller.call("rowcast.describe"))["relations"]
    owners, things = relations["owners"], relations["things"]
    assert (owners["kind"], owners["comment"]) == ("table", "Who owns things")
    assert relations["named"]["kind"] == "view"
    assert relations["counted"]["kind"] == "materialized view"
    assert owners["primary_key"] == ["id"]
    assert owners["columns"]["id"]["generated"] == "identity always"
    assert owners["columns"]["name"] == {
        "type": "character varying(10)",
        "nullable": False,
        "default": None,
        "generated": None,
        "comment": None,
        "json_schema": {"type": "string", "maxLength": 10},
        "readable": True,
        "writable": True,
    }
    assert {"name": "coded", "columns": ["code"]} in things["unique_keys"]
    assert things["foreign_keys"] == [
        {
            "name": "owned",
            "columns": ["owner_id"],
            "schema": "app",
            "relation": "owners",
            "target_columns": ["id"],
        }
    ]
    columns = things["columns"]
    assert (columns["price"]["default"], columns["price"]["comment"]) == ("1.5", "In euros")
    assert columns["doubled"]["generated"] == "stored"
    assert not columns["doubled"]["writable"]
    assert columns["mood"]["enum"] == ["sad", "so, so", 'a "quoted" \\ word', "", "NULL"]


@pytest_twisted.ensureDeferred
async def test_verbs_of_a_relation_are_those_that_work(caller: Caller) -> None:
    """It lists exactly the verbs that work."""
    relations = (await caller.call("rowcast.describe"))["relations"]
    reading = {"find", "count", "exists"}
    assert set(relations["things"]["verbs"]) >= reading | {"get", "create", "update", "delete"}
    assert reading <= set(relations["named"]["verbs"])
    assert "get" in relations["named"]["verbs"], "it shows the key of its one table"
    assert "get" not in relations["keyless"]["verbs"]
    assert not set(relations["counted"]["verbs"]) & {"get", "create", "update", "delete"}


@pytest_twisted.ensureDeferred
async def test_relation_that_is_hidden_or_unserved_is_not_described(caller: Caller) -> None:
    """Hidden and unserved relations are neither described nor named by foreign keys to them."""
    document = await caller.call("rowcast.describe")
    assert not document["relations"]["held"]["foreign_keys"]
    for word in ("secret", "vault'", "nobody", "@hidden", "unserved"):
        assert word not in repr(document)


@pytest_twisted.ensureDeferred
async def test_schema_of_a_column_matches_its_values(caller: Caller) -> None:
    """The JSON Schema of each column is valid, and the returned rows match it."""
    for name, values in VALUES.items():
        for value in values[1]:
            await caller.call("rowcast.kept.create", {name: value}, returning=False)
    relations = (await caller.call("rowcast.describe"))["relations"]
    checked = 0
    for relation in ("kept", "things", "owners"):
        columns = relations[relation]["columns"]
        validators = {}
        for name, column in columns.items():
            Draft202012Validator.check_schema(column["json_schema"])
            validators[name] = Draft202012Validator(column["json_schema"])
        for row in (await caller.call(f"rowcast.{relation}.find"))["rows"]:
            for name, value in row.items():
                errors = [each.message for each in validators[name].iter_errors(plain(value))]
                assert not errors, (name, value, errors)
                checked += 1
    assert checked > 1000


@pytest.mark.parametrize(
    ("relation", "column", "wrong"),
    [
        ("owners", "name", None),
        ("owners", "name", "eleven char"),
        ("things", "id", 2**63),
        ("things", "price", 1.5),
        ("things", "price", "abc"),
        ("things", "mood", "happy"),
        ("kept", "bool", "yes"),
        ("kept", "ints", ["x"]),
        ("kept", "pair", {"a": "x"}),
        ("kept", "hstore", {"a": 1}),
        ("kept", "words", [1]),
    ],
)
@pytest_twisted.ensureDeferred
async def test_schema_of_a_column_does_not_match_impossible_values(
    caller: Caller, relation: str, column: str, wrong: Any
) -> None:
    """Values that no result can have do not match the schemas."""
    found = (await caller.call("rowcast.describe"))["relations"][relation]["columns"][column]
    assert not Draft202012Validator(found["json_schema"]).is_valid(wrong)


@pytest.fixture
def clerk(dsn: str) -> Iterator[str]:
    """Create a role with few privileges; yield its DSN."""
    execute(
        dsn,
        "CREATE ROLE clerk LOGIN; GRANT USAGE ON SCHEMA app TO clerk;"
        "GRANT SELECT (id, code), UPDATE (code) ON app.things TO clerk;"
        "GRANT SELECT, DELETE ON app.owners TO clerk; GRANT INSERT ON app.held TO clerk",
    )
    yield make_dsn(dsn, user="clerk")
    execute(dsn, "DROP OWNED BY clerk; DROP ROLE clerk")


@pytest_twisted.ensureDeferred
async def test_relation_without_rights_is_not_described(
    router: Router, clerk: str, caller: Caller
) -> None:
    """Only relations and verbs that the service's role may use are described."""
    async with served(clerk, router, prefix="rowcast.clerk", schemas=("app", "apart")):
        relations = (await caller.call("rowcast.clerk.describe"))["relations"]
        assert set(relations) == {"things", "owners", "held"}
        usable = {
            name: {column for column, each in relation["columns"].items() if each["readable"]}
            for name, relation in relations.items()
        }
        assert usable == {"things": {"id", "code"}, "owners": {"id", "name"}, "held": set()}
        assert {n for n, c in relations["things"]["columns"].items() if c["writable"]} == {"code"}
        assert "create" not in relations["things"]["verbs"]
        assert "delete" not in relations["things"]["verbs"]
        assert {"update", "find", "get"} <= set(relations["things"]["verbs"])
        assert {"delete", "find"} <= set(relations["owners"]["verbs"])
        assert {"create"} <= set(relations["held"]["verbs"]) <= {"create", "import"}
        row = await caller.call("rowcast.clerk.things.get", 1)
        assert row.keys() == {"id", "code"}


@pytest_twisted.ensureDeferred
async def test_stats_after_calls_count_outcomes_and_verbs(caller: Caller) -> None:
    """Calls are counted by outcome and by verb; the pool has gauges and counters."""
    before = await caller.call("rowcast.stats")
    await caller.call("rowcast.owners.find")
    with pytest.raises(ApplicationError):
        await caller.call("rowcast.owners.get", 99)
    after = await caller.call("rowcast.stats")
    calls = after["calls"]
    assert calls.keys() == {"in_progress", "outcomes", "latency", "verbs"}
    assert calls["in_progress"] == 1, "this very call"
    told = [each["calls"]["outcomes"] for each in (before, after)]
    assert told[1]["answered"] - told[0]["answered"] == 2
    assert told[1]["refused"] - told[0].get("refused", 0) == 1
    latency = calls["latency"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p95"] <= latency["p99"]
    found = [
        each["calls"]["verbs"].get("get", {"calls": 0, "errors": {}}) for each in (before, after)
    ]
    assert found[1]["calls"] - found[0]["calls"] == 1
    not_found = [each["errors"].get("rowcast.error.not_found", 0) for each in found]
    assert not_found[1] - not_found[0] == 1
    assert calls["verbs"].keys() >= {"find", "get", "stats"}
    assert calls["verbs"]["stats"]["latency"]["p99"] > 0
    pool = after["pool"]
    assert pool.keys() == {"size", "busy", "waiting", "timeouts", "connects", "slow"}
    assert 1 <= pool["size"] <= 5
    assert (pool["timeouts"], pool["slow"]) == (0, 0)
    assert pool["connects"] >= pool["size"]


@pytest_twisted.ensureDeferred
async def test_partial_description_equals_its_part_of_the_full_one(caller: Caller) -> None:
    """A part describes its relations and functions like the full document, and names all others."""
    whole = await caller.call("rowcast.describe")
    # Not in the reactor thread: the router drops a service that is silent for 10 s.
    await deferToThread(Draft202012Validator.check_schema, whole)
    part = await caller.call("rowcast.describe", relations=["things", "apart.things"])
    await deferToThread(Draft202012Validator.check_schema, part)
    assert part["relations"] == {name: whole["relations"][name] for name in part["relations"]}
    assert part["relations"].keys() == {"things", "apart.things"}
    assert part["functions"] == {}
    assert part["names"] == whole["names"]
    assert set(part["names"]["relations"]) == whole["relations"].keys()
    assert "row.things" in part["$defs"]
    assert "row.owners" not in part["$defs"]
    assert (await caller.call("rowcast.describe", functions=[]))["relations"] == {}
    with pytest.raises(ApplicationError) as caught:
        await caller.call("rowcast.describe", relations=["thing"])
    assert caught.value.kwargs["path"] == "relations.0"
    assert "things" in caught.value.kwargs["hint"]


@pytest_twisted.ensureDeferred
async def test_description_over_the_limit_is_refused_with_a_hint(
    dsn: str, router: Router, caller: Caller
) -> None:
    """A description too large for one result is refused, and the error says how to request a part."""
    async with served(dsn, router, prefix="rowcast.small", schemas=("app",), max_bytes=70_000):
        with pytest.raises(ApplicationError) as caught:
            await caller.call("rowcast.small.describe")
        assert caught.value.error == "rowcast.error.too_large"
        assert "relations" in caught.value.kwargs["hint"]
        part = await caller.call("rowcast.small.describe", relations=["owners"])
        assert part["relations"]["owners"]["verbs"]["get"]


@pytest_twisted.ensureDeferred
async def test_calls_through_the_router_match_their_description(caller: Caller) -> None:
    """Arguments and results through the router match the schemas."""
    described = Described(await caller.call("rowcast.describe"))
    for name, args, kwargs in (
        ("things.get", [1], {}),
        ("things.get", [{"code": None}], {"form": "lists"}),
        ("things.find", [], {"count": "exact", "where": {"mood": {"is": "not null"}}}),
        ("kept.find", [], {"limit": 3}),
        ("kept.find", [], {"select": ["id"], "form": "lists"}),
        ("owners.count", [], {}),
        ("owners.get", [77], {}),
        ("owners.create", [{"name": "Eve"}], {}),
        ("owners.create", [[{"name": "Eva"}]], {"returning": False}),
        ("owners.update", [], {"where": {"name": "Eve"}, "changes": {"name": "Evi"}}),
        ("owners.delete", [], {"where": {"name": {"like": "Ev%"}}}),
    ):
        try:
            answer = await caller.call(f"rowcast.{name}", *args, **kwargs)
        except ApplicationError as error:
            found = described.document["relations"][name.partition(".")[0]]["verbs"]
            verb = found[name.partition(".")[2]]
            said = {"error": error.error, "args": list(error.args), "kwargs": error.kwargs}
            assert not described.faults(verb["errors"], said), said
        else:
            described.check_call(name, args, kwargs, answer)


@pytest.mark.parametrize(
    ("verb", "kwargs"),
    [
        ("stream", {"chunk": 1}),
        ("stream", {"form": "lists"}),
        ("stream", {"select": ["n:name"]}),
        ("export", {"format": "ndjson"}),
        ("export", {}),
    ],
)
@pytest_twisted.ensureDeferred
async def test_parts_of_a_progressive_call_match_their_description(
    caller: Caller, verb: str, kwargs: dict[str, Any]
) -> None:
    """Each progressive result matches the schema of parts, and the final result its own schema."""
    described = Described(await caller.call("rowcast.describe", relations=["owners"]))
    parts: list[Any] = []
    options = CallOptions(on_progress=parts.append)
    end = await caller.call(f"rowcast.owners.{verb}", options=options, **kwargs)
    described.check_call(f"owners.{verb}", [], kwargs, end)
    progress = described.document["relations"]["owners"]["verbs"][verb]["progress"]
    plain_rows = verb == "stream" and not kwargs.keys() - {"chunk"}
    usual = progress["anyOf"][0] if plain_rows else progress
    assert parts
    for part in parts:
        assert not described.faults(usual, part)
    assert described.faults(progress, {"rows": 1})


@pytest.mark.parametrize("name", ["describe", "health", "stats"])
@pytest_twisted.ensureDeferred
async def test_call_with_other_arguments_than_a_timeout_is_refused(
    caller: Caller, name: str
) -> None:
    """They take only a timeout."""
    await caller.call(f"rowcast.{name}", timeout=5)
    for args, kwargs in (([1], {}), ([], {"x": 1}), ([], {"timeout": "x"})):
        with pytest.raises(ApplicationError) as caught:
            await caller.call(f"rowcast.{name}", *args, **kwargs)
        assert caught.value.error == "wamp.error.invalid_argument"


@pytest_twisted.ensureDeferred
async def test_health_without_postgresql_is_not_ready(router: Router, caller: Caller) -> None:
    """While PostgreSQL is down, the service is live but not ready; afterwards it is ready again."""
    home = Path(tempfile.mkdtemp(prefix="rowcast-health-"))
    place = Place(state=home)
    try:
        server = ExitStack()
        dsn = server.enter_context(place.running())
        async with served(dsn, router, prefix="rowcast.frail") as service:
            scheduler = service.pool.scheduler
            scheduler.limits = replace(scheduler.limits, connect_wait=0.1)
            await until(lambda: service.listener.listening)
            found = await caller.call("rowcast.frail.health")
            checks = dict.fromkeys(("router", "listener", "changes", "catalog", "postgres"), True)
            await until(lambda: service.feed.well)
            assert found == {"live": True, "ready": True, "checks": checks}
            server.close()
            await until(lambda: not service.listener.listening and not service.feed.well)
            found = await caller.call("rowcast.frail.health")
            gone = {**checks, "listener": False, "changes": False, "postgres": False}
            assert found == {"live": True, "ready": False, "checks": gone}
            with place.running():
                while not found["ready"]:
                    await pause(0.05)
                    found = await caller.call("rowcast.frail.health")
                assert found["checks"] == checks
    finally:
        shutil.rmtree(home, ignore_errors=True)
