"""
Keeps what is served up to date with the database.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextvars import Context

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from service.answer.hub import Hub
from service.answer.roles import Roles
from service.answer.served import Served
from service.answer.whole import whole_of
from service.catalog import Catalog
from service.db.identity import identity_of
from service.db.introspect import catalog_txn
from service.db.scope import Database
from service.db.values import Codec
from service.models.registry import Models

log = Logger()

PAUSE = 1.0
"""Seconds between two tries to read the catalog of a database that cannot be reached."""
LONG_PAUSE = 10.0
"""Seconds until a catalog of which we could not make anything is read again."""
STALE = 1.0
"""Seconds in which callers who meet what is not there make us read the catalog once at most."""
SHARE = 20
"""And at most so large a part of the time, one in twenty, goes into reading it for them."""
PATIENCE = 5.0
"""Seconds that a caller waits for it at most."""


class Catalogs(Service):
    """
    Reads the catalog at start, and again when something says that it has changed.

    Calls that run while it is replaced keep the one that they began with.

    Args:
        reactor: For pauses.
        database: To read it from.
        schemas: Those that are served.
        hub: Is told of each catalog.
        roles: Of the database; each has a catalog of its own.
        models: Are told of each catalog, too.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        database: Database,
        schemas: tuple[str, ...],
        hub: Hub,
        models: Models,
        roles: Roles = Roles(),  # noqa: B008 - frozen
    ) -> None:
        self._reactor = reactor
        self._database = database
        self._schemas = schemas
        self._hub = hub
        self._models = models
        self._roles = roles
        self._codecs: list[Codec] = []
        self._version = 0
        self._loading: Deferred[None] | None = None
        self._again = False
        self._last = float("-inf")
        self._took = 0.0
        self._waiting: list[Deferred[None]] = []
        self._asking: list[Deferred[bool]] = []
        self._later: IDelayedCall | None = None

    def startService(self) -> None:
        """Begin to read."""
        super().startService()
        self.reload()

    def stopService(self) -> Deferred[None] | None:
        """Read no more."""
        super().stopService()
        if self._later is not None:
            self._later.cancel()
            self._later = None
        loading = self._loading
        if loading is not None:
            loading.cancel()
        return loading

    def loaded(self) -> Deferred[None]:
        """Fire once the database has been read for the first time."""
        waiting: Deferred[None] = Deferred()
        if self._version:
            waiting.callback(None)
        else:
            self._waiting.append(waiting)
        return waiting

    def reload(self) -> None:
        """Read the catalog; while it is being read, once more after that."""
        if self._loading is not None:
            self._again = True
            return
        # In a context of its own: whoever's call it was that asked, it is read for everybody.
        self._loading = Context().run(Deferred.fromCoroutine, self._load())

    def suspect(self) -> Deferred[bool]:
        """
        Read the catalog because a caller met what is not there, or not so; not too often.

        Returns:
            Fires once it has been read; with False if it was not, or is to be read later.
        """
        pause = max(STALE, SHARE * self._took) - (self._reactor.seconds() - self._last)
        if not self.running or self._later is not None:
            return succeed(False)
        if pause > 0:
            self._later = self._reactor.callLater(pause, self._reread)
            return succeed(False)
        asking: Deferred[bool] = Deferred()
        self._asking.append(asking)
        self.reload()
        return asking.addTimeout(PATIENCE, self._reactor, lambda *_: False)

    def _reread(self) -> None:
        self._later = None
        self.reload()

    async def _load(self) -> None:
        try:
            self._again = True
            while self._again and self.running:
                self._again = False
                await self._load_once()
        except CancelledError:
            pass
        finally:
            self._loading = None
            asking, self._asking = self._asking, []
            _answer(asking, read=False)

    async def _load_once(self) -> None:
        while self.running:
            began = self._reactor.seconds()
            asking, self._asking = self._asking, []
            try:
                catalogs = {role: await self._catalog(role) for role in self._roles.names}
            except CancelledError:
                _answer(asking, read=False)
                raise
            except Exception as error:
                _answer(asking, read=False)
                log.warn("cannot read the catalog: {error}", error=_first_line(error))
                await deferLater(self._reactor, PAUSE)
                continue
            try:
                self._tell(catalogs)
            except Exception:
                _answer(asking, read=False)
                log.failure("cannot serve the catalog")
                await deferLater(self._reactor, LONG_PAUSE)
                continue
            self._took = self._reactor.seconds() - began
            self._told()
            _answer(asking, read=True)
            return

    def _told(self) -> None:
        self._last = self._reactor.seconds()
        self._version += 1
        log.info(
            "serving {relations} relations of {schemas}, catalog {version}",
            relations=len(self._hub.served.catalog.relations),
            schemas=", ".join(self._schemas),
            version=self._version,
        )
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)

    async def _catalog(self, role: str) -> Catalog:
        """Read what a role may use."""
        with self._database.identity(identity_of(role, {})):
            catalog: Catalog = await self._database.atomic(
                catalog_txn,
                self._schemas,
                self._version + 1,
                isolation="repeatable read",
                read_only=True,
            )
        return catalog

    def _tell(self, catalogs: Mapping[str, Catalog]) -> None:
        """Have what was read be served, to each role what it may use."""
        whole = whole_of(list(catalogs.values()))
        codec = Codec(whole)
        models = self._models.load(whole, codec)
        served = {
            role: Served(catalog, codec if catalog is whole else Codec(catalog), models)
            for role, catalog in catalogs.items()
        }
        self._hub.serve(Served(whole, codec, models), served)
        outdated, self._codecs = self._codecs, [codec, *(each.codec for each in served.values())]
        for each in outdated:
            each.current = False
        self._database.pool.clean()


def _answer(asking: Iterable[Deferred[bool]], read: bool) -> None:
    """Tell callers who wait for the catalog whether it was read."""
    for each in asking:
        each.callback(read)


def _first_line(error: Exception) -> str:
    """Word an error for the log without what might follow: rows, statements."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
