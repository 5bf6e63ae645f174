"""
Queries that are watched: from the arguments of a call to how a cycle runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any
from weakref import WeakKeyDictionary

from service.api.call import MAX_TEXT, Call, Snapshot
from service.api.read import parsed_rows, watched_statement
from service.api.roles import SERVICE
from service.changes.dependencies import GENERIC_FROM, Dependencies, dependencies_txn
from service.changes.log import Tracked, installed_txn, refuse_barred_txn, tracked_txn
from service.changes.refresh import Run, keyed_of
from service.changes.touched import sees_all_txn
from service.db.connection import PgConnection
from service.db.database import Database
from service.db.session_settings import OWN_IDENTITY
from service.db.transaction import Actor
from service.errors import DatabaseRefused, UnknownName
from service.plan.aggregate_plan import AggregatePlan
from service.plan.watch_plan import WatchPlan, plan_watch
from service.request.call_request import CalledRequest
from service.request.read_request import MAX_GROUPS
from service.request.watch_request import parse_watched
from service.sql.statement import Statement

RUN_LIMIT = 2.0
"""Seconds that one run of a query may take: all others wait for it."""


MAX_SHAPES = 1024
"""Kept of one catalog."""


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
class WatchShape:
    """
    What queries have in common that differ in their values alone.

    Attributes:
        plan: What they read, and how the rows are told apart.
        statement: Reads them.
        reads: The tables that it reads; None until that was asked.
        tracked: All that is in the log; that changes with the catalog alone.
        shared: Whether the service may look for keys as itself; None until that was asked.
    """

    plan: WatchPlan
    statement: Statement
    reads: Dependencies | None = None
    tracked: Collection[Tracked] = ()
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
        self._shapes: WeakKeyDictionary[Snapshot, dict[Hashable, WatchShape]] = WeakKeyDictionary()

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
        shape = self._shape_of(call, parsed.request)
        plan, statement = shape.plan, shape.statement
        if isinstance(plan.read, AggregatePlan):
            most = MAX_GROUPS
        codec, timeout, values = snapshot.codec, parsed.timeout, list(parsed.values)
        parameters = codec.parameters(statement.bounds, values)
        actor = Actor(self._database.acting_as)
        reads = await self._reads_of(shape, parameters, timeout)
        logged = _logged(call, reads, shape.tracked, tables)
        keyed = keyed_of(snapshot.catalog, codec, plan, values, reads, shape.tracked, most)
        if keyed is not None:
            if shape.shared is None:
                shape.shared = await self._ask(timeout, sees_all_txn, keyed.plan, shape.tracked)
            keyed = replace(keyed, shared=bool(shape.shared))
        caller = call.caller
        # The session is another one when the caller comes back, and hardly a query asks for it.
        session = caller.session if reads.session else None
        claims = () if role == SERVICE else (caller.authid, caller.authrole, caller.realm, session)
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

    def _shape_of(self, call: Call, request: Any) -> WatchShape:
        """Plan a query, once for each shape in use."""
        kept = self._shapes.setdefault(call.snapshot, {})
        name = (call.relation, request)
        shape = kept.get(name)
        if shape is None:
            plan = plan_watch(call.snapshot.catalog, call.relation, request)
            made = watched_statement(plan)
            shape = WatchShape(plan, made)
            if len(kept) < MAX_SHAPES and len(made.text) <= MAX_TEXT:
                kept[name] = shape
        return shape

    async def _reads_of(
        self, shape: WatchShape, parameters: Sequence[str | None], timeout: float | None
    ) -> Dependencies:
        """Return what a query reads, and note what is tracked."""
        if shape.reads is not None:
            return shape.reads
        run = self._database.run
        reads, general = await run(
            _reads_txn, shape.statement, parameters, retry=True, timeout=timeout
        )
        tracked = await self._ask(timeout, _tracked_txn)
        shape.tracked = tuple(tracked.values())
        if general:
            shape.reads = reads
        return reads

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
    if installed_txn(connection):
        return tracked_txn(connection)
    refuse_barred_txn(connection)
    return {}


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
    declared = {
        _declared(catalog.schemas[0], name, f"tables.{at}", catalog.relations, tracked)
        for at, name in enumerate(tables)
    }
    if reads.opaque and not tables:
        return frozenset(each.id for each in tracked)
    return reads.tracked(tracked) | declared


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
