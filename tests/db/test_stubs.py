"""
Typed clients: the messages of compilers about them and about code that uses them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from jsonschema import Draft202012Validator

from service.api.verbs import VERBS
from service.db.introspect import read_catalog
from service.describe.document import describe
from service.describe.stubs import python, typescript
from tests.node import modules, program

SCHEMA = """
CREATE TYPE mood AS ENUM ('sad', 'it''s "ok"'); CREATE TYPE pair AS (a int, "b c" text);
CREATE TABLE things (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL, price numeric,
    data bytea, mood mood NOT NULL DEFAULT 'sad', tags text[], doc jsonb, "class" int,
    twice int GENERATED ALWAYS AS (1) STORED, code varchar(3) UNIQUE, pair pair, at timestamptz);
CREATE TABLE "a b" ("1 x" int); CREATE TABLE "a-b" (x int); CREATE TABLE "class" (x int);
CREATE TABLE "1st" (x int); CREATE TABLE "größe" (x int); CREATE VIEW few AS SELECT 1 AS one;
CREATE TABLE linked (thing_id int REFERENCES things, "other id" text, PRIMARY KEY (thing_id, "other id"));
CREATE TABLE fn_add (x int PRIMARY KEY);
CREATE TABLE paths (id int PRIMARY KEY, "a`${b}\\""c" jsonb, "d->e" jsonb);
CREATE FUNCTION add(a int, b int DEFAULT 1) RETURNS int LANGUAGE sql AS 'SELECT a + b';
CREATE FUNCTION add(a text, c text[]) RETURNS text LANGUAGE sql AS 'SELECT a';
CREATE FUNCTION cheap(most numeric) RETURNS SETOF things STABLE LANGUAGE sql
    AS 'SELECT * FROM things WHERE price < most';
CREATE FUNCTION first() RETURNS things STABLE LANGUAGE sql AS 'SELECT * FROM things LIMIT 1';
CREATE FUNCTION fares("from" text, VARIADIC seats int[]) RETURNS TABLE (kind text, fare numeric)
    STABLE LANGUAGE sql AS $$SELECT 'taxi', 1.5$$;
CREATE FUNCTION outs(n int, OUT low int, OUT high numeric[]) LANGUAGE sql AS 'SELECT n, NULL::numeric[]';
CREATE FUNCTION take(jsonb) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION self(procedure int, timeout int) RETURNS SETOF int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION same(v anyelement) RETURNS anyelement LANGUAGE sql AS 'SELECT v';
CREATE PROCEDURE work(INOUT a int) LANGUAGE sql AS 'SELECT a';
""" + "".join(
    f'CREATE TABLE "{name}" (id int PRIMARY KEY, "{name}" {kind}, "str" text, "😀" int);'
    for name, kind in {
        "date": "date", "text": "text NOT NULL", "int4": "int", "integer": "int", "new": "bool",
        "mood": "mood", "Error": "text", "sort": "text", "row": "text", "Row": "text",
        "page": "int", "null": "int", "None": "int", "Any": "int", "list": "int[]", "rows": "int",
        "session": "int", "service": "int", "new_or_null": "int", "things_insert": "int",
    }.items() if name != "mood"
) + """
CREATE TYPE faces AS ENUM ('😀', 'None', 'null', ''); CREATE TABLE faced (face faces NOT NULL);
CREATE FUNCTION list("self" int, options int, "_0" int, "class" int, "__a" int)
    RETURNS SETOF public.date LANGUAGE sql AS 'SELECT * FROM date';
CREATE FUNCTION "int"(text, "_0" text) RETURNS text LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION str(d date[]) RETURNS bool LANGUAGE sql AS 'SELECT true';
CREATE FUNCTION "Any"() RETURNS public.date LANGUAGE sql AS 'SELECT * FROM date LIMIT 1';
"""  # fmt: skip


async def greet(call: object, name: str, times: int = 1, *, loud: bool = False) -> list[str]:
    """Greet somebody."""
    return [name.upper() if loud else name] * times


USE_PY = """
from typing import Any, Literal, assert_type
from made import *

