"""
The schema cache: keeps the served catalog up to date with the database.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import Context
from dataclasses import replace
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from service.api.call import Snapshot
from service.api.dispatcher import Dispatcher
from service.api.roles import SERVICE, Roles
from service.catalog import Catalog, Column, Function, QualifiedName, Relation, Type
from service.db.codec import Codec
from service.db.database import Database
from service.db.introspect import Fingerprint, catalog_txn, fingerprint_txn
from service.db.session_settings import identity_of
from service.errors import first_line
from service.models.served import Models
from service.sql.statement import quoted
from service.waiting import Pause, Waiters

log = Logger()

EVERY = 1.0
"""Seconds between two checks whether the catalog has changed."""
REST = 4
"""A check, with the reading that may follow, is followed by a rest of this many times its duration."""
MIN_REST = 0.01
"""Minimum rest in seconds. Callers trigger checks, and one check after the rest answers many of them."""
NO_ROLE = frozenset({"22023", "42501", "42704"})
"""SQLSTATEs of SET ROLE if the role does not exist, or the service's role is not a member of it."""
NO_MEMBER = "42501"
"""The SQLSTATE for a role that exists, but of which the service's role is not a member."""
PAUSE = 1.0
"""Seconds between two attempts to read the catalog of a database that cannot be reached."""
LONG_PAUSE = 10.0
"""Seconds until a catalog is read again that could be read but not served."""
PATIENCE = 5.0
"""Maximum time in seconds that a caller waits for a check, and a check for the database."""


