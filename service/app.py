"""
The service tree: builds all parts, starts them in stages and stops them.

Each stage needs the one before: the embedded PostgreSQL and router, the upgrade of the database, the pool and
the catalog, the session at the router. The parts stop in the reverse order, one after another.
"""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from signal import SIG_IGN, SIGHUP, SIGINT, SIGTERM, getsignal, signal
from typing import Any, TypeVar

from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from schema.changes import CATALOG
from schema.database_url import EmbeddedFailed
from service.api.dispatcher import Dispatcher
from service.api.explain import ExplainProcedure
from service.api.idempotency import Pruner
from service.api.interactive import BEGIN, TransactionLimits
from service.api.leases import new_process
from service.api.reload import Catalogs
from service.api.roles import ANONYMOUS, Roles
from service.api.status import StatusProcedures
from service.api.transactions import TransactionProcedure
from service.api.verbs import VERBS
from service.catalog import Catalog
from service.changes.catchup import CatchUpProcedures
from service.changes.cycle import Cycle
from service.changes.feed import Feed, FeedSettings
from service.changes.queries import RUN_LIMIT, WatchLimits
from service.changes.topics import Topics
from service.changes.watch import Watches
from service.changes.why import Check, WhyProcedure, service_checks
from service.db.database import Database
from service.db.listener import Listener
from service.db.pool import READY, PgPool
from service.db.session_settings import SessionSettings
from service.db.worker import PoolLimits
from service.describe.relations import verbs_of
from service.embedded.crossbar import Crossbar, obstacle
from service.embedded.supervisor import (
    HOLDER,
    DatabaseReport,
    NotReady,
    Postgres,
    Supervised,
    already_runs,
    inspect_database,
    upgrade_database,
)
from service.errors import NotAuthorized
from service.models.served import Models
from service.procedures.registry import InvalidApplication, load_application, procedures
from service.request.arguments import Caller
from service.request.read_request import Limits
from service.settings import Settings
from service.wamp.auth import Anonymous, Cryptosign, Login, Ticket
from service.wamp.backpressure import Bounds
from service.wamp.callee import Callee
from service.wamp.client import Departures, Heartbeat, WampClient, WampConfig
from service.wamp.publisher import Publisher, Subscriptions

log = Logger()

RUNNING = 64
"""Calls of one session that run at the same time; at least twice the size of the pool."""

Part = TypeVar("Part", bound=IService)
Progress = Callable[[str, str], None]

APART = 4
"""Connections besides the pool: one for LISTEN, one for the log of changes, two for live queries."""


