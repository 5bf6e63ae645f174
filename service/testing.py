"""
For tests of procedures and models of one's own: a real database, and sessions without a router.

`postgres` runs the embedded server; `serving` serves a copy of its database, so that each test has
one as it was made. What is left out is the way from a client through Crossbar: `FakeSession.call` hands
its arguments to the dispatcher. It answers as autobahn's `session.call` does, down to the errors;
the same tests pass on both (`tests/wamp/test_testing.py`).
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
from service.api.call import Lasting
from service.app import Serving
from service.errors import NotAuthorized
from service.payload import Receipted, check, write_encoded
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
    Run an embedded PostgreSQL for the length of the body; yield the DSN of a database there.

    It takes two seconds, so once for all tests (`scope="session"`) is right. Blocks.

    Args:
        migrate: Whether the database is brought to the migrations' head.
        sql: Run after that, for tables and rows that all tests have.
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
    Serve a copy of a database, without a router, for the length of the body.

    Args:
        reactor: The one that runs.
        dsn: Of the database, to which nobody may be connected meanwhile.
        modules: Of the application, as `ROWCAST_APP` would name them.
        settings: Others, by the names of `Settings`: `schemas="app"`, `roles="clerk=app_clerk"`.
    """
    # twistar has one registry per process: what was there before is put back.
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
        dsn: Of its database, for SQL beside it.
        prefix: Of its procedures.
    """

    serving: Serving = field(repr=False)
    dsn: str
    prefix: str

    def join(self, authid: str | None = None, authrole: str = "anonymous") -> FakeSession:
        """Return a session of a client, as a router would disclose it."""
        return FakeSession(self, Caller(next(_SESSIONS), authid, authrole, REALM))

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        """Run SQL as a neighbor of the service; return the rows of the last statement. Blocks."""
        return _execute(self.dsn, SQL(sql))


class FakeSession:
    """
    A client's session, as far as calls go.

    Args:
        service: Whom it calls.
        caller: Who it is.
    """

    def __init__(self, service: Service, caller: Caller) -> None:
        self._service = service
        self.caller = caller

    def call(self, procedure: str, /, *args: Any, **kwargs: Any) -> Deferred[Any]:
        """
        Call a procedure by its URI; `options` may be autobahn's CallOptions with `on_progress`.

        Cancelling the Deferred cancels the call, as WAMP's CANCEL in mode `kill` does.

        Raises:
            autobahn.wamp.exception.ApplicationError: It was refused.
        """
        return Deferred.fromCoroutine(self._call(procedure, args, kwargs))

    def leave(self) -> None:
        """Leave: what the session has begun and not finished, such as an upload, is dropped."""
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
            if isinstance(result, Lasting):
                lasting = result
                ended: Deferred[Any] = Deferred(lambda _: lasting.end(CancelledError()))
                lasting.follow(ended.errback)
                return await ended
            if isinstance(result, Receipted):
                check(result.answer)
                return call_result(Receipted(_carried(result.answer), result.tx))
            check(result)
            return _carried(result)
        except Exception as error:
            raise application_error(error, uri) from None


def _carried(value: Any) -> Any:
    """Return a value as it arrives at the other end of a connection."""
    # A tuple arrives as a list, as it does by way of a router.
    return cbor2.loads(cbor2.dumps(value, default=write_encoded))


@contextmanager
def _database(server: str, template: str) -> Iterator[str]:
    """Make a database for the length of the body; yield its DSN."""
    other = make_dsn(server, dbname="postgres")
    name = Identifier(f"t_{uuid4().hex[:12]}")
    _execute(other, SQL("CREATE DATABASE {} TEMPLATE {}").format(name, Identifier(template)))
    try:
        yield make_dsn(server, dbname=name.string)
    finally:
        # FORCE: a server process may outlive the connection that was just closed by a moment.
        _execute(other, SQL("DROP DATABASE {} WITH (FORCE)").format(name))


def _execute(dsn: str, sql: Any) -> list[tuple[Any, ...]]:
    with closing(psycopg2.connect(dsn)) as connection:
        # CREATE DATABASE runs in no transaction.
        connection.autocommit = True
        with connection.cursor() as cursor:
            # psycopg2 raises for a query that is empty.
            if sql.as_string(cursor):
                cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []
