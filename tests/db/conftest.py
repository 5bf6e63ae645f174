"""
A service without a router in front of it, over the database of a test module.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_twisted

from tests.conftest import execute
from tests.db.dispatchers import DirectCaller, serving


@pytest_twisted.async_yield_fixture
async def db(request: pytest.FixtureRequest, dsn: str) -> AsyncIterator[DirectCaller]:
    """Run the SQL of the module's BEFORE_EACH, and serve its database as its mark `serving` says."""
    if rows := getattr(request.module, "BEFORE_EACH", ""):
        execute(dsn, rows)
    mark = request.node.get_closest_marker("serving")
    args, options = (mark.args, mark.kwargs) if mark else ((), {})
    async with serving(dsn, *args, **options) as callee:
        yield callee