def slow_query_connections(settings: Settings) -> int:
    """
    Return the number of further connections, for live queries that take long.

    Half the size of the pool, so that these queries do not slow down calls.
    """
    return max(1, settings.pool_max // 2)


def connections(settings: Settings) -> int:
    """Return the number of database connections that a service opens."""
    return settings.pool_max + APART + slow_query_connections(settings)


def make_service(settings: Settings, reactor: Any) -> Rowcast:
    """Build the service for twistd. If it cannot start, the reactor stops, and the exit status is 1."""
    service = Rowcast(settings, reactor)

    def give_up(why: Failure) -> None:
        if why.check(NotReady):
            Rowcast.logger.critical("{why}", why=why.value)
        else:
            Rowcast.logger.failure("the service cannot start", failure=why)
        # twistd would exit with status 0. When atexit runs, it has removed its pid file.
        atexit.register(os._exit, 1)
        reactor.stop()

    stop_once(reactor)
    service.when_ready().addCallbacks(freeze_memory, give_up)
    return service


def stop_once(reactor: Any) -> None:
    """Stop the reactor, as soon as it runs, at the first SIGINT, SIGTERM or SIGHUP only."""
    handlers: dict[int, Any] = {SIGINT: reactor.sigInt, SIGTERM: reactor.sigTerm}
    # Twisted leaves it to its default, which ends the process at once.
    handlers[SIGHUP] = reactor.sigTerm

    def begin() -> None:
        for number in handlers:
            # As a shell sets SIGINT in the background, and nohup SIGHUP.
            if getsignal(number) is not SIG_IGN:
                signal(number, stop)

    def stop(number: int | None = None, frame: Any = None) -> None:
        # Heroku sends SIGTERM more than once, and a parent process may pass Ctrl-C on, too. The reactor would
        # log the second one as a failure.
        for each in handlers:
            signal(each, SIG_IGN)
        if number is not None:
            handlers[number](number, frame)

    # Not before, because the reactor installs its own handlers when it starts.
    reactor.callWhenRunning(begin)
    reactor.addSystemEventTrigger("before", "shutdown", stop)


class Rowcast(MultiService):
    """
    The service, with all of its parts.

    Args:
        settings: The settings.
        reactor: The reactor that runs.
        upgrade: Whether to upgrade the database to the code's revision first.
        progress: Called after each step of the start, with its name and its result.
    """

    logger = Logger()

    def __init__(
        self,
        settings: Settings,
        reactor: Any,
        upgrade: bool = False,
        progress: Progress | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self._reactor = reactor
        self._upgrade = upgrade
        self._progress = progress or self._log
        self._starting: Deferred[None] | None = None
        self._ready: Deferred[None] = Deferred()

    def when_ready(self) -> Deferred[None]:
        """Return a Deferred that fires when the service answers calls, or fails if it cannot start."""
        return self._ready

    def catalog_without_login(self) -> Catalog | None:
        """Return what callers may use who do not log in; None if they may use nothing, or it is not known."""
        settings = self.settings
        # A router of the settings decides itself whom it lets in, and with which authrole.
        private = login(settings) != Anonymous() or settings.roles or settings.anonymous
        with suppress(NotAuthorized):
            if settings.embedded_router or not private:
                return self._serving.dispatcher.served_to(
                    Caller(None, None, ANONYMOUS, settings.realm)
                ).catalog
        return None

    def startService(self) -> None:
        """Start all parts, in stages."""
        super().startService()
        self._starting = Deferred.fromCoroutine(self._start())
        self._starting.addCallbacks(self._ready.callback, self._failed)

    def stopService(self) -> Deferred[None]:
        """Stop all parts in the reverse order of their start; the Deferred fires when all have stopped."""
        # Not MultiService's method, which stops all parts at once although each needs the one before.
        self.running = 0
        if self._starting is not None:
            self._starting.cancel()
        return Deferred.fromCoroutine(self._stop())

    def _failed(self, why: Failure) -> None:
        # A start that the stop interrupts has not failed, whatever error that leads to.
        if self.running:
            self._ready.errback(why)

    def _log(self, step: str, what: str) -> None:
        self.logger.info("{step}: {what}" if what else "{step}", step=step, what=what)

    async def _start(self) -> None:
        settings = self.settings
        router = self._add(Crossbar(self._reactor, settings)) if settings.embedded_router else None
        if settings.place.embedded:
            await self._add(Postgres(self._reactor, settings.place.cluster)).started()
        if self._upgrade:
            wanted, place = connections(settings), settings.place
            report = await upgrade_database(self._reactor, place, wanted, settings.demo)
            self._progress("postgres", postgres_line(settings, report))
            self._progress("schema", report.schema)
        await self._join(router)
        self._progress("ready", "")

    async def _join(self, router: Crossbar | None) -> None:
        config = wamp_config(self.settings, router)
        serving = self._add(Serving(self.settings, self._reactor, config))
        if router is not None:
            await router.started()
            port, log = self.settings.port, router.log
            self._progress("router", f"Crossbar {router.version} on 127.0.0.1:{port} (log: {log})")
        await serving.joined()
        self._progress("service", service_line(self.settings, serving))
        self._serving = serving

    def _add(self, part: Part) -> Part:
        part.setServiceParent(self)
        return part

    async def _stop(self) -> None:
        parts = list(reversed(list(self)))
        for part in parts:
            if not isinstance(part, Supervised):
                await stopped(part, part.stopService)
        # The child processes do not use each other, so they can stop at the same time.
        children = [part for part in parts if isinstance(part, Supervised)]
        await gatherResults(
            [Deferred.fromCoroutine(stopped(part, part.stopService)) for part in children]
        )


class Serving(Service):
    """
    The parts that serve a running database at a running router: from the pool to the WAMP session.

    Args:
        settings: The settings.
        reactor: The reactor that runs.
        config: How to join the router.
    """

    def __init__(self, settings: Settings, reactor: Any, config: WampConfig) -> None:
        place = settings.place
        limits = PoolLimits(most=settings.pool_max, acquire_timeout=settings.pool_timeout)
        self.pool = PgPool(place.dsn, reactor, _session(settings), limits)
        self.database = Database(self.pool, reactor)
        roles = Roles(settings.database_roles, settings.anonymous)
        process = new_process()
        self.dispatcher = Dispatcher(
            self.database,
            Limits(
                settings.max_rows,
                settings.max_filter_depth,
                settings.max_embed_depth,
                settings.tx_idle_timeout,
            ),
            settings.max_bytes,
            roles,
            process=process,
            prefix=settings.prefix,
        )
        app = load_application(settings.app)
        models = Models(self.database, app.models)
        self.catalogs = Catalogs(
            reactor, self.database, settings.schemas, self.dispatcher, models, roles
        )
        self.listener = Listener(reactor, place.direct_dsn)
        self.listener.subscribe(CATALOG, lambda _: self.catalogs.reload(), self.catalogs.reload)
        publisher, subscriptions = Publisher(reactor), Subscriptions(reactor)
        topics = Topics(
            self.database,
            self.dispatcher,
            roles,
            settings.prefix,
            settings.max_bytes,
            publisher.send,
            _every if settings.publish == "always" else subscriptions.wanted_of,
        )
        self.feed = Feed(
            reactor,
            place.direct_dsn,
            self.listener,
            topics.publish,
            _feed(settings),
            lambda: publisher.can_publish,
            topics.subscribed,
            process,
        )
        self.catalogs.subscribe(self.feed.poll_now)
        self.watches = Watches(
            reactor,
            self.database,
            self.dispatcher,
            Cycle(reactor, place.direct_dsn, _session(settings)),
            WatchLimits(
                settings.max_watches_per_session,
                settings.max_watch_rows,
                settings.max_bytes,
                min(RUN_LIMIT, settings.statement_timeout),
                slow_query_connections(settings),
            ),
        )
        self.dispatcher.register(replace(VERBS["watch"], handler=self.watches.watch))
        self.feed.subscribe(self.watches.wake)
        callee = Callee(
            reactor,
            self.dispatcher.answer,
            settings.prefix,
            settings.shared,
            settings.drain_timeout,
            settings.tx_idle_timeout,
            _bounds(settings),
            self.pool.scheduler.assign,
        )
        callee.wrote, callee.drained = self.watches.wrote, self.watches.drain
        callee.register_own_uris(process, self.dispatcher.forwarded)
        if settings.shared:
            self.dispatcher.share(callee.forward)
        self.dispatcher.hold(_transaction_limits(settings))

        def departed(session: int | None) -> None:
            self.dispatcher.departed(session)
            self.watches.departed(session)
            if session is not None:
                callee.departed(session)

        self.client = WampClient(
            reactor,
            config,
            [
                callee,
                subscriptions,
                publisher,
                Departures(departed),
                # Crossbar pings no RawSocket, and would go on giving calls to a process that stands still.
                Heartbeat(reactor, f"{settings.prefix}.router.alive"),
            ],
        )
        written = procedures(
            self.database, models, lambda: self.dispatcher.served.codec, app.procedures
        )
        status = StatusProcedures(
            self.dispatcher,
            metadata.version("rowcast"),
            {
                "router": lambda: callee.serving,
                "listener": lambda: self.listener.listening,
                "changes": lambda: self.feed.well,
            },
            {
                "calls": callee.stats,
                "changes": self.feed.stats,
                "watches": self.watches.stats,
            },
            lambda: {
                name: each.function for name, each in app.procedures.items() if each.available
            },
        )
        explain = ExplainProcedure(self.dispatcher, settings.max_watch_rows)
        self.dispatcher.refresh = self.catalogs.refresh
        self.pruner = Pruner(self.database, settings.idempotency_keep)
        # The embedded router is for development, so callers may inject failures into batches.
        batches = TransactionProcedure(self.dispatcher, settings.embedded_router)

        async def parts(leader: str | None) -> Iterator[Check]:
            uri = f"{settings.prefix}.tx.{leader}"
            reached = None if leader is None else await subscriptions.registered(uri)
            feed = self.feed
            return service_checks(
                feed.well, feed.polling, publisher.refused, feed.leading, leader, reached
            )

        why = WhyProcedure(self.dispatcher, self.database, parts)
        most = settings.max_rows, settings.max_bytes, settings.changes_max
        catchup = CatchUpProcedures(self.database, self.dispatcher, *most)
        own = {
            **status.procedures(),
            **batches.procedures(),
            **why.procedures(),
            **catchup.procedures(),
            **(explain.procedures() if settings.explain else {}),
        }
        self.dispatcher.add(own, once=False)
        self.dispatcher.add(written)
        callee.meter.verbs = self.dispatcher.verbs
        callee.meter.procedures = {*own, *written, BEGIN}

    def startService(self) -> None:
        """Open the pool, and start the parts that use the database."""
        super().startService()
        self.pool.start()
        for part in (self.catalogs, self.listener, self.feed, self.pruner, self.watches):
            part.startService()

    async def joined(self) -> None:
        """Join the router once the catalog has been read."""
        await self.catalogs.loaded()
        if self.running:
            self.client.startService()
            await self.client.when_joined()

    def stopService(self) -> Deferred[None]:
        """Leave the router when the running calls have ended, then close the pool."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self.dispatcher.stop()
        # The feed first, while there is a session to publish through. What calls and watches need stops after
        # the client, which waits for running calls.
        for part in (
            self.feed,
            self.client,
            self.watches,
            self.pruner,
            self.listener,
            self.catalogs,
        ):
            await stopped(part, part.stopService)
        await stopped(self.pool, self.pool.close)


GC_THRESHOLDS = (5_000, 20, 10)
"""
Thresholds of Python's three garbage collector generations.

With the defaults (700, 10, 10) the collector traverses the waiting calls again and again, though none of them
is garbage. With 10,000 calls of one caller that was four fifths of the cost to accept a call (70 µs, now 30),
and a seventh of a `get` with 64 in flight (221 µs of the service's CPU, now 186).
"""


def freeze_memory(_: object = None) -> None:
    """
    Exclude all objects that exist now from later garbage collections.

    A full collection stops all threads. The objects that a service loads at its start, some hundred thousand,
    make it take a tenth of a second or more, and are never garbage. The settings hold for the process, so
    only the code that owns the process may call this.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


async def stopped(part: object, stop: Callable[[], Any]) -> None:
    """Stop a part. A failure is logged only, because the other parts have to be stopped as well."""
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
        slow_statement=settings.slow_statement,
    )


def _transaction_limits(settings: Settings) -> TransactionLimits:
    return TransactionLimits(
        # Each transaction holds a connection while it is open; two are left for all other calls.
        settings.max_transactions or max(1, settings.pool_max - 2),
        settings.max_transactions_per_session,
        settings.tx_idle_timeout,
        settings.transaction_timeout,
    )


def _feed(settings: Settings) -> FeedSettings:
    return FeedSettings(
        most=settings.changes_max,
        poll=settings.changes_poll,
        keep=settings.changes_keep,
        keep_bytes=settings.changes_keep_bytes,
    )


async def _every(heads: Collection[str]) -> Collection[str]:
    """Return all topics: changes are published whether or not anybody is subscribed."""
    return heads


def _bounds(settings: Settings) -> Bounds:
    return Bounds(
        settings.session_calls,
        settings.total_calls,
        settings.session_bytes,
        settings.total_bytes,
        running=max(RUNNING, 2 * settings.pool_max),
        wait=settings.pool_timeout,
        # As many first answers may be under way at once as workers have jobs.
        expected=settings.session_bytes // (settings.pool_max + READY),
    )


def obstacles(settings: Settings) -> None:
    """
    Check everything on this machine that could keep the service from starting.

    Raises:
        NotReady: The service cannot start.
    """
    try:
        load_application(settings.app)
    except InvalidApplication as error:
        raise NotReady(str(error)) from error
    if settings.place.embedded or settings.embedded_router:
        make_directory(settings)
    holder = settings.place.cluster.claim.held() if settings.place.embedded else ""
    if holder.startswith(HOLDER):
        raise NotReady(already_runs(holder))
    if settings.embedded_router:
        problem = obstacle(settings)
        if problem:
            raise NotReady(problem)
        return
    try:
        login(settings).extra()
    except Exception as error:
        raise NotReady(f"ROWCAST_KEY_FILE {settings.key_file}: {error}") from error


def make_directory(settings: Settings) -> None:
    """
    Create the directory of the setting `state`, unless it exists.

    Raises:
        NotReady: No file can be created in it.
    """
    try:
        settings.place.cluster.make_directory()
    except EmbeddedFailed as error:
        raise NotReady(str(error)) from error


def preflight(settings: Settings) -> DatabaseReport:
    """
    Check everything that could keep the service from starting, while a problem can still be printed.

    To be called before twistd forks: it blocks, and leaves no connection and no child process behind.

    Raises:
        NotReady: The service cannot start.
    """
    obstacles(settings)
    return inspect_database(settings.place, connections(settings))


def wamp_config(settings: Settings, router: Crossbar | None) -> WampConfig:
    """Return how to join the embedded router, or the one of the settings."""
    if router is not None:
        # The router is a local child process, so frequent attempts cost little.
        return WampConfig(
            [f"unix:{router.socket}"],
            settings.realm,
            max_bytes=settings.max_bytes,
            first_delay=0.1,
            max_delay=0.25,
        )
    urls, realm = settings.router_url, settings.realm
    links = settings.router_links
    return WampConfig(urls, realm, login(settings), settings.max_bytes, links=links)


def login(settings: Settings) -> Login:
    """Return the service's login at the router."""
    if settings.ticket is not None and settings.authid is not None:
        return Ticket(settings.authid, settings.ticket.get_secret_value())
    if settings.key_file is not None:
        return Cryptosign(settings.authid, settings.key_file)
    return Anonymous()


def postgres_line(settings: Settings, report: DatabaseReport) -> str:
    """Return the line of the start's progress about the server and its connections."""
    where = "embedded, unix socket" if settings.place.embedded else "yours"
    pool = f"pool {settings.pool_max} + {APART + slow_query_connections(settings)} for changes"
    return f"{report.server}, {where}, {report.limit} connections; {pool}"


def service_line(settings: Settings, serving: Serving) -> str:
    """Return the line about the realm and the number of procedures."""
    catalog, verbs = serving.dispatcher.served.catalog, serving.dispatcher.verbs
    many = sum(len(verbs_of(each, verbs)) for each in catalog.relations.values())
    relations, s = len(catalog.relations), "" if len(catalog.relations) == 1 else "s"
    served = f"{relations} relation{s} with {many} procedures as {settings.prefix}.*"
    bare = f"; nothing of {', '.join(catalog.empty_schemas)}" if catalog.empty_schemas else ""
    return f"joined {settings.realm}; {served}{bare}"
