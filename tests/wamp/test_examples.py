"""
The examples of docs/ give the documented results, run one after another.

A comment `# → …` below a call is its result; `…` in it stands for any text.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import AsyncIterator
from typing import Any

import pytest_twisted
from autobahn.wamp.types import CallOptions

from service.api.roles import Roles
from service.app import Serving
from service.errors import NotAuthorized
from service.request.arguments import Caller as Person
from tests.conftest import Router, execute
from tests.db.dispatchers import serving
from tests.deferreds import failure_of
from tests.test_docs import DOCS, code
from tests.wamp.callers import Caller, join
from tests.wamp.service import served

PAGE = DOCS / "procedures.md"

ROWS = """
INSERT INTO drivers (name) VALUES ('Ada'), ('Bob');
INSERT INTO vehicles (plate, model, seats, driver_id) VALUES ('B-RC 3', 'coupé', 2, 1),
    ('B-RC 4', 'bus', 8, 1), ('B-RC 5', 'saloon', 4, 1), ('B-RC 6', 'saloon', 4, 2);
INSERT INTO actions (action, path, created_at, updated_at)
    SELECT 'run', '/' || i, '2026-11-21Z', '2026-11-21Z' FROM generate_series(1, 9) i;
"""


@pytest_twisted.async_yield_fixture(scope="module")
async def service(migrated: str, router: Router) -> AsyncIterator[Serving]:
    """Serve the project's own schema with the additions of the page and a few rows."""
    execute(migrated, ROWS + "".join(code(PAGE, "sql")))
    async with served(migrated, router) as serving:
        yield serving


@pytest_twisted.async_yield_fixture
async def caller(service: Serving, router: Router) -> AsyncIterator[Caller]:
    """Join a caller."""
    session = await join(router, "websocket cbor")
    yield session
    await session.close()


def documented_result(lines: list[str]) -> Any:
    """Return the result in the comment at the beginning of these lines."""
    if not lines or not lines[0].startswith("# → "):
        return None
    words = [lines[0].removeprefix("# → ")]
    for line in lines[1:]:
        if not line.startswith("# "):
            break
        words.append(line.removeprefix("# "))
    return ast.literal_eval(" ".join(words))


def alike(found: Any, expected: Any) -> bool:
    """Return whether a result equals the expected one, in which `…` stands for any text."""
    if isinstance(found, dict) and isinstance(expected, dict):
        return found.keys() == expected.keys() and all(
            alike(found[key], expected[key]) for key in found
        )
    return bool(found == expected) or (isinstance(found, str) and expected == "…")


async def run(text: str, names: dict[str, Any]) -> int:
    """Run an example; return the number of documented results, all of which were right."""
    lines, told_of = text.splitlines(), 0
    for node in ast.parse(text).body:
        if isinstance(node, ast.Expr):
            found = await _done(ast.Expression(node.value), "eval", names)
            expected = documented_result(lines[node.end_lineno :])
            if expected is not None:
                assert alike(found, expected), (text, found)
                told_of += 1
        else:
            await _done(ast.Module([node], []), "exec", names)
    return told_of


async def _done(tree: ast.AST, mode: str, names: dict[str, Any]) -> Any:
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    found = eval(compile(tree, PAGE.name, mode, flags), names)  # type: ignore[arg-type]
    return await found if inspect.iscoroutine(found) else found


@pytest_twisted.ensureDeferred
async def test_examples_of_the_procedures_page_have_the_documented_results(caller: Caller) -> None:
    """Each example of the page runs and gives the documented result."""
    parts: list[Any] = []
    rows = [{"action": "run", "path": f"/{at}"} for at in range(2000)]
    names = {
        "session": caller,
        "CallOptions": CallOptions,
        "take": parts.append,
        "chunks": [rows[:1000], rows[1000:]],
    }
    for text in code(PAGE, "python"):
        assert await run(text, names) == text.count("# → ")
    assert parts[1].startswith("id,")
    assert "phone" not in (await caller.call("rowcast.describe"))["relations"]["drivers"]["columns"]


@pytest_twisted.ensureDeferred
async def test_filters_of_the_page_match_the_described_rows(caller: Caller) -> None:
    text, columns, related = code(DOCS / "filters.md", "python")
    rows = [
        {"action": "deploy", "path": "/srv/app"},
        {"action": "deploy", "path": "/opt/app"},
        {"action": "deploy", "path": "/srv/app", "status": True},
    ]
    made = await caller.call("rowcast.actions.create", rows)
    found = await caller.call("rowcast.actions.find", where=ast.literal_eval(text))
    assert [row["id"] for row in found["rows"]] == [made[0]["id"]]
    day, next_day = "2026-11-20T10:00:00Z", "2026-11-21T10:00:00Z"
    (changed, same) = await caller.call(
        "rowcast.actions.create",
        [
            {**rows[0], "created_at": day, "updated_at": next_day},
            {**rows[0], "path": "/srv/other", "created_at": next_day, "updated_at": next_day},
        ],
        select=["id"],
    )
    for line in columns.splitlines():
        own = {"id": [changed["id"], same["id"]], **ast.literal_eval(line)}
        found = await caller.call("rowcast.actions.find", where=own, select=["id"])
        assert found["rows"] == [changed], line
    driver = await caller.call("rowcast.drivers.create", {"name": "Flo"})
    vehicles = [
        {"plate": "B-RC 71", "model": "bus", "seats": 8, "driver_id": driver["id"]},
        {"plate": "B-RC 72", "model": "saloon", "seats": 4, "driver_id": driver["id"]},
    ]
    await caller.call("rowcast.vehicles.create", vehicles)
    counts = [
        await caller.call("rowcast.drivers.count", where={"name": "Flo", **ast.literal_eval(line)})
        for line in related.splitlines()
    ]
    assert counts == [1, 0, 1]


@pytest_twisted.ensureDeferred
async def test_policy_of_the_roles_page_shows_a_clerk_only_own_notes(dsn: str) -> None:
    """With the policy of the page, a clerk can read and change only their own notes."""
    (text,) = code(DOCS / "roles.md", "sql")
    notes = "CREATE TABLE notes (id int PRIMARY KEY, owner text, text text);"
    rows = "INSERT INTO notes VALUES (1, 'ada', 'of Ada'), (2, 'bob', 'of Bob');"
    execute(dsn, f"CREATE ROLE rowcast; {notes} {rows} {text}")
    clerk = Person(1, "ada", "clerk", "realm1")
    async with serving(dsn, roles=Roles({"clerk": "app_clerk"}, None)) as db:
        found = await db.call_as(clerk, "notes.find", select=["text"])
        assert found["rows"] == [{"text": "of Ada"}]
        changed = await db.call_as(
            clerk, "notes.update", where={"id": [1, 2]}, changes={"text": "new"}, returning=False
        )
        assert changed == {"affected": 1}
        refused = await failure_of(db.call_as(clerk, "notes.delete", 1))
        assert isinstance(refused, NotAuthorized)
