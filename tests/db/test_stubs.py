"""
Typed definitions: what compilers say of them, and of code that uses them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.answer import stubs
from service.answer.describing import describe
from service.db.offline import read_catalog
from tests.conftest import ROOT, execute, missing

NODE = ROOT / "tests" / "wamp" / "node"

SCHEMA = """
CREATE TYPE mood AS ENUM ('sad', 'it''s "ok"');
CREATE TABLE things (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL, price numeric,
    data bytea, mood mood NOT NULL DEFAULT 'sad', tags text[], doc jsonb, "class" int,
    twice int GENERATED ALWAYS AS (1) STORED);
CREATE TABLE "a b" ("1 x" int); CREATE TABLE "a-b" (x int); CREATE TABLE "class" (x int);
CREATE TABLE "1st" (x int); CREATE TABLE "größe" (x int); CREATE VIEW few AS SELECT 1 AS one;
CREATE FUNCTION add(a int, b int DEFAULT 1) RETURNS int LANGUAGE sql AS 'SELECT a + b';
"""

USE_PY = """
from typing import assert_type
from made import *

async def use(session: Session) -> None:
    page = await session.call("rowcast.things.find", limit=1)
    assert_type(page["rows"][0]["price"], str | None)
    assert_type(await session.call("rowcast.things.count"), int)
    new: ThingsInsert = {"name": "x"}
    change: ThingsUpdate = {}
    other = await session.call("rowcast.other.thing")
"""

USE_TS = """
import { Procedures, ThingsInsert, ThingsUpdate, Page, ThingsRow } from "./made";
declare function call<P extends keyof Procedures>(name: P): Promise<Procedures[P]>;
async function use(): Promise<void> {
  const page: Page<ThingsRow> = await call("rowcast.things.find");
  const price: string | null = page.rows[0].price;
  const many: number = await call("rowcast.things.count");
  const made: ThingsInsert = { name: "x" };
  const change: ThingsUpdate = {};
  console.log(price, many, made, change);
}
use();
"""


@pytest.fixture(scope="module")
def document(dsn: str) -> Any:
    """Describe a database with names and types of all kinds."""
    execute(dsn, SCHEMA)
    return describe(read_catalog(dsn, ("public",)), "rowcast", "1", stubs.ANSWERS, ())


def check(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a compiler."""
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_python(document: Any, tmp_path: Path) -> None:
    """Mypy takes the module, knows the types in it, and refuses what does not fit."""
    (tmp_path / "made.py").write_text(stubs.python(document))
    (tmp_path / "use.py").write_text(USE_PY)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "use.py"]
    found = check(mypy, tmp_path)
    assert found.returncode == 0, found.stdout
    (tmp_path / "use.py").write_text(USE_PY.replace('{"name": "x"}', '{"name": 5}'))
    assert check(mypy, tmp_path).returncode == 1


def test_typescript(document: Any, tmp_path: Path) -> None:
    """Tsc takes the declarations, knows the types in them, and refuses what does not fit."""
    npm = shutil.which("npm")
    if npm is None:
        missing("TypeScript's compiler needs Node.js and npm → apt-get install nodejs npm")
    compiler = NODE / "node_modules" / "typescript" / "bin" / "tsc"
    if not compiler.exists():
        subprocess.run([npm, "ci", "--silent"], cwd=NODE, check=True, env=os.environ)
    (tmp_path / "made.ts").write_text(stubs.typescript(document))
    (tmp_path / "use.ts").write_text(USE_TS)
    tsc = ["node", str(compiler), "--strict", "--noEmit", "--target", "es2022", "use.ts"]
    found = check(tsc, tmp_path)
    assert found.returncode == 0, found.stdout
    (tmp_path / "use.ts").write_text(USE_TS.replace('{ name: "x" }', "{ name: 5 }"))
    assert check(tsc, tmp_path).returncode != 0


def test_every_relation_has_a_name_of_its_own(document: Any) -> None:
    """Relations whose names differ in odd characters alone have different types."""
    made = stubs.typescript(document)
    for name in ("ABRow", "AB_Row", "ClassRow", "R1stRow", "FewRow"):
        assert f"export interface {name} " in made