class Catalogs(Service):
    """
    Reads the catalog at start, and again when it has changed.

    It checks for changes every second, and when a call is refused for which an outdated catalog may be the
    reason. Calls that run while the catalog is replaced keep the one that they began with.

    Args:
        reactor: Measures the pauses.
        database: The database to read the catalog from.
        schemas: The schemas that are served.
        dispatcher: Serves the catalogs.
        models: Loads the models of each catalog.
        roles: The database roles, each of which has a catalog of its own.
        every: Seconds between two checks; None to check only when callers ask.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        database: Database,
        schemas: tuple[str, ...],
        dispatcher: Dispatcher,
        models: Models,
        roles: Roles = Roles(),  # noqa: B008 - frozen
        every: float | None = EVERY,
    ) -> None:
        self._reactor = reactor
        self._database = database
        self._schemas = schemas
        self._dispatcher = dispatcher
        self._models = models
        self._roles = roles
        self._every = every
        self._codecs: list[Codec] = []
        self._version = 0
        self._gone: dict[str, str] = {}
        self._wrong_keys: set[tuple[str, str]] = set()
        self._fingerprint: Fingerprint | None = None
        self._behind = True
        self._ordered = False
        self._keeping: Deferred[None] | None = None
        self._pause = Pause(reactor)
        self._waiting = Waiters()
        self._asking: list[Deferred[bool]] = []
        self._subscribers: list[Callable[[], None]] = []

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Call a function each time that the catalog has been replaced."""
        self._subscribers.append(callback)

    def startService(self) -> None:
        """Start to read and check the catalog."""
        super().startService()
        # An empty context: the loop must not inherit the transaction or the identity of its starter.
        self._keeping = Context().run(Deferred.fromCoroutine, self._keep())

    def stopService(self) -> Deferred[None] | None:
        """Stop checking the catalog."""
        super().stopService()
        keeping, self._keeping = self._keeping, None
        if keeping is not None:
            keeping.cancel()
        return keeping

    def loaded(self) -> Deferred[None]:
        """Return a Deferred that fires once the catalog has been read for the first time."""
        return succeed(None) if self._version else self._waiting.wait()

    def reload(self) -> None:
        """Read the catalog even if the fingerprint has not changed; if it is being read, once more."""
        self._ordered = True
        self._pause.end()

    def refresh(self) -> Deferred[bool]:
        """
        Check whether the catalog has changed, and read it if it has.

        Returns:
            A Deferred that fires with True once the served catalog is at least as new as this call, and
            with False if the database does not answer in time.
        """
        if self._keeping is None:
            return succeed(False)
        asking: Deferred[bool] = Deferred()
        self._asking.append(asking)
        self._pause.end()
        return asking.addTimeout(PATIENCE, self._reactor, lambda *_: False)

    async def _keep(self) -> None:
        """Keep the served catalog up to date until the service stops."""
        asking: list[Deferred[bool]] = []
        try:
            while self.running:
                # Callers that ask from here on wait for the next check: this one may miss the change that
                # refused them.
                asking, self._asking = self._asking, []
                began = self._reactor.seconds()
                known, pause = await self._check()
                _answer(asking, known)
                took = self._reactor.seconds() - began
                rest = max(MIN_REST, min(REST * took, PATIENCE)) if known else PAUSE
                # A caller that asks just after a check has begun waits for that check, the rest and one more
                # check, within its PATIENCE.
                least = min(rest, max(MIN_REST, PATIENCE - 2 * took))
                await self._rest(least, None if pause is None else max(rest, pause))
        except CancelledError:
            pass
        finally:
            _answer([*asking, *self._asking], False)

    async def _check(self) -> tuple[bool, float | None]:
        """
        Read the catalog if it has changed.

        Returns:
            Whether the served catalog is up to date, and the seconds to rest if no caller asks.
        """
        # A `reload` stays ordered if this check fails.
        self._behind, self._ordered = self._behind or self._ordered, False
        read = False
        try:
            last = self._fingerprint
            # Before the catalog is read, so that the next check finds a change between the two.
            found = await self._database.run(fingerprint_txn, last, retry=True, timeout=PATIENCE)
            self._behind = self._behind or last is None or last.value != found.value
            if self._behind:
                catalogs = await self._catalogs()
                read = True
                self._serve(catalogs, found.value)
                self._announce()
        # Twisted's CancelledError is an Exception; below, a stop would look like a failure.
        except CancelledError:
            raise
        except Exception as error:
            if read:
                log.failure("cannot serve the catalog")
                return False, LONG_PAUSE
            if self._behind:
                log.warn("cannot read the catalog: {error}", error=first_line(error))
            return False, PAUSE
        self._fingerprint, self._behind = found, False
        return True, self._every

    async def _rest(self, least: float, most: float | None) -> None:
        """Wait `least` seconds, then until a caller asks or `most` have passed; not after `reload`."""
        now = self._reactor.seconds()
        soon, late = now + least, None if most is None else now + max(least, most)
        while self.running and not self._ordered:
            until = soon if self._asking else late
            if until is not None and until <= self._reactor.seconds():
                return
            await self._pause.wait(None if until is None else until - self._reactor.seconds())

    def _announce(self) -> None:
        self._version += 1
        log.info(
            "serving {relations} relations of {schemas}, catalog {version}",
            relations=len(self._dispatcher.served.catalog.relations),
            schemas=", ".join(self._schemas),
            version=self._version,
        )
        self._log_wrong_keys()
        self._waiting.fire()
        for callback in self._subscribers:
            callback()

    def _log_wrong_keys(self) -> None:
        """Log, once, the comments that declare a key of columns which do not exist."""
        relations = self._dispatcher.served.catalog.relations.values()
        wrong = {
            (f"{each.schema}.{each.name}", ", ".join(each.claimed_key))
            for each in relations
            if each.claimed_key and not each.primary_key
        }
        for relation, key in sorted(wrong - self._wrong_keys):
            log.warn(
                "the comment of {relation} says @key {key}, and it has no such columns: it is"
                " served without a key",
                relation=relation,
                key=key,
            )
        self._wrong_keys = wrong

    async def _catalogs(self) -> dict[str, Catalog]:
        """
        Return the catalog of each role, without roles that do not exist or that the service may not set.

        The callers of those roles are refused. One dropped role must not keep the others from a new
        catalog, nor keep its own rights until an operator notices.
        """
        catalogs: dict[str, Catalog] = {}
        gone: dict[str, str] = {}
        for role in self._roles.names:
            try:
                catalogs[role] = await self._catalog(role)
            except Exception as error:
                if role == SERVICE or getattr(error, "pgcode", None) not in NO_ROLE:
                    raise
                lacks = getattr(error, "pgcode", None) == NO_MEMBER
                gone[role] = (
                    f"the service may not act as it → GRANT {quoted(role)} TO the role that"
                    " DATABASE_URL names"
                    if lacks
                    else f"there is no such role in the database → CREATE ROLE {quoted(role)}, and"
                    " GRANT it to the role that DATABASE_URL names; or mend the setting"
                )
        for role in gone.keys() - self._gone.keys():
            log.warn(
                "callers of the role {role}, which {setting} names, are refused: {why}",
                role=quoted(role),
                setting=self._roles.named_by(role),
                why=gone[role],
            )
        self._gone = gone
        return catalogs

    async def _catalog(self, role: str) -> Catalog:
        """Read the catalog of what a role may use."""
        with self._database.identity(identity_of(role, {})):
            catalog: Catalog = await self._database.atomic(
                catalog_txn,
                self._schemas,
                self._version + 1,
                # One snapshot for all queries: a migration that commits meanwhile would be read by half.
                isolation="repeatable read",
                read_only=True,
            )
        return catalog

    def _serve(self, catalogs: Mapping[str, Catalog], mark: str) -> None:
        """Serve new catalogs: to each role its own, and the union of all."""
        nothing = Catalog(self._version + 1, self._schemas, {}, {})
        union = union_of(list(catalogs.values()) or [nothing])
        codec = Codec(union)
        models = self._models.load(union, codec)
        served = {
            role: Snapshot(catalog, codec if catalog is union else Codec(catalog), models, mark)
            for role, catalog in catalogs.items()
        }
        self._dispatcher.serve(Snapshot(union, codec, models, mark), served)
        outdated, self._codecs = self._codecs, [codec, *(each.codec for each in served.values())]
        for each in outdated:
            each.current = False
        # By the old catalog some statements certainly changed nothing in a session; that may have changed.
        self._database.pool.clean()