def news(message: News[ThingsRow]) -> None:
    if message["type"] == "delta":
        assert_type(message["enter"], list[ThingsRow])

async def watch(session: Caller) -> None:
    await Service(session).things.watch(where={"id": 1}, tx=True)

async def use(session: Caller) -> None:
    service = Service(session)
    page = await service.things.find(limit=1, where={"id": 1})
    assert_type(page["rows"][0]["price"], str | None)
    assert_type(await service.things.count(), int)
    chosen = await service.things.find(select=["n:name"], limit=2)
    assert_type(chosen["rows"][0]["n"], Any)
    row = await service.things.get(1, timeout=2)
    assert_type(row["mood"], Literal["sad", "it's \\"ok\\""])
    await service.things.get(1, embed={"linked": True})
    await service.things.get({"code": "x"})
    new: ThingsInsert = {"name": "x"}
    change: ThingsUpdate = {"price": 1.5}
    assert_type(await service.things.create(new), ThingsRow)
    assert_type(await service.things.create([new], max_affected=3), list[ThingsRow])
    await service.things.create({"name": "x", "linked": [{"other id": "y"}, {"$link": [1, "x"]}]})
    nest: LinkedCreate = {"other id": "y", "thing_id": {"name": "x", "linked": [{"other id": "z"}]}}
    await service.linked.create([nest, {"other id": "w", "things": {"$link": 1}}])
    assert_type(await service.things.upsert(new, on_conflict="x"), ThingsRow | None)
    stands: ThingsInsert = {"name": {"$value": "x"}, "price": {"$default": True}, "tags": None}
    await service.things.upsert([stands], update={"price": {"$add": 1}, "mood": {"$default": True}})
    put = await service.things.upsert(new, returning="both")
    assert_type(put, Both[ThingsRow | None, ThingsRow] | None)
    assert_type(await service.things.upsert([new], returning="old"), list[ThingsRow | None])
    puts = await service.things.upsert([new], returning="both")
    assert_type(puts, list[Both[ThingsRow | None, ThingsRow]])
    await service.things.create({"name": {"$value": "x"}, "doc": {"$value": {"$add": 1}}})
    await service.linked.create({"other id": "y", "thing_id": {"$value": 1}})
    await service.things.update(1, {"doc": {"$value": 1}, "tags": {"$append": ["a"]}, "at": {"$default": True}})
    assert_type(await service.things.update(1, change), ThingsRow)
    many = await service.things.update(where={"id": 1}, changes=change)
    assert_type(await service.things.update(rows=[{"id": 1, "name": "x"}], by=["id"]), list[ThingsRow])
    taken = await service.things.update(all=True, changes=change, limit=1, skip_locked=True)
    assert_type(taken, Written[ThingsRow])
    assert_type(many["rows"], list[ThingsRow])
    assert_type((await service.things.delete(all=True))["affected"], int)
    both = await service.things.update(1, change, returning="both")
    assert_type(both, Both[ThingsRow, ThingsRow])
    assert_type(await service.things.update(1, change, returning="old"), ThingsRow)
    both_of_many = await service.things.update(all=True, changes=change, returning="both")
    assert_type(both_of_many["rows"][0]["old"], ThingsRow)
    both_of_each = await service.things.update(rows=[change], returning="both")
    assert_type(both_of_each, list[Both[ThingsRow, ThingsRow]])
    assert_type((await service.things.delete(1, returning="both"))["new"], None)
    gone = await service.things.delete(all=True, returning="both")
    assert_type(gone, Written[Both[ThingsRow, None]])
    await service.linked.delete([1, "x"], expect={"thing_id": 1})
    await service.things.import_([new], done=False)
    assert_type((await service.things.stream(chunk=5))["rows"], int)
    await service.things.export(format="csv")
    await service.things.peek(limit=1, order="-id")
    await service.fn.cheap_peek(args={"most": 1}, limit=1)
    await service.things.aggregate({"n": {"count": "*"}}, group=["mood"])
    await service.things.find(order="-id", distinct="mood")
    await service.things.find(order={"by": "id", "nulls": "first"}, select="id")
    await service.things.aggregate({"n": {"count": "*"}}, group={"column": "mood"})
    await service.things.upsert({"name": "x"}, on_conflict="code", update="price")
    assert_type(await service.fn.add(a=1), int | None)
    assert_type(await service.fn.add(a="x", c=["y"]), str | None)
    cheap = await service.fn.cheap(most="2.50")
    assert_type(cheap[0]["name"], str | None)
    found = await service.fn.fares_find(args={"from": "x", "seats": [1]}, limit=2)
    assert_type(found["rows"][0]["fare"], str | None)
    await service.fn.fares_aggregate(args={}, measures={"n": {"count": "*"}})
    outs = await service.fn.outs(n=1)
    assert_type(outs["low"], int | None)
    day = await service.date.create({"id": 1, "date": "2024-01-01", "😀": 3})
    assert_type(day["date"], str | None)
    assert_type((await service.text.get(1))["text"], str)
    assert_type((await service.list.get(1))["str"], str | None)
    faced = (await service.faced.find())["rows"][0]
    assert_type(faced["face"], Literal["😀", "None", "null", ""])
    assert_type(await service.fn.str_(d=None), bool | None)
    assert_type(await service.fn.int_("a"), str | None)
    odd: dict[str, Any] = {"self": 1, "options": 1, "_0": 1, "class": 1, "__a": 1}
    await service.fn.list_(**odd)
    await service.fn.take({"a": 1})
    assert_type(await service.hello.greet("Ada", 2, loud=True), list[str])
    await service.service.health()
