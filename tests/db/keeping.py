"""
Rows of queries kept by the changes of a cycle, as live queries keep them, without their protocol.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from service.catalog import Catalog
from service.changes.dependencies import dependencies_txn
from service.changes.log import Tracked, tracked_txn
from service.changes.touched import (
    Key,
    KeyPlan,
    RowChange,
    Touched,
    key_arrays,
    key_plan,
    own_keys,
    related_txn,
)
from service.changes.window import Window
from service.db.codec import Codec
from service.db.connection import PgConnection
from service.db.introspect import catalog_txn
from service.db.session import SessionSettings, open_session
from service.db.statements import Shape, page_txn
from service.plan.aggregate import AggregatePlan, plan_aggregate
from service.plan.keyed import KeyedRows, keyed_rows, order_of_keys, with_keys
from service.plan.read import plan_find
from service.plan.types import ReadPlan
from service.request.read import Limits, parse_aggregate, parse_find
from service.sql.aggregate import aggregate
from service.sql.select import select
from service.sql.statement import Statement

SHAPE = Shape("dicts", 1 << 30)
SPARE = 2


class Reader:
    """
    A session that reads, and what it knows of the database.

    Args:
        dsn: Of the database.
    """

    def __init__(self, dsn: str) -> None:
        self.connection = open_session(dsn, SessionSettings())
        self.catalog: Catalog = catalog_txn(self.connection, ("public",), 1)
        self.codec = Codec(self.catalog)
        self.tracked: list[Tracked] = list(tracked_txn(self.connection).values())

    @contextmanager
    def snapshot(self) -> Iterator[PgConnection]:
        """Have one snapshot for the length of the body."""
        self.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            yield self.connection
        finally:
            self.run("COMMIT")

    def run(self, words: str) -> None:
        """Run a statement."""
        with self.connection.cursor() as cursor:
            cursor.execute(words)

    def rows(self, statement: Statement, values: Sequence[Any]) -> list[Any]:
        """Return rows as they are answered."""
        return page_txn(self.connection, self.codec, statement, values, None, SHAPE).rows


class Kept:
    """
    The rows of a query.

    Args:
        reader: Reads them.
        relation: Whose rows.
        role: As whom.
        query: The arguments of find, or of aggregate if there are measures.
    """

    def __init__(self, reader: Reader, relation: str, role: str, query: Mapping[str, Any]) -> None:
        self.reader, self.role, self.query = reader, role, query
        catalog = reader.catalog
        self.relation = catalog.relation("public", relation)
        self.plan: ReadPlan | AggregatePlan
        self.shown = query.get("limit")
        if "measures" in query:
            groups = parse_aggregate((), query, Limits())
            self.plan = plan_aggregate(catalog, self.relation, groups.request)
            self.values = list(groups.values)
        else:
            found = parse_find((), query, Limits(), relation)
            self.plan = replace(plan_find(catalog, self.relation, found.request), keyset=False)
            self.values = list(found.values)
            if self.shown is not None:
                self.values[found.request.limit.slot] = self.shown + SPARE
        rows = keyed_rows(catalog, self.plan)
        assert rows is not None, query
        self.keys: KeyedRows = rows
        self.statement = _statement(self.plan)
        self.key_plan: KeyPlan | None = None
        self.state: dict[Key, Any] = {}
        self.window: Window[Key] | None = None
        self.counts = {"keyed": 0, "whole": 0, "nothing": 0}

    def begin(self) -> None:
        """Read all rows, and learn what they come from."""
        with self._acting():
            parameters = self.reader.codec.parameters(self.statement.bounds, self.values)
            found = dependencies_txn(self.reader.connection, self.statement, parameters)
        self.key_plan = key_plan(self.reader.catalog, self.keys, found, self.reader.tracked)
        self.again()

    def fresh(self) -> list[Any]:
        """Return the rows as a new query has them."""
        with self._acting():
            return self.reader.rows(self.statement, self.values)

    def again(self) -> None:
        """Read all rows."""
        found = self.fresh()
        self.state = {self._key(row): row for row in found}
        if self.shown is not None:
            self.window = Window.of([*self.state], self.shown + SPARE)

    def differs(self) -> bool:
        """Return whether what is kept is not what a new query has."""
        fresh = self.fresh()
        if self.window is None:  # in no order
            return sorted(map(_text, fresh)) != sorted(map(_text, self.state.values()))
        kept = [self.state[key] for key in self.window.keys[: self.shown]]
        return list(map(_text, fresh[: self.shown])) != list(map(_text, kept))

    def step(self, changes: Sequence[RowChange]) -> None:
        """Follow the changes of a cycle."""
        assert self.key_plan is not None
        with self._acting():
            related = related_txn(self.reader.connection, self.reader.codec, self.key_plan, changes)
        own = own_keys(self.key_plan, changes)
        if related is None or own is None:
            self.counts["whole"] += 1
            self.again()
            return
        keys = own | related.rows | (related.related & self.state.keys())
        if not keys:
            self.counts["nothing"] += 1
            return
        self.counts["keyed"] += 1
        with self._acting():
            self._keyed(keys, related)

    def _keyed(self, keys: set[Key], related: Touched) -> None:
        found = {self._key(row): row for row in self._of_keys(keys)}
        for key in keys:
            self.state.pop(key, None)
        self.state.update(found)
        if self.window is None:
            return
        assert isinstance(self.plan, ReadPlan)
        assert self.shown is not None
        ordered = select(order_of_keys(self.reader.catalog, self.plan, self.keys))
        arrays, _ = key_arrays({*self.window.keys, *keys}, self.keys.key)
        order = [self._key(row) for row in self.reader.rows(ordered, [*self.values, *arrays])]
        window = self.window.moved(keys, order, self.shown, self.shown + SPARE)
        if window is None:
            self.counts["whole"] += 1
            self.again()
        else:
            self.window = window
            self.state = {key: self.state[key] for key in window.keys}

    def _of_keys(self, keys: set[Key]) -> list[Any]:
        arrays, nulls = key_arrays(keys, self.keys.key)
        plan = with_keys(self.reader.catalog, self.plan, self.keys, nulls)
        return self.reader.rows(_statement(plan), [*self.values, *arrays])

    def _key(self, row: Mapping[str, Any]) -> Key:
        return tuple(row[name] for name in self.keys.key)

    @contextmanager
    def _acting(self) -> Iterator[None]:
        if self.role:
            self.reader.run(f"SET LOCAL ROLE {self.role}")
        try:
            yield
        finally:
            if self.role:
                self.reader.run("RESET ROLE")


def _statement(plan: ReadPlan | AggregatePlan) -> Statement:
    return aggregate(plan) if isinstance(plan, AggregatePlan) else select(plan)


def _text(row: Any) -> str:
    return json.dumps(row, sort_keys=True, default=str)
