"""
A dispatcher on a real database, without a router.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import cbor2
from twisted.internet import reactor

from service.api.call import CallState
from service.api.dispatcher import Dispatcher
from service.api.explain import ExplainProcedure
from service.api.reload import Catalogs
from service.api.roles import Roles
from service.api.transactions import TransactionProcedure
from service.db.database import Database
from service.db.session_settings import SessionSettings
from service.errors import ServiceError
from service.models.model import Model
from service.models.served import Models
from service.payload import Encoded, check
from service.request.arguments import Caller
from service.request.read_request import Limits
from tests.db.described import Descriptions
from tests.db.served import database_at

ANYONE = Caller(None, None, None, "realm1")


class DirectCaller:
    """A caller that calls the dispatcher directly, without a router."""

    def __init__(self, dispatcher: Dispatcher, catalogs: Catalogs, database: Database) -> None:
        self.dispatcher = dispatcher
        self.catalogs = catalogs
        self.database = database
        self.pool = database.pool
        self._descriptions = Descriptions(dispatcher)

    async def catch_up(self) -> None:
        """Reload the schema cache; wait as long as a loaded machine needs."""
        while not await self.catalogs.refresh():
            pass

    async def call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a procedure by its name without the prefix, as `ANYONE`."""
        return await self.call_as(ANYONE, name, *args, **kwargs)

    async def call_as(self, caller: Caller, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a procedure as a caller; check arguments, result and errors against the description."""
        catalog = self.dispatcher.served_to(caller).catalog if self.dispatcher.ready else None
        described = self._descriptions.of(catalog) if catalog is not None else None
        state = CallState(encodes=True)
        try:
            answer = await self.dispatcher.answer(name, args, kwargs, caller, state)
        except ServiceError as error:
            if described is not None:
                described.check_refusal(name, error)
            raise
        if isinstance(answer, Encoded):
            answer = cbor2.loads(answer.data)
        if isinstance(answer, dict):
            encoded = {key: it for key, it in answer.items() if isinstance(it, Encoded)}
            answer |= {key: cbor2.loads(it.data) for key, it in encoded.items()}
        if state.plain:
            check(answer)
        if described is not None:
            described.check_call(name, args, kwargs, answer)
        return answer


@asynccontextmanager
async def serving(
    dsn: str,
    *schemas: str,
    max_rows: int = 1000,
    max_bytes: int = 8 << 20,
    roles: Roles | None = None,
    written: tuple[type[Model], ...] = (),
    idle: float = 10.0,
    most: int = 5,
    every: float | None = None,
    lock_timeout: float = 10.0,
    inject: bool = False,
    slow_statement: float = math.inf,
) -> AsyncIterator[DirectCaller]:
    """Serve a database for the length of the body."""
    session = SessionSettings(
        lock_timeout=lock_timeout, schemas=schemas or ("public",), slow_statement=slow_statement
    )
    async with database_at(dsn, session, most=most) as database:
        dispatcher = Dispatcher(database, Limits(max_rows, idle=idle), max_bytes, roles or Roles())
        models = Models(database, written)
        catalogs = Catalogs(
            reactor, database, schemas or ("public",), dispatcher, models, roles or Roles(), every
        )
        dispatcher.refresh = catalogs.refresh
        dispatcher.add(TransactionProcedure(dispatcher, inject).procedures(), once=False)
        dispatcher.add(ExplainProcedure(dispatcher, 10_000).procedures(), once=False)
        catalogs.startService()
        await catalogs.loaded()
        try:
            yield DirectCaller(dispatcher, catalogs, database)
        finally:
            await (catalogs.stopService() or _done())


async def _done() -> None:
    return None
