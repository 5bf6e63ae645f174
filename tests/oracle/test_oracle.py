"""
Watchers' copies equal `find` at their position, and deliberate errors in keeping them are found.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import pytest_twisted

from service.changes import cycle, queries, refresh, touched
from service.changes.cycle import snapshot_txn
from service.changes.delta import Window
from service.changes.dependencies import Dependencies
from service.changes.log import LogRow
from tests.amounts import amount
from tests.oracle.oracle import DATABASE, Oracle, run, torture, upheaval
from tests.oracle.queries import Query
from tests.oracle.world import OWNER, READERS

SCHEMA = DATABASE
SEED = 20261129

pytestmark = pytest.mark.timeout(600)

REPROS = [
    # a row without a key left and entered again before its watcher had received either
    Query("people", OWNER, {"distinct": True, "select": ["team"]}),
    # the table was truncated during a cycle, so its rows were missing from the cycle's snapshot
    Query("lines", OWNER, {}),
    Query("notes", READERS[0], {"select": ["body", "task", "n"]}),
]
"""Queries whose copies were wrong in earlier versions; they are watched first."""


@pytest_twisted.ensureDeferred
async def test_copies_of_generated_queries_equal_the_results_of_find(dsn: str) -> None:
    async def work(oracle: Oracle) -> None:
        await oracle.watch(REPROS, 1)
        await torture(oracle, queries=amount(40, 120), least=amount(1000, 20_000))

    report = await run(dsn, SEED, work)
    assert report.wrong == []
    assert report.errors == []
    assert report.written > amount(5, 30)
    assert report.needless == []


@pytest_twisted.ensureDeferred
async def test_copies_are_right_after_restarts_ddl_and_changed_rights(dsn: str) -> None:
    async def work(oracle: Oracle) -> None:
        await upheaval(oracle, queries=amount(20, 90))

    report = await run(dsn, SEED, work)
    assert report.wrong == []
    assert report.errors == []
    assert report.comparisons > amount(150, 1000)


@pytest_twisted.ensureDeferred
async def test_copies_of_slow_queries_equal_the_results_of_find(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The patches make each query that must be read again entirely count as slow."""
    monkeypatch.setattr(refresh, "HEAVY", 0.0)
    monkeypatch.setattr(refresh, "REST", 0)

    async def work(oracle: Oracle) -> None:
        await torture(oracle, queries=amount(15, 60), least=amount(500, 5000))

    report = await run(dsn, SEED, work)
    assert report.wrong == []
    assert report.errors == []
    assert report.needless == []


def without_old_images(*args: Any) -> tuple[cycle.CycleSnapshot, list[LogRow] | None]:
    """Read the log as if updates had no old images."""
    taken, rows = snapshot_txn(*args)
    return taken, rows and [row._replace(old=None) if row.new else row for row in rows]


def read_later(*_: Any, **__: Any) -> str:
    """Begin a READ COMMITTED transaction, in which each statement has its own snapshot."""
    return "BEGIN READ ONLY"


class WithoutPolicies(Dependencies):
    """The dependencies of a query, without the table that only policies read."""

    @property
    def relations(self) -> frozenset[int]:
        """Return the oids of the remaining relations."""
        rest = frozenset(scan for scan in self.scans if scan.name != "members")
        return Dependencies(rest, self.opaque).relations


def blind(found: Callable[..., Dependencies]) -> Callable[..., Dependencies]:
    """Wrap `dependencies_txn` so that it returns no dependencies of policies."""

    def dependencies_txn(*args: Any) -> Dependencies:
        known = found(*args)
        return WithoutPolicies(known.scans, known.opaque)

    return dependencies_txn


def break_late(patch: pytest.MonkeyPatch) -> None:
    """Read rows in a later snapshot than the log."""
    patch.setattr(cycle, "begin_statement", read_later)
    patch.setattr(refresh, "HEAVY", math.inf)  # READ COMMITTED has no snapshot to export


def break_images(patch: pytest.MonkeyPatch) -> None:
    """Ignore old images."""
    patch.setattr(cycle, "snapshot_txn", without_old_images)


def break_windows(patch: pytest.MonkeyPatch) -> None:
    """Treat the kept rows of a window as complete; keep few spare rows, so that errors show soon."""
    patch.setattr(refresh, "LEAST_SPARE", 1)
    patch.setattr(refresh, "MOST_SPARE", 1)
    patch.setattr(Window, "of", classmethod(lambda cls, keys, most: cls(tuple(keys), True)))


def break_policies(patch: pytest.MonkeyPatch) -> None:
    """Ignore the tables that only policies read."""
    patch.setattr(queries, "dependencies_txn", blind(queries.dependencies_txn))


def break_groups(patch: pytest.MonkeyPatch) -> None:
    """Find the groups of rows without the images of related rows."""
    patch.setattr(touched, "_images", lambda *_: ([], set()))


def break_hidden(patch: pytest.MonkeyPatch) -> None:
    """Find the groups of rows as if no policy hid related rows."""
    made = touched.JoinLookup
    patch.setattr(touched, "JoinLookup", lambda *given: made(*given)._replace(hides=False))


BLAMED: dict[Callable[[pytest.MonkeyPatch], None], Callable[[Query], bool]] = {
    break_windows: lambda each: each.windowed,
    break_groups: lambda each: each.linked,
    # Of all rows, because few changes of hidden rows lead to a group of a filtered query.
    break_hidden: lambda each: (
        each.linked
        and each.caller.authrole != OWNER.authrole
        and not each.kwargs.keys() & {"where", "having", "limit"}
    ),
    # Only the policy of teams reads another table; queries on several tables depend on these anyway.
    break_policies: lambda each: each.name == "teams" and each.caller.authrole != OWNER.authrole,
}
"""The queries that a patch makes wrong soon; watching others would only take longer."""


BREAKS = [
    break_late,
    break_images,
    break_windows,
    break_policies,
    break_groups,
    break_hidden,
]


@pytest.mark.parametrize("spoil", BREAKS)
@pytest_twisted.ensureDeferred
async def test_deliberate_error_in_keeping_copies_is_found(
    dsn: str, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """Otherwise the other tests of this module would prove nothing."""
    spoil(monkeypatch)

    async def work(oracle: Oracle) -> None:
        # More queries take longer for each round of writes, and a few are wrong as soon as many.
        await torture(oracle, queries=12, least=20_000, only=BLAMED.get(spoil, lambda each: True))

    report = await run(dsn, SEED, work)
    assert report.wrong or report.errors