def _answer(asking: Iterable[Deferred[bool]], known: bool) -> None:
    """Answer callers that wait for a check: whether the served catalog is up to date."""
    for each in asking:
        # It has been called if its caller's timeout came first.
        if not each.called:
            each.callback(known)


def union_of(catalogs: Sequence[Catalog]) -> Catalog:
    """Merge the catalogs of several roles into one that has what any of them may use, in any order."""
    first, *rest = catalogs
    if not rest:
        return first
    types: dict[int, Type] = {}
    relations: dict[QualifiedName, list[Relation]] = defaultdict(list)
    functions: dict[QualifiedName, dict[tuple[int, ...], Function]] = defaultdict(dict)
    for catalog in catalogs:
        types |= catalog.types
        for name, relation in catalog.relations.items():
            relations[name].append(relation)
        for name, overloads in catalog.functions.items():
            for each in overloads:
                # The input types identify an overload in the catalogs of all roles.
                functions[name].setdefault(tuple(it.type for it in each.inputs), each)
    return replace(
        first,
        relations={name: _merged_relation(alike) for name, alike in relations.items()},
        types=types,
        functions={name: tuple(alike.values()) for name, alike in functions.items()},
    )


def _merged_relation(alike: Sequence[Relation]) -> Relation:
    """Merge what the roles know of one relation: a role knows a key if it may use all of its columns."""
    columns: dict[str, list[Column]] = defaultdict(list)
    for relation in alike:
        for name, column in relation.columns.items():
            columns[name].append(column)
    # A role that may not read a column of the primary key knows none.
    primary = next((each.primary_key for each in alike if each.primary_key), ())
    indexes = {index.name: index for each in alike for index in each.unique_indexes}.values()
    keys = {key.name: key for each in alike for key in each.unique_keys}.values()
    referring: dict[str, Any] = {
        name: tuple(dict.fromkeys(key for each in alike for key in getattr(each, name)))
        for name in ("foreign_keys", "view_foreign_keys", "view_keys")
    }
    return replace(
        alike[0],
        columns={name: _merged_column(found) for name, found in columns.items()},
        primary_key=primary,
        # The primary key comes first, as in each catalog; the sort is stable for the others.
        unique_keys=tuple(sorted(keys, key=lambda key: key.columns != primary)),
        unique_indexes=tuple(indexes),
        constraints={name: of for each in alike for name, of in each.constraints.items()},
        **referring,
        **_merged_rights(alike, "selectable", "insertable", "updatable", "deletable", "readable"),
    )


def _merged_column(alike: Sequence[Column]) -> Column:
    return replace(alike[0], **_merged_rights(alike, "selectable", "insertable", "updatable"))


def _merged_rights(alike: Sequence[Relation | Column], *names: str) -> dict[str, Any]:
    """Return which rights any of the roles has."""
    return {name: any(getattr(each, name) for each in alike) for name in names}
