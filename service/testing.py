"""
Support for tests of an application's procedures and models: a real database, and sessions without a router.

`postgres` runs the embedded server; `serving` serves a copy of its database, so that each test starts from
the same state. Only the path from a client through Crossbar is left out: `FakeSession.call` passes its
arguments to the dispatcher. It answers and raises like autobahn's `session.call`; the same tests pass on
both (`tests/wamp/test_testing.py`).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import cbor2
import psycopg2
from alembic import command
from alembic.config import Config
from psycopg2.extensions import make_dsn, parse_dsn
from psycopg2.sql import SQL, Identifier
from pydantic import SecretStr
from twistar.registry import Registry
from twisted.internet.defer import CancelledError, Deferred

from schema.database_url import PROJECT, Place
from service.api.call import OngoingCall
from service.app import Serving
from service.errors import NotAuthorized
from service.payload import WithReceipt, check, write_encoded
from service.procedures.registry import load_application
from service.request.arguments import Caller
from service.settings import Settings
from service.wamp.application_errors import application_error, name_of
from service.wamp.callee import call_result
from service.wamp.client import WampConfig

REALM = "realm1"
_SESSIONS = count(1)


@contextmanager
def postgres(migrate: bool = True, sql: str = "") -> Iterator[str]:
    """
    Run an embedded PostgreSQL during the body; yield the DSN of a database in it.

    It takes two seconds, so use it once for all tests (`scope="session"`). Blocks.

    Args:
        migrate: Whether to upgrade the database to the head of the migrations.
        sql: SQL to run after that, for the tables and rows of all tests.
    """
    home = Path(tempfile.mkdtemp(prefix="rowcast-test-"))
    try:
        with Place(state=home).running() as server, _database(server, "template0") as dsn:
            if migrate:
                attributes = {"place": Place(url=dsn), "configure_logging": False}
                command.upgrade(Config(PROJECT / "alembic.ini", attributes=attributes), "head")
            _execute(dsn, SQL(sql))
            yield dsn
    finally:
        shutil.rmtree(home, ignore_errors=True)


@asynccontextmanager
async def serving(reactor: Any, dsn: str, *modules: str, **settings: Any) -> AsyncIterator[Service]:
    """
    Serve a copy of a database, without a router, during the body.

    Args:
        reactor: The reactor that runs.
        dsn: The DSN of the database, which must have no connections while it is copied.
        modules: The modules of the application, as in `ROWCAST_APP`.
        settings: Further settings by the names of `Settings`: `schemas="app"`, `roles="clerk=app_clerk"`.
    """
    # twistar has one registry for the process; it is restored at the end.
    known = Registry.DBPOOL, Registry.IMPL, dict(Registry.REGISTRATION)
    with _database(dsn, parse_dsn(dsn)["dbname"]) as copy:
        chosen = Settings(database_url=SecretStr(copy), app=modules, **settings)
        service = Serving(chosen, reactor, WampConfig([], REALM))
        service.startService()
        try:
            await service.catalogs.loaded()
            yield Service(service, copy, chosen.prefix)
        finally:
            await service.stopService()
            Registry.DBPOOL, Registry.IMPL, registration = known
            Registry.REGISTRATION.clear()
            Registry.REGISTRATION.update(registration)
            for model in load_application(modules).models:
                model.META = None


@dataclass(frozen=True)
class Service:
    """
    A service without a router.

    Args:
        serving: Its parts.
        dsn: The DSN of its database, for SQL on another connection.
        prefix: The prefix of its procedures.
    """

    serving: Serving = field(repr=False)
    dsn: str
    prefix: str

    def join(self, authid: str | None = None, authrole: str = "anonymous") -> FakeSession:
        """Return a new session of a client, with the details that a router would disclose."""
        return FakeSession(self, Caller(next(_SESSIONS), authid, authrole, REALM))

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        """Run SQL on a connection of its own; return the rows of the last statement. Blocks."""
        return _execute(self.dsn, SQL(sql))


class FakeSession:
    """
    A client's session, which can only call.

    Args:
        service: The service that it calls.
        caller: The details of the session.
    """

    def __init__(self, service: Service, caller: Caller) -> None:
        self._service = service
        self.caller = caller

    def call(self, procedure: str, /, *args: Any, **kwargs: Any) -> Deferred[Any]:
        """
        Call a procedure by its URI; `options` may be autobahn's CallOptions with `on_progress`.

        Cancelling the Deferred cancels the call, as WAMP's CANCEL in mode `kill` does.

        Raises:
            autobahn.wamp.exception.ApplicationError: The call is refused.
        """
        return Deferred.fromCoroutine(self._call(procedure, args, kwargs))

    def leave(self) -> None:
        """Leave: drop what the session has begun and not finished, such as an upload."""
        assert self.caller.session is not None
        self._service.serving.dispatcher.departed(self.caller.session)
        self._service.serving.watches.departed(self.caller.session)

    async def _call(self, uri: str, args: Any, kwargs: dict[str, Any]) -> Any:
        report: Any = getattr(kwargs.pop("options", None), "on_progress", None)

        async def send(part: Any) -> None:
            check(part)
            report(_carried(part))

        try:
            if not uri.startswith(f"{self._service.prefix}."):
                raise NotAuthorized(f"the router lets nobody call '{uri}'")
            name = name_of(uri, self._service.prefix)
            args, kwargs = _carried([args, kwargs])
            result = await self._service.serving.dispatcher.answer(
                name, args, kwargs, self.caller, progress=send if report else None
            )
            if isinstance(result, OngoingCall):
                ongoing = result
                ended: Deferred[Any] = Deferred(lambda _: ongoing.end(CancelledError()))
                ongoing.follow(ended.errback)
                return await ended
            if isinstance(result, WithReceipt):
                check(result.answer)
                return call_result(WithReceipt(_carried(result.answer), result.tx))
            check(result)
            return _carried(result)
        except Exception as error:
            raise application_error(error, uri) from None


def _carried(value: Any) -> Any:
    """Return a value as it arrives at the other end of a connection; a tuple arrives as a list."""
    return cbor2.loads(cbor2.dumps(value, default=write_encoded))


@contextmanager
def _database(server: str, template: str) -> Iterator[str]:
    """Create a database for the duration of the body; yield its DSN."""
    other = make_dsn(server, dbname="postgres")
    name = Identifier(f"t_{uuid4().hex[:12]}")
    _execute(other, SQL("CREATE DATABASE {} TEMPLATE {}").format(name, Identifier(template)))
    try:
        yield make_dsn(server, dbname=name.string)
    finally:
        # FORCE, because a server process ends shortly after its connection is closed.
        _execute(other, SQL("DROP DATABASE {} WITH (FORCE)").format(name))


def _execute(dsn: str, sql: Any) -> list[tuple[Any, ...]]:
    with closing(psycopg2.connect(dsn)) as connection:
        # CREATE DATABASE cannot run in a transaction.
        connection.autocommit = True
        with connection.cursor() as cursor:
            # psycopg2 raises for an empty query.
            if sql.as_string(cursor):
                cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []
