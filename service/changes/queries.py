"""
From the arguments of a `watch` call to a `Run`: parse, plan, and find out what the query reads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from service.api.call import MAX_TEXT, Call, CallState, Snapshot
from service.api.read import parsed_rows, watched_statement
from service.api.roles import SERVICE
from service.catalog import Relation
from service.changes.dependencies import GENERIC_FROM, Dependencies, dependencies_txn
from service.changes.log import TrackedTable, installed_txn, refuse_barred_txn, tracked_txn
from service.changes.refresh import Run, WatchShape, run_of
from service.changes.touched import key_plan, sees_all_txn
from service.changes.why import track_hint
from service.db.connection import PgConnection
from service.db.database import Database
from service.db.session_settings import OWN_IDENTITY
from service.db.transaction import Actor
from service.errors import DatabaseRefused, Unavailable, UnknownName
from service.plan.plans import AggregatePlan
from service.plan.watch_plan import WatchPlan, plan_watch
from service.request.call_request import FunctionRowsRequest
from service.request.read_request import MAX_GROUPS, parse_watched
from service.sql.statement import Statement

RUN_LIMIT = 2.0
"""Timeout in seconds of one run of a query: the other queries of the cycle wait for it."""

NOT_LOGGED = "55000"
"""The SQLSTATE of a watch of what is not tracked: object_not_in_prerequisite_state."""

MAX_SHAPES = 1024
"""Maximum number of plans in the cache of one catalog snapshot."""


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """
    Limits of live queries.

    Args:
        session: Maximum number of watches of one session.
        rows: Maximum number of rows of one result.
        max_bytes: Maximum size in bytes of one result, and of the rows that wait for one session.
        timeout: Timeout of one run, in seconds.
        background_reads: Number of groups of slow queries that are read at the same time, each by a connection.
    """

    session: int = 100
    rows: int = 10_000
    max_bytes: int = 8 << 20
    timeout: float = RUN_LIMIT
    background_reads: int = 1


@dataclass(slots=True)
class PlannedWatch:
    """
    The cached plan of a request, for all parameter values.

    Attributes:
        digest: Digest of the request.
        plan: The plan, with the form of the rows' keys.
        statement: Statement that reads all rows.
        reads: Tables that it reads; None until they were found out, and always None before PostgreSQL 16,
            where they may depend on the values.
        tracked: All tracked tables; they change only together with the catalog.
        shapes: Shapes of the live queries with this plan, by what they read.
        last: The newest shape, kept so that the next query need not build it again.
    """

    digest: bytes
    plan: WatchPlan
    statement: Statement
    reads: Dependencies | None = None
    tracked: Collection[TrackedTable] = ()
    shapes: WeakValueDictionary[Dependencies, WatchShape] = field(
        default_factory=WeakValueDictionary
    )
    last: WatchShape | None = None


class Queries:
    """
    Makes a `Run` of each call of `watch`.

    Args:
        database: Plans the queries, to find out what they read.
        limits: Limits of live queries.
    """

    def __init__(self, database: Database, limits: WatchLimits) -> None:
        self._database = database
        self._limits = limits
        self._planned: WeakKeyDictionary[Snapshot, dict[Hashable, PlannedWatch]] = (
            WeakKeyDictionary()
        )

    async def run_of(self, call: Call, role: str, tables: Sequence[str]) -> Run:
        """
        Parse and plan the query of a call, and find out what it reads.

        Args:
            call: The call, without the options of `watch`. It runs under the identity of this context.
            role: Database role of the caller.
            tables: Tables that functions of the query read, as declared by the caller.

        Raises:
            InvalidArgument: An argument is wrong, or the query calls a function that may write.
            DatabaseRefused: The query reads a table whose changes are not logged.
        """
        limits, asked = self._limits, call.backend.limits
        parsed = parsed_rows(
            call,
            call.kwargs,
            lambda args, kwargs, _, rows: parse_watched(args, kwargs, asked, rows, limits.rows),
        )
        planned = self._plan(call, parsed.request)
        timeout, values = parsed.timeout, list(parsed.values)
        identity = self._database.acting_as
        reads = await self._reads_of(call, planned, values, timeout)
        shape = planned.shapes.get(reads)
        if shape is None:
            guarded = isinstance(parsed.request, FunctionRowsRequest)
            made = await self._shape_of(call, planned, reads, guarded, timeout)
            shape = planned.last = planned.shapes.setdefault(reads, made)
        logged = _logged(call, reads, planned.tracked, tables) if tables else shape.reads
        seconds = min(limits.timeout, timeout or limits.timeout)
        caller = call.caller
        # The session id is part of the digest only if the query can read it, because a caller that
        # reconnects has another one, and could not resume.
        session = caller.session if reads.session else None
        claims = () if role == SERVICE else (caller.authid, caller.authrole, caller.realm, session)
        same = (shape.statement.text, values, role, claims, sorted(logged), call.snapshot.mark)
        mark = _digest(same, 8).hex()
        # Two requests with the same statement now may have different ones with another catalog.
        name = _digest((planned.digest, mark, identity, values, tables, seconds), 16)
        return run_of(shape, values, Actor(identity), seconds, logged, mark, name)

    def _plan(self, call: Call, request: Any) -> PlannedWatch:
        """Plan a request, or return its plan from the cache."""
        kept = self._planned.setdefault(call.snapshot, {})
        name = (call.relation, request)
        planned = kept.get(name)
        if planned is None:
            plan = plan_watch(call.snapshot.catalog, call.relation, request)
            made = watched_statement(plan)
            about = call.relation and (call.relation.schema, call.relation.name)
            planned = PlannedWatch(_digest((about, request), 16), plan, made)
            if len(kept) < MAX_SHAPES and len(made.text) <= MAX_TEXT:
                kept[name] = planned
        return planned

    async def _reads_of(
        self, call: Call, planned: PlannedWatch, values: Sequence[Any], timeout: float | None
    ) -> Dependencies:
        """Return what a query reads, and store the tracked tables."""
        if planned.reads is not None:
            return planned.reads
        run = self._database.run
        parameters = call.snapshot.codec.parameters(planned.statement.bounds, values)
        reads, general = await run(
            _reads_txn, planned.statement, parameters, retry=True, timeout=timeout
        )
        tracked = await self._ask(timeout, _tracked_txn)
        planned.tracked = tuple(tracked.values())
        if general:
            planned.reads = reads
        found: Dependencies = reads
        return found

    async def _shape_of(
        self,
        call: Call,
        planned: PlannedWatch,
        reads: Dependencies,
        guarded: bool,
        timeout: float | None,
    ) -> WatchShape:
        """
        Build the shape of the queries with one plan and the same dependencies.

        Raises:
            DatabaseRefused: The query reads a table whose changes are not logged.
        """
        snapshot, plan, limits = call.snapshot, planned.plan, self._limits
        logged = _logged(call, reads, planned.tracked, ())
        keyed = key_plan(snapshot.catalog, plan, reads, planned.tracked)
        shared = False
        if keyed is not None:
            shared = await self._ask(timeout, sees_all_txn, keyed, planned.tracked)
        return WatchShape(
            call._replace(args=(), kwargs={}, progress=None, state=CallState()),
            plan,
            planned.statement,
            snapshot.codec,
            snapshot.catalog,
            MAX_GROUPS if isinstance(plan.read, AggregatePlan) else limits.rows,
            limits.max_bytes,
            guarded,
            logged,
            keyed,
            shared,
        )

    def _ask(self, timeout: float | None, function: Callable[..., Any], *args: Any) -> Any:
        """Run a read with the service's own role."""
        with self._database.identity(OWN_IDENTITY):
            return self._database.run(function, *args, retry=True, timeout=timeout)


