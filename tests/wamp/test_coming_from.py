"""Each example of docs/coming-from.md has the result that the page shows."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest_twisted
from autobahn.wamp.types import CallOptions

from service.app import Serving
from tests.conftest import Router, execute
from tests.deferreds import until
from tests.test_docs import DOCS, code
from tests.wamp.callers import join
from tests.wamp.service import served
from tests.wamp.test_examples import run

PAGE = DOCS / "coming-from.md"
TOOLS = ("Hasura", "PostgREST", "Prisma", "Supabase")


@pytest_twisted.async_yield_fixture(scope="module")
async def service(migrated: str, router: Router) -> AsyncIterator[Serving]:
    """Serve the tables of the page, with the change log."""
    (schema,) = code(PAGE, "sql")
    execute(migrated, f"{schema}; SELECT rowcast.track('orders')")
    async with served(migrated, router) as serving:
        yield serving


@pytest_twisted.ensureDeferred
async def test_examples_for_users_of_other_systems_return_what_the_page_says(
    service: Serving, router: Router
) -> None:
    session = await join(router, "websocket json")

    async def received(messages: list[Any], many: int = 1) -> None:
        """Wait for a number of messages."""
        await until(lambda: len(messages) >= many)

    await until(lambda: service.feed.leading)
    names = {"session": session, "CallOptions": CallOptions, "received": received}
    answered = 0
    for text in code(PAGE, "python"):
        told = await run(text, names)
        assert told == text.count("# → ")
        answered += told
    await session.close()
    assert answered > 60


def test_page_names_each_tool_and_is_linked() -> None:
    text = PAGE.read_text("utf-8")
    blocks = "".join(code(PAGE, "python"))
    for tool in TOOLS:
        assert len(re.findall(rf"\b{tool}\b", blocks)) > 15, tool
        assert tool in text.partition("\n")[0]
    readme = (DOCS.parent / "README.md").read_text("utf-8")
    assert "docs/coming-from.md" in readme
