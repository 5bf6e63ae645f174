"""
What the tests of the database room share: pools that are closed again, and pauses.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from twisted.internet import reactor
from twisted.internet.task import deferLater

from service.db.database import Database
from service.db.pool import PgPool
from service.db.session import SessionSettings
from service.db.worker import PoolLimits


@asynccontextmanager
async def database_at(
    dsn: str | Callable[[], str],
    session: SessionSettings | None = None,
    **limits: Any,
) -> AsyncIterator[Database]:
    """Run a pool for the length of the body."""
    pool = PgPool(dsn, reactor, session, PoolLimits(**limits))
    pool.start()
    try:
        yield Database(pool, reactor)
    finally:
        await pool.close()


async def pause(seconds: float) -> None:
    """Let the reactor turn for a while."""
    await deferLater(reactor, seconds)


async def until(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    """Let the reactor turn until something holds."""
    end = reactor.seconds() + seconds
    while not condition():
        assert reactor.seconds() < end, "it did not come true in time"
        await pause(0.005)


async def failure_of(awaitable: Any) -> BaseException:
    """Give the exception that something ends in."""
    try:
        await awaitable
    except BaseException as error:
        return error
    raise AssertionError("it did not fail")
