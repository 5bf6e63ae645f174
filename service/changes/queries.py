"""
Queries that are watched: from the arguments of a call to how a cycle runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any
from weakref import WeakKeyDictionary

from service.api.call import MAX_TEXT, Call, Snapshot
from service.api.read import parsed_rows
from service.api.roles import SERVICE
from service.changes.dependencies import GENERIC_FROM, Dependencies, dependencies_txn
from service.changes.log import Tracked, installed_txn, tracked_txn
from service.changes.refresh import Run, keyed_of
from service.changes.touched import sees_all_txn
from service.db.connection import PgConnection
from service.db.database import Database
from service.db.session import OWN_IDENTITY
from service.db.transaction import Actor
from service.errors import DatabaseRefused, UnknownName
from service.plan.aggregate import AggregatePlan
from service.plan.watch import plan_watch
from service.request.functions import CalledRequest
from service.request.read import MAX_GROUPS
from service.request.watch import parse_watched
from service.sql.aggregate import aggregate
from service.sql.select import select
from service.sql.statement import Statement

RUN_LIMIT = 2.0
"""Seconds that one run of a query may take: all others wait for it."""


MAX_KNOWN = 1024
"""Statements of one catalog of which it is kept what they read."""


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """
    How much may be watched.

    Args:
        session: Watches of one session.
        rows: Of one result.
        max_bytes: That one result, or what waits for one session, may weigh.
        timeout: Seconds that one run may take.
    """

    session: int = 100
    rows: int = 10_000
    max_bytes: int = 8 << 20
    timeout: float = RUN_LIMIT


@dataclass(slots=True)
class Known:
    """
    What is known of a statement, whatever the values of a call.

    Args:
        reads: What it reads.
        tracked: All that is in the log.
        shared: Whether the service may look for keys as itself; None until that was asked.
    """

    reads: Dependencies
    tracked: Collection[Tracked]
    shared: bool | None = None


class Queries:
    """
    Makes queries of calls.

    Args:
        database: Asked what they read.
        limits: Of what is watched.
    """

    def __init__(self, database: Database, limits: WatchLimits) -> None:
        self._database = database
        self._limits = limits
        self._known: WeakKeyDictionary[Snapshot, dict[str, Known]] = WeakKeyDictionary()

    async def run_of(self, call: Call, role: str, tables: Sequence[str]) -> Run:
        """
        Parse and plan the query of a call, and find out what it reads.

        Args:
            call: Less the options of `watch`; its role and claims are those of this context.
            role: Of the caller, in the database.
            tables: What the caller says that a function reads.

        Raises:
            InvalidArgument: Among others, it calls a function that may write.
            DatabaseRefused: Changes of something that it reads are not logged.
        """
        snapshot, limits, most = call.snapshot, self._limits, self._limits.rows
        asked = call.backend.limits
        parsed = parsed_rows(
            call,
            call.kwargs,
            lambda args, kwargs, _, rows: parse_watched(args, kwargs, asked, rows, most),
        )
        plan = plan_watch(snapshot.catalog, call.relation, parsed.request)
        if isinstance(plan.read, AggregatePlan):
            statement, most = aggregate(plan.read), MAX_GROUPS
        else:
            statement = select(plan.read)
        codec, timeout, values = snapshot.codec, parsed.timeout, list(parsed.values)
        parameters = codec.parameters(statement.bounds, values)
        actor = Actor(self._database.acting_as)
        known = await self._known_of(snapshot, statement, parameters, timeout)
        logged = _logged(call, known.reads, known.tracked, tables)
        keyed = keyed_of(snapshot.catalog, codec, plan, values, known.reads, known.tracked, most)
        if keyed is not None:
            if known.shared is None:
                known.shared = await self._ask(timeout, sees_all_txn, keyed.plan, known.tracked)
            keyed = replace(keyed, shared=bool(known.shared))
        caller = call.caller
        # Less the session, which is another one when the caller comes back.
        claims = () if role == SERVICE else (caller.authid, caller.authrole, caller.realm)
        same = (statement.text, values, role, claims, sorted(logged), snapshot.mark)
        mark = blake2b(repr(same).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        if keyed is not None and keyed.shown is not None and plan.read.limit is not None:
            values[plan.read.limit.slot] = keyed.shown + keyed.spare
        return Run(
            plan,
            statement,
            codec,
            values,
            most,
            limits.max_bytes,
            actor,
            min(limits.timeout, timeout or limits.timeout),
            isinstance(parsed.request, CalledRequest),
            logged,
            mark,
            keyed,
        )

    async def _known_of(
        self,
        snapshot: Snapshot,
        statement: Statement,
        parameters: Sequence[str | None],
        timeout: float | None,
    ) -> Known:
        """Return what is known of a statement; what is tracked changes with the catalog alone."""
        kept = self._known.setdefault(snapshot, {})
        known = kept.get(statement.text)
        if known is None:
            reads, general = await self._database.run(
                _reads_txn, statement, parameters, retry=True, timeout=timeout
            )
            tracked = await self._ask(timeout, _tracked_txn)
            known = Known(reads, tuple(tracked.values()))
            if general and len(kept) < MAX_KNOWN and len(statement.text) <= MAX_TEXT:
                kept[statement.text] = known
        return known

    def _ask(self, timeout: float | None, function: Callable[..., Any], *args: Any) -> Any:
        """Run a read as the service itself."""
        with self._database.identity(OWN_IDENTITY):
            return self._database.run(function, *args, retry=True, timeout=timeout)


def _reads_txn(
    connection: PgConnection, statement: Statement, parameters: Sequence[str | None]
) -> tuple[Dependencies, bool]:
    """Return what a statement reads, and whether that holds for all values."""
    general = connection.server_version >= GENERIC_FROM
    return dependencies_txn(connection, statement, parameters), general


def _tracked_txn(connection: PgConnection) -> dict[int, Tracked]:
    return tracked_txn(connection) if installed_txn(connection) else {}


def _logged(
    call: Call, reads: Dependencies, tracked: Collection[Tracked], tables: Sequence[str]
) -> frozenset[int]:
    """
    Return what of the log may change the rows of a query.

    Raises:
        DatabaseRefused: Changes of something that it reads are not logged.
        UnknownName: The caller has named a table that is none.
    """
    catalog = call.snapshot.catalog
    known = {name for schema, table in catalog.relations for name in (table, f"{schema}.{table}")}
    untracked = reads.untracked(tracked)
    if untracked:
        # A policy, say, may ask a table that the caller does not know.
        shown = [name for name in untracked if name.replace('"', "") in known]
        raise DatabaseRefused(
            f"changes of {shown[0]} are not logged, so it cannot be watched"
            if shown
            else "changes of a table that this reads are not logged, so it cannot be watched",
            relation=shown[0] if shown else None,
            hint=f"rowcast track {shown[0]}" if shown else "rowcast track …, of all that it reads",
        )
    found = reads.tracked(tracked)
    if not reads.opaque:
        return found
    if not tables:
        return frozenset(each.id for each in tracked)
    return found | {
        _declared(catalog.schemas[0], name, f"tables.{at}", catalog.relations, tracked)
        for at, name in enumerate(tables)
    }


def _declared(
    home: str,
    table: str,
    path: str,
    relations: Collection[tuple[str, str]],
    tracked: Collection[Tracked],
) -> int:
    schema, dot, name = table.rpartition(".")
    place = (schema if dot else home, name)
    if place not in relations:
        raise UnknownName("table", table, [each for _, each in relations], path=path)
    for each in tracked:
        if (each.schema, each.name) == place:
            return each.id
    raise DatabaseRefused(f"changes of {table} are not logged", hint=f"rowcast track {table}")
