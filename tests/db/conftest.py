"""
A service without a router in front of it, over the database of a test module.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import pytest
import pytest_twisted

from tests.conftest import execute
from tests.db.dispatchers import DirectCaller, serving


@pytest.fixture
def db(request: pytest.FixtureRequest, dsn: str) -> DirectCaller:
    """
    Run the SQL of the module's BEFORE_EACH, and serve its database as the mark `serving` says.

    A module that says SERVED_ONCE has one service for all tests that have no mark of their own: they
    leave tables, functions and rights as they are.
    """
    if rows := getattr(request.module, "BEFORE_EACH", ""):
        execute(dsn, rows)
    own = any(mark.name == "serving" for mark in request.node.own_markers)
    once = getattr(request.module, "SERVED_ONCE", False) and not own
    found: DirectCaller = request.getfixturevalue("served_once" if once else "served_anew")
    return found


@pytest_twisted.async_yield_fixture
async def served_anew(request: pytest.FixtureRequest, dsn: str) -> AsyncIterator[DirectCaller]:
    """Serve the module's database for one test."""
    async with _marked(request.node, dsn) as callee:
        yield callee


@pytest_twisted.async_yield_fixture(scope="module")
async def served_once(request: pytest.FixtureRequest, dsn: str) -> AsyncIterator[DirectCaller]:
    """Serve the module's database for all of its tests: reading its catalog is most of their work."""
    async with _marked(request.node, dsn) as callee:
        yield callee


def _marked(
    node: pytest.Item | pytest.Collector, dsn: str
) -> AbstractAsyncContextManager[DirectCaller]:
    mark = node.get_closest_marker("serving")
    args, options = (mark.args, mark.kwargs) if mark else ((), {})
    return serving(dsn, *args, **options)