"""

WRONG_PY = [
    'await service.things.update(1, {}, returning="new")',
    'await service.things.create({"name": "x"}, returning="old")',
    'await service.things.update(1, {"doc->a": 1})',
    'await service.things.create({"name": 5})',
    'await service.things.create({"name": {"$default": False}})',
    'await service.things.create({"name": "x", "price": {"$add": 1}})',
    'await service.things.update(1, {"name": {"$add": 1}})',
    'await service.things.upsert({"name": "x"}, update={"prize": 1})',
    'await service.things.create({"name": "x", "linked": [{"other id": 5}]})',
    'await service.things.find(limit="x")',
    "await service.things.find(limits=1)",
    'await service.things.peek(limit="x")',
    "await service.things.find(order=1)",
    "await service.things.get()",
    "await service.few.create({})",
    "await service.fn.add(a=1, d=2)",
    "await service.fn.cheap()",
    "await service.hello.greet(5)",
]

USE_TS = """
import { Both, Session, SortKey, ThingsInsert, ThingsUpdate, Page, ThingsRow, Written } from "./made";
declare const session: Session;
async function use(): Promise<void> {
  const page: Page<ThingsRow> = await session.call("rowcast.things.find", [], { limit: 1, where: { id: 1 } });
  const price: string | null = page.rows[0].price;
  const many: number = await session.call("rowcast.things.count");
  const chosen = await session.call("rowcast.things.find", null, { select: ["n:name"] });
  const loose: unknown = chosen.rows[0].n;
  const row: ThingsRow = await session.call("rowcast.things.get", [{ code: "x" }], { timeout: 2 });
  const made: ThingsInsert = { name: "x" };
  const change: ThingsUpdate = { price: 1.5 };
  const one: ThingsRow = await session.call("rowcast.things.create", [made]);
  const some: ThingsRow[] = await session.call("rowcast.things.create", [[made]], { max_affected: 3 });
  await session.call("rowcast.things.create", [{ name: "x", linked: [{ "other id": "y" }, { $link: 1 }] }]);
  await session.call("rowcast.linked.create", [[{ "other id": "y", thing_id: { name: "x" } }]]);
  const put: ThingsRow | null = await session.call("rowcast.things.upsert", [made], { on_conflict: "x" });
  const stands: ThingsInsert = { name: { $value: "x" }, price: { $default: true }, tags: null };
  await session.call("rowcast.things.upsert", [[stands]], { update: { price: { $add: 1 }, mood: { $default: true } } });
  const puts: Both<ThingsRow | null, ThingsRow>[] =
    await session.call("rowcast.things.upsert", [[made]], { returning: "both" });
  const olds: (ThingsRow | null)[] = await session.call("rowcast.things.upsert", [[made]], { returning: "old" });
  console.log(puts, olds);
  await session.call("rowcast.things.create", [{ name: { $value: "x" }, doc: { $value: { $add: 1 } } }]);
  await session.call("rowcast.linked.create", [{ "other id": "y", thing_id: { $value: 1 } }]);
  await session.call("rowcast.things.update", [1, { doc: { $value: 1 }, tags: { $append: ["a"] }, at: { $default: true } }]);
  const n: number = (await session.call("rowcast.things.update", [1, change], { returning: false })).affected;
  const each: ThingsRow[] = await session.call("rowcast.things.update", [], { rows: [{ id: 1, name: "x" }], by: "id" });
  const both = await session.call("rowcast.things.update", [1, change], { returning: "both" });
  const pair: Both<ThingsRow, ThingsRow> = both;
  const was: ThingsRow = await session.call("rowcast.things.update", [1, change], { returning: "old" });
  const pairs: Both<ThingsRow, ThingsRow>[] =
    await session.call("rowcast.things.update", [], { rows: [{ id: 1 }], returning: "both" });
  const picked = await session.call("rowcast.things.update", [],
    { changes: change, all: true, returning: "both", select: ["n:name"] });
  const before: unknown = picked.rows[0].old.n;
  const gone: Both<ThingsRow, null> = await session.call("rowcast.things.delete", [1], { returning: "both" });
  const left = await session.call("rowcast.things.delete", [], { all: true, returning: "both" });
  const last: string = left.rows[0].old.name;
  console.log(pair, was, pairs, before, gone, last);
  await session.call("rowcast.things.update", [1, { "doc->a->b": 1, "doc->c": { $add: 1 } }]);
  await session.call("rowcast.paths.update", [1, { 'a`${b}\\\\"c->d': 1, '"d->e"': 1, '"d->e"->f': 2 }]);
  const all: Written<ThingsRow> = await session.call("rowcast.things.update", [], { changes: change, all: true });
  await session.call("rowcast.linked.delete", [[1, "x"]], { expect: { thing_id: 1 } });
  await session.call("rowcast.things.import", [[made]], { done: false });
  const end = await session.call("rowcast.things.stream", [], { chunk: 5 }, { receive_progress: true })
    .then((last) => last.rows, null, (part) => console.log(part[0].name.length));
  session.call("rowcast.things.watch", [], { limit: 3, tx: true }, { receive_progress: true })
    .then(() => 0, null, (news) => console.log(
      news.type === "delta" ? news.enter[0].name.length : news.position?.length, news.step));
  session.call("rowcast.things.watch", [], { group: "mood" }, { receive_progress: true })
    .then(() => 0, null, (news) => news.type === "snapshot" && console.log(news.rows[0].mood));
  await session.call("rowcast.things.aggregate", [{ n: { count: "*" } }], { group: ["mood"] });
  await session.call("rowcast.things.peek", [], { limit: 1, order: "-id" });
  await session.call("rowcast.fn.cheap.peek", [], { args: { most: 1 }, limit: 1 });
  await session.call("rowcast.things.find", [], { select: "id", order: "-id", distinct: "mood" });
  await session.call("rowcast.things.find", [], { order: { by: "id", nulls: "first" } });
  await session.call("rowcast.things.aggregate", [{ n: { count: "*" } }], { group: { column: "mood" } });
  await session.call("rowcast.things.upsert", [made], { on_conflict: "code", update: "price" });
  const sum: number | null = await session.call("rowcast.fn.add", [], { a: 1 });
  const text: string | null = await session.call("rowcast.fn.add", [], { a: "x", c: ["y"] });
  const cheap = await session.call("rowcast.fn.cheap", [], { most: "2.50" });
  const name: string | null = cheap[0].name;
  const fares = await session.call("rowcast.fn.fares.find", [], { args: { from: "x", seats: [1] }, limit: 2 });
  const fare: string | null = fares.rows[0].fare;
  const day = await session.call("rowcast.date.create", [{ id: 1, date: "2024-01-01", "😀": 3 }]);
  const date: string | null = day.date;
  const sorted: string | null = (await session.call("rowcast.sort.get", [1])).sort;
  const key: SortKey = [1];
  const face: "😀" | "None" | "null" | "" = (await session.call("rowcast.faced.find")).rows[0].face;
  console.log(date, sorted, key, face);
  const low: number | null = (await session.call("rowcast.fn.outs", [], { n: 1 })).low;
  await session.call("rowcast.fn.take", [{ a: 1 }]);
  const hello: string[] = await session.call("rowcast.hello.greet", ["Ada", 2], { loud: true });
  await session.call("rowcast.health");
  console.log(price, many, loose, row, one, some, put, n, all, end, sum, text, name, fare, low, hello);
}
use();
"""

WRONG_TS = [
    'session.call("rowcast.things.update", [1, {}], { returning: "new" })',
    'session.call("rowcast.things.create", [{ name: "x" }], { returning: "old" })',
    'session.call("rowcast.things.update", [1, { "name->a": 1 }])',
    'session.call("rowcast.things.update", [1, {}], { returning: "both" }).then((row) => row.name)',
    'session.call("rowcast.things.delete", [1], { returning: "both" }).then((row) => row.new.name)',
    'session.call("rowcast.things.create", [{ name: 5 }])',
    'session.call("rowcast.things.create", [{ name: { $value: 5 } }])',
    'session.call("rowcast.things.create", [{ name: { $default: false } }])',
    'session.call("rowcast.things.create", [{ name: "x", price: { $add: 1 } }])',
    'session.call("rowcast.things.update", [1, { name: { $add: 1 } }])',
    'session.call("rowcast.things.upsert", [{ name: "x" }], { update: { price: { $append: [1] } } })',
    'session.call("rowcast.things.create", [{ name: "x", linked: [{ "other id": 5 }] }])',
    'session.call("rowcast.things.find", [], { limit: "x" })',
    'session.call("rowcast.things.find", [], { order: 1 })',
    'session.call("rowcast.things.peek", [], { limit: "x" })',
    'session.call("rowcast.things.get")',
    'session.call("rowcast.few.create", [{}])',
    'session.call("rowcast.fn.add", [], { a: 1, d: 2 })',
    'session.call("rowcast.fn.cheap")',
    'session.call("rowcast.hello.greet", [5])',
]


@pytest.fixture(scope="module")
def document(dsn: str) -> Any:
    """Describe a database with names and types of all kinds."""
    catalog = read_catalog(dsn, ("public",))
    verbs = {
        **VERBS,
        "peek": replace(VERBS["find"], name="peek"),
    }  # a verb without a method in the templates
    return describe(catalog, "rowcast", "1", verbs, {"hello.greet": greet})


@pytest.fixture(scope="module")
def mypy(document: Any, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return mypy's messages about the module and its uses; one run for all tests, because it takes seconds."""
    body = "".join(f"    {wrong}\n" for wrong in WRONG_PY)
    files = {
        "made.py": python(document),
        "use.py": USE_PY,
        "options.py": options_py(document),
        "wrong.py": "from made import *\n\nasync def use(service: Service) -> None:\n" + body,
    }
    uses = ["use.py", "options.py", "wrong.py"]
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", *uses]
    return compiler_output(command, files, tmp_path_factory.mktemp("python"))


