"""
The rooms between PostgreSQL and the router, built and connected.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger

from service.api.dispatcher import Hub
from service.api.reload import Catalogs
from service.api.roles import Roles
from service.api.status import Own
from service.db.database import Database
from service.db.listener import Listener
from service.db.pool import PgPool
from service.db.scheduler import READY
from service.db.session import SessionSettings
from service.db.worker import PoolLimits
from service.models.registry import Models
from service.procedures.registry import REGISTERED, available, procedures
from service.request.read import Limits
from service.settings import Settings
from service.wamp.accounts import Bounds
from service.wamp.callee import Dispatch
from service.wamp.client import WampClient, WampConfig
from service.wamp.session import Departures

log = Logger()

RUNNING = 64
"""Calls of one session that run at once, and as many as there are connections twice over."""

CHANNEL = "rowcast_schema"
"""A NOTIFY here says that the catalog has changed; migrations send one."""


class Serving(Service):
    """
    From a pool of connections to a place on the router.

    Args:
        settings: What the environment said.
        reactor: The only one.
        config: Which router, and who we are there.
    """

    def __init__(self, settings: Settings, reactor: Any, config: WampConfig) -> None:
        place = settings.place
        self.pool = PgPool(place.dsn, reactor, _session(settings), _limits(settings))
        self.database = Database(self.pool, reactor)
        roles = Roles(settings.database_roles, settings.anonymous)
        self.hub = Hub(
            self.database,
            Limits(
                settings.max_rows,
                settings.max_filter_depth,
                settings.max_embed_depth,
                settings.tx_idle_timeout,
            ),
            settings.max_bytes,
            roles,
        )
        models = Models(self.database)
        self.catalogs = Catalogs(reactor, self.database, settings.schemas, self.hub, models, roles)
        self.listener = Listener(
            reactor, place.direct_dsn, CHANNEL, self._heard, self.catalogs.reload
        )
        dispatch = Dispatch(
            reactor,
            self.hub.answer,
            settings.prefix,
            settings.shared,
            settings.drain_timeout,
            settings.tx_idle_timeout,
            _bounds(settings),
            self.pool.dispatch.give,
        )

        def departed(session: int) -> None:
            self.hub.departed(session)
            dispatch.departed(session)

        self.client = WampClient(reactor, config, [dispatch, Departures(departed)])
        written = procedures(self.database, models, lambda: self.hub.served.codec)
        own = Own(
            self.hub,
            self.database,
            settings.prefix,
            metadata.version("rowcast"),
            {"router": lambda: dispatch.serving, "listener": lambda: self.listener.listening},
            dispatch.meter.snapshot,
            lambda: {name: each for name, each in REGISTERED.items() if available(name)},
            settings.max_bytes,
        )
        self.hub.suspect = self.catalogs.suspect
        self.hub.add(own.procedures(), once=False)
        self.hub.add(written)

    def startService(self) -> None:
        """Open the pool, begin to read the catalog and to listen."""
        super().startService()
        self.pool.start()
        self.catalogs.startService()
        self.listener.startService()

    async def joined(self) -> None:
        """Take our place on the router, once there is something to serve."""
        await self.catalogs.loaded()
        if self.running:
            self.client.startService()
            await self.client.when_joined()

    def stopService(self) -> Deferred[None]:
        """Leave the router when running calls are done; then close the pool."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await stopped(self.client, self.client.stopService)
        await stopped(self.listener, self.listener.stopService)
        await stopped(self.catalogs, self.catalogs.stopService)
        await stopped(self.pool, self.pool.close)

    def _heard(self, payload: str) -> None:
        self.catalogs.reload()


async def stopped(part: object, stop: Callable[[], Any]) -> None:
    """Stop a part; a failure is logged, for it must not leave the others running."""
    try:
        await maybeDeferred(stop)
    except Exception:
        log.failure("{part} did not stop in order", part=type(part).__name__)


def _session(settings: Settings) -> SessionSettings:
    return SessionSettings(
        settings.statement_timeout,
        settings.lock_timeout,
        settings.tx_idle_timeout,
        settings.schemas,
    )


def _bounds(settings: Settings) -> Bounds:
    return Bounds(
        settings.session_calls,
        settings.total_calls,
        settings.session_bytes,
        settings.total_bytes,
        max(RUNNING, 2 * settings.pool_max),
        settings.pool_timeout,
        settings.session_bytes // (settings.pool_max + READY),
    )


def _limits(settings: Settings) -> PoolLimits:
    return PoolLimits(most=settings.pool_max, acquire_timeout=settings.pool_timeout)