def _digest(value: object, size: int) -> bytes:
    """Return a digest of the repr of a value, in which equal numbers of different types differ."""
    return blake2b(repr(value).encode("utf-8", "surrogatepass"), digest_size=size).digest()


def _reads_txn(
    connection: PgConnection, statement: Statement, parameters: Sequence[str | None]
) -> tuple[Dependencies, bool]:
    """Return what a statement reads, and whether that holds for all values."""
    general = connection.server_version >= GENERIC_FROM
    return dependencies_txn(connection, statement, parameters), general


def _tracked_txn(connection: PgConnection) -> dict[int, TrackedTable]:
    if installed_txn(connection):
        return tracked_txn(connection)
    refuse_barred_txn(connection)
    return {}


def _logged(
    call: Call, reads: Dependencies, tracked: Collection[TrackedTable], tables: Sequence[str]
) -> frozenset[int]:
    """
    Return the numbers of the tracked relations whose changes may change the rows of a query.

    Raises:
        DatabaseRefused: The query reads a table whose changes are not logged.
        UnknownName: The caller has declared a table that does not exist.
    """
    catalog = call.snapshot.catalog
    known = {
        name: relation
        for (schema, table), relation in catalog.relations.items()
        for name in (table, f"{schema}.{table}")
    }
    untracked = reads.untracked(tracked)
    if untracked:
        # Only tables that the caller can see are named: a policy may read a hidden one.
        shown = [name for name in untracked if name.replace('"', "") in known]
        hint = "rowcast track …, of all that it reads"
        if shown:
            hint = track_hint(known[shown[0].replace('"', "")], shown[0])
        raise DatabaseRefused(
            f"changes of {shown[0]} are not logged, so it cannot be watched"
            if shown
            else "changes of a table that this reads are not logged, so it cannot be watched",
            relation=shown[0] if shown else None,
            hint=hint,
            sqlstate=NOT_LOGGED,
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
    relations: Mapping[tuple[str, str], Relation],
    tracked: Collection[TrackedTable],
) -> int:
    schema, dot, name = table.rpartition(".")
    place = (schema if dot else home, name)
    if place not in relations:
        raise UnknownName("table", table, [each for _, each in relations], path=path)
    for each in tracked:
        if (each.schema, each.name) == place:
            return each.id
    raise DatabaseRefused(
        f"changes of {table} are not logged",
        path=path,
        relation=name,
        hint=track_hint(relations[place], table),
        sqlstate=NOT_LOGGED,
    )


def stopping() -> Unavailable:
    """Return the refusal of a watch by a service that stops; its caller resumes at another one at once."""
    return Unavailable("the service is stopping", reason="stopped", retry_after=0.0)
