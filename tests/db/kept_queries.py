"""
Queries whose rows cycles keep up to date, as for live queries, but without watchers and messages.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from twisted.python.failure import Failure

from service.catalog import Catalog
from service.changes.cycle import NewState, QueryTask
from service.changes.delta import State
from service.changes.dependencies import dependencies_txn
from service.changes.log import TrackedTable, tracked_txn
from service.changes.positions import begin_txn
from service.changes.refresh import Run, WatchShape, run_of
from service.changes.touched import key_plan, sees_all_txn
from service.db.codec import Codec
from service.db.connection import PgConnection
from service.db.introspect import catalog_txn
from service.db.session_settings import SessionSettings, identity_of, open_session
from service.db.statements import Shape, page_txn
from service.db.transaction import Actor, apart_txn, begin_statement, commit_txn
from service.plan.plans import AggregatePlan
from service.plan.watch_plan import plan_watch
from service.request.read_request import MAX_GROUPS, Limits, parse_watched
from service.sql.select import aggregate, select
from service.sql.statement import Statement

MOST, MOST_BYTES = 10_000, 1 << 30


class Reader:
    """
    A PostgreSQL session that reads, with the catalog and the tracked relations of its database.

    Args:
        dsn: DSN of the database.
    """

    def __init__(self, dsn: str) -> None:
        self.connection = open_session(dsn, SessionSettings())
        # begins the first epoch as the feed does; positions are valid only from then on
        begin_txn(self.connection, 0)
        self.catalog: Catalog = catalog_txn(self.connection, ("public",), 1)
        self.codec = Codec(self.catalog)
        self.tracked: list[TrackedTable] = list(tracked_txn(self.connection).values())
        self.shapes: dict[Hashable, WatchShape] = {}

    @contextmanager
    def snapshot(self) -> Iterator[PgConnection]:
        """Keep one snapshot for the length of the body."""
        self.connection.begin(begin_statement("repeatable read", read_only=True))
        yield self.connection
        commit_txn(self.connection)

    def run(self, statement: str) -> None:
        """Run a statement."""
        with self.connection.cursor() as cursor:
            cursor.execute(statement)

    def rows(self, statement: Statement, values: Sequence[Any]) -> list[Any]:
        """Return rows in their wire form."""
        shape = Shape("dicts", MOST_BYTES)
        return page_txn(self.connection, self.codec, statement, values, None, shape).rows


class KeptQuery:
    """
    A query and its rows.

    Args:
        reader: The session that reads the rows.
        relation: The relation.
        role: The database role that reads; "" for the service's own.
        query: The arguments of `watch`.
    """

    def __init__(self, reader: Reader, relation: str, role: str, query: Mapping[str, Any]) -> None:
        self.reader, self.role, self.query = reader, role, query
        catalog, connection = reader.catalog, reader.connection
        call = parse_watched((), query, Limits(), relation, MOST)
        plan = plan_watch(catalog, catalog.relation("public", relation), call.request)
        values = list(call.values)
        if isinstance(plan.read, AggregatePlan):
            statement, most = aggregate(plan.read), MAX_GROUPS
        else:
            statement, most = select(plan.read), MOST
        parameters = reader.codec.parameters(statement.bounds, values)
        actor = Actor(identity_of(role, {}))
        with reader.snapshot():
            reads = apart_txn(connection, actor, dependencies_txn, statement, parameters)
            keyed = key_plan(catalog, plan, reads, reader.tracked)
            shared = keyed is not None and apart_txn(
                connection, Actor(), sees_all_txn, keyed, reader.tracked
            )
        logged = reads.tracked(reader.tracked)
        name = relation, role, statement.text
        shape = reader.shapes.setdefault(name, WatchShape(
            None, plan, statement, reader.codec, catalog, most, MOST_BYTES, False, logged, keyed, shared
        ))  # fmt: skip
        self.plain = Run(shape, values, actor, 60.0, logged, "")
        self.run = run_of(shape, values, actor, 60.0, logged, "")
        self.state: State | None = None
        self.rows: dict[Any, Any] = {}

    @property
    def task(self) -> QueryTask:
        """The task of the next cycle."""
        return QueryTask(self.run, self.state, False)

    def take(self, found: NewState | Failure | None) -> None:
        """Apply the outcome of a cycle; raise its error if it has failed."""
        if isinstance(found, Failure):
            found.raiseException()
        if isinstance(found, NewState):
            self.state = found.state
            self.rows = {name: (self.rows | {**found.rows})[name] for name in found.state.entries}

    def differs(self, found: NewState | Failure | None) -> bool:
        """Return whether the kept rows differ from those of a new read."""
        assert isinstance(found, NewState), found
        kept = [_text(row) for row in self.rows.values()]
        fresh = [_text(found.rows[name]) for name in found.state.entries]
        if self.run.shape.form.ordered:
            return kept != fresh
        return sorted(kept) != sorted(fresh)


def _text(row: Any) -> str:
    return json.dumps(row, sort_keys=True, default=str)
