"""
A connection pool on a database, and models on the pool.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from twistar.registry import Registry
from twisted.internet import reactor

from service.db.codec import Codec
from service.db.database import Database
from service.db.introspect import catalog_txn
from service.db.pool import PgPool
from service.db.session_settings import SessionSettings
from service.db.worker import PoolLimits
from service.models.model import Model
from service.models.served import LoadedModels, Models


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


@contextmanager
def registry() -> Iterator[None]:
    """Restore twistar's Registry after the body."""
    pool, config, classes = Registry.DBPOOL, Registry.IMPL, dict(Registry.REGISTRATION)
    try:
        yield
    finally:
        Registry.DBPOOL, Registry.IMPL = pool, config
        Registry.REGISTRATION.clear()
        Registry.REGISTRATION.update(classes)
        Registry.SCHEMAS.clear()


async def load(
    database: Database, models: tuple[type[Model], ...] = (), schema: str = "public"
) -> LoadedModels:
    """Return the models of the database's present relations."""
    catalog = await database.run(catalog_txn, (schema,), 1)
    return Models(database, models).load(catalog, Codec(catalog))


@asynccontextmanager
async def served(dsn: str, *models: type[Model], **limits: Any) -> AsyncIterator[Database]:
    """Run a pool with these models."""
    with registry():
        async with database_at(dsn, **limits) as database:
            await load(database, models)
            yield database


def model(table: str, **declared: Any) -> type[Model]:
    """Return a model class named like its table."""
    name = table.split(".")[-1].capitalize()
    return type(name, (Model,), {"TABLENAME": table, "__doc__": table, **declared})