@pytest.fixture(scope="module")
def tsc(document: Any, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return tsc's messages about the declarations and their uses; one run for all tests."""
    head = 'import { Session } from "./made";\ndeclare const session: Session;\n'
    files = {
        "made.ts": typescript(document),
        "use.ts": USE_TS,
        "options.ts": options_ts(document),
        "wrong.ts": head + "\n".join(f"{wrong};" for wrong in WRONG_TS),
    }
    uses = ["use.ts", "options.ts", "wrong.ts"]
    command = [*compiler(), "--strict", "--noEmit", "--target", "es2022", *uses]
    return compiler_output(command, files, tmp_path_factory.mktemp("typescript"))


def check(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a compiler."""
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def compiler_output(command: list[str], files: dict[str, str], folder: Path) -> list[str]:
    """Return the output lines of a compiler that must fail."""
    for name, text in files.items():
        (folder / name).write_text(text)
    run = check(command, folder)
    assert run.returncode, "it refuses nothing"
    return run.stdout.splitlines()


def about(name: str, lines: list[str]) -> list[str]:
    """Return the messages about a file, or about what it imports."""
    return [line for line in lines if line.startswith((name, "made."))]


def test_stubs_for_python_are_accepted_by_mypy(mypy: list[str]) -> None:
    """Mypy accepts the module, knows its types, and refuses wrong uses."""
    assert about("use.py", mypy) == []
    for at, wrong in enumerate(WRONG_PY, 4):
        assert any(line.startswith(f"wrong.py:{at}: error") for line in mypy), (wrong, mypy)


def test_stubs_for_typescript_are_accepted_by_tsc(tsc: list[str]) -> None:
    """Tsc accepts the declarations, knows their types, and refuses wrong uses."""
    assert about("use.ts", tsc) == []
    for at, wrong in enumerate(WRONG_TS, 3):
        assert any(line.startswith(f"wrong.ts({at},") for line in tsc), (wrong, tsc)


def test_typescript_options_may_be_null(tsc: list[str]) -> None:
    assert about("options.ts", tsc) == []


def test_python_options_may_be_none(mypy: list[str]) -> None:
    """Each option for which the service accepts null may be None; writes have the types of the rows."""
    assert about("options.py", mypy) == []


def nullable(document: Any) -> Iterator[tuple[str, str]]:
    """Yield verbs of relations, each with a keyword that may be null or another value."""
    parts = document["$defs"]
    for verb, described in document["verbs"].items():
        required = parts[f"arguments.{verb}"].get("required")
        assert verb in POSITIONAL or not required, f"POSITIONAL lacks what {verb} requires"
        for name, schema in parts[f"arguments.{verb}"]["properties"].items():
            takes = Draft202012Validator({**schema, "$defs": parts})
            only = schema == {"type": "null"}
            if name not in (*described["positional"], "form") and takes.is_valid(None) and not only:
                yield verb, name


POSITIONAL = {
    "get": "1", "aggregate": "{}", "create": "made", "upsert": "made", "update": "1, change",
    "delete": "1", "import": "[made]",
}  # fmt: skip
BY_FILTER = {"where", "all", "limit", "skip_locked"}
"""Keywords that `update` and `delete` accept only without a key."""


def options_ts(document: Any) -> str:
    """Return calls with each option that may be null."""
    lines = []
    for verb, name in nullable(document):
        args, kwargs = POSITIONAL.get(verb, ""), f"{name}: null"
        if verb in ("update", "delete") and name in BY_FILTER:
            args, kwargs = "", kwargs + (", changes: change" if verb == "update" else "")
        if name == "by":
            args, kwargs = "", kwargs + ", rows: [change]"
        parts = ", { receive_progress: true }" if verb in ("stream", "export", "watch") else ""
        lines.append(f'session.call("rowcast.things.{verb}", [{args}], {{ {kwargs} }}{parts});')
    assert len(lines) > 70
    chosen = """async function use(): Promise<void> {
      const row: ThingsRow = await session.call("rowcast.things.get", [1], { select: null, embed: null });
      const made: ThingsRow = await session.call("rowcast.things.create", [{ name: "x" }], { select: null });
    }"""
    head = """import { Session, ThingsInsert, ThingsRow, ThingsUpdate } from "./made";
    declare const session: Session; declare const made: ThingsInsert; declare const change: ThingsUpdate;
    """
    return head + "\n".join([*lines, chosen])


def options_py(document: Any) -> str:
    """Return calls with each option that may be None."""
    lines = []
    for verb, name in nullable(document):
        if name == "returning" or (name in ("select", "embed") and verb not in ("get", "find")):
            continue
        args = POSITIONAL.get(verb, "")
        if verb in ("update", "delete") and name in BY_FILTER:
            args = "changes=change" if verb == "update" else ""
        if name == "by":
            args = "rows=[change]"
        method = "import_" if verb == "import" else verb
        lines.append(f"await service.things.{method}({f'{args}, ' if args else ''}{name}=None)")
    assert len(lines) > 60
    lines.append("assert_type(await service.things.get(1, select=None, embed=None), ThingsRow)")
    head = """from typing import assert_type
from made import *

async def use(service: Service, made: ThingsInsert, change: ThingsUpdate) -> None:
    """
    return head + "\n    ".join(lines) + "\n"


def compiler() -> list[str]:
    """Return the command of TypeScript's compiler; install it if it is missing."""
    return [program(), str(modules() / "typescript" / "bin" / "tsc")]


def test_relations_whose_names_differ_in_special_characters_have_own_types(document: Any) -> None:
    """Relations whose names differ only in special characters have different types."""
    made = typescript(document)
    names = re.findall(r"^export interface (\w+)", made, re.M)
    assert len(names) == len(set(names))
    assert {"ABRow", "AB_Row", "ClassRow", "R1stRow", "FewRow", "FnFares0Row"} <= set(names)


def test_relations_named_like_types_have_their_own_schemas(document: Any) -> None:
    """A table and a type with the same name have different schemas in `$defs`."""
    parts = document["$defs"]
    for name in ("date", "text", "int4", "new"):
        assert set(parts[f"new.{name}"]["properties"]) == {"id", name, "str", "😀"}
    judge = Draft202012Validator(
        {**document["relations"]["date"]["json_schema"]["insert"], "$defs": parts}
    )
    assert judge.is_valid({"id": 1, "date": "2024-01-01", "str": None})
    assert judge.is_valid({"id": 1, "date": {"$default": True}})
    assert not judge.is_valid({"id": 1, "date": {"id": 1}})
    assert not judge.is_valid({"id": "one", "dates": "2024-01-01"})


def test_referenced_schema_parts_exist(document: Any) -> None:
    """Each `$ref` names an existing part."""
    names = {
        unquote(name).replace("~1", "/").replace("~0", "~")
        for name in re.findall(r'"#/\$defs/([^"]+)"', json.dumps(document))
    }
    assert names <= document["$defs"].keys()


def test_verbs_of_any_relation_have_a_signature(document: Any) -> None:
    """Each procedure has a signature in both languages."""
    uris = {
        *(f"rowcast.{name}.{verb}" for name, relation in document["relations"].items()
          for verb in relation["verbs"]),
        *(f"rowcast.{name}" for name in (*document["functions"], *document["procedures"])),
        *(f"rowcast.{name}.{verb}" for name, overloads in document["functions"].items()
          for function in overloads for verb in function["verbs"]),
    }  # fmt: skip
    for made in (typescript(document), python(document)):
        assert {uri for uri in uris if json.dumps(uri) not in made} == set()


def test_methods_of_python_stubs_make_their_calls(document: Any) -> None:
    """Each method calls the procedure of its name with its arguments."""
    space: dict[str, Any] = {"__name__": "made"}
    exec(python(document), space)
    calls: list[Any] = []

    class Session:
        def call(self, *args: Any, **kwargs: Any) -> None:
            calls.append((args, kwargs))

    service = space["Service"](Session())
    service.things.get(1, timeout=2)
    service.fn.fares_find(args={})
    service.a_b.count()
    service.a_b_.count()
    assert calls == [
        (("rowcast.things.get", 1), {"timeout": 2}),
        (("rowcast.fn.fares.find",), {"args": {}}),
        (("rowcast.a%20b.count",), {}),
        (("rowcast.a-b.count",), {}),
    ]
    assert not hasattr(service.things, "gets")
