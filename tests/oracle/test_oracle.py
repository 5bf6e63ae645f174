"""
Copies that watchers keep are what `find` answered at their position; wrong ways of keeping them fail.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import pytest_twisted

from service.changes import cycle, queries, refresh
from service.changes.cycle import moment_txn
from service.changes.delta import Window
from service.changes.dependencies import Dependencies
from service.changes.log import LogRow
from tests.oracle.oracle import DATABASE, Oracle, run, torture, upheaval
from tests.oracle.queries import Question
from tests.oracle.world import OWNER, READERS

SCHEMA = DATABASE
SEED = 20261129

pytestmark = pytest.mark.timeout(600)

REPROS = [
    # a row without a key left and came back before its watcher was told of either
    Question("people", OWNER, {"distinct": True, "select": ["team"]}),
    # its rows looked gone to the snapshot of a cycle, when the table was truncated meanwhile
    Question("lines", OWNER, {}),
    Question("notes", READERS[0], {"select": ["body", "task", "n"]}),
]
"""Queries whose copies were wrong once; they are watched first."""


@pytest_twisted.ensureDeferred
async def test_copies_of_generated_queries_are_what_find_answers(dsn: str) -> None:
    async def work(oracle: Oracle) -> None:
        await oracle.watch(REPROS, 1)
        await torture(oracle, queries=120, least=20_000)

    report = await run(dsn, SEED, work)
    assert report.wrong == []
    assert report.errors == []
    assert report.comparisons >= 20_000
    assert report.written > 30
    assert report.needless == []


@pytest_twisted.ensureDeferred
async def test_copies_outlast_restarts_ddl_and_changed_rights(dsn: str) -> None:
    async def work(oracle: Oracle) -> None:
        await upheaval(oracle, queries=90)

    report = await run(dsn, SEED, work)
    assert report.wrong == []
    assert report.errors == []
    assert report.comparisons > 1000


@pytest_twisted.ensureDeferred
async def test_copies_of_queries_that_are_read_aside_are_right(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each query whose keys are not told is one that takes long."""
    monkeypatch.setattr(refresh, "HEAVY", 0.0)
    monkeypatch.setattr(refresh, "REST", 0)

    async def work(oracle: Oracle) -> None:
        await torture(oracle, queries=60, least=5000)

    report = await run(dsn, SEED, work)
    assert report.wrong == []
    assert report.errors == []
    assert report.needless == []


def without_old_images(*args: Any) -> tuple[cycle.Moment, list[LogRow] | None]:
    """Read the log as if it had new images alone."""
    moment, rows = moment_txn(*args)
    return moment, rows and [row._replace(old=None) if row.new else row for row in rows]


def read_later(*_: Any, **__: Any) -> str:
    """Begin a transaction each of whose statements sees what has been committed by then."""
    return "BEGIN READ ONLY"


class WithoutPolicies(Dependencies):
    """What a query reads, less what only policies ask."""

    @property
    def relations(self) -> frozenset[int]:
        """Return the oids of the rest."""
        rest = frozenset(scan for scan in self.scans if scan.name != "members")
        return Dependencies(rest, self.opaque).relations


def blind(found: Callable[..., Dependencies]) -> Callable[..., Dependencies]:
    """Return what finds dependencies, less those of policies."""

    def dependencies_txn(*args: Any) -> Dependencies:
        known = found(*args)
        return WithoutPolicies(known.scans, known.opaque)

    return dependencies_txn


def break_late(patch: pytest.MonkeyPatch) -> None:
    """Read rows in a later snapshot than the changes."""
    patch.setattr(cycle, "begin_statement", read_later)
    patch.setattr(refresh, "HEAVY", math.inf)  # there is no snapshot to share


def break_images(patch: pytest.MonkeyPatch) -> None:
    """Look at new images alone."""
    patch.setattr(cycle, "moment_txn", without_old_images)


def break_windows(patch: pytest.MonkeyPatch) -> None:
    """Take the rows that are kept of a window for all that there are; few are, so that it shows soon."""
    patch.setattr(refresh, "LEAST_SPARE", 1)
    patch.setattr(refresh, "MOST_SPARE", 1)
    patch.setattr(Window, "of", classmethod(lambda cls, keys, most: cls(tuple(keys), True)))


def break_policies(patch: pytest.MonkeyPatch) -> None:
    """Forget the tables that only policies ask."""
    patch.setattr(queries, "dependencies_txn", blind(queries.dependencies_txn))


BLAMED: dict[Callable[[pytest.MonkeyPatch], None], Callable[[Question], bool]] = {
    break_windows: lambda each: each.windowed,
    # The policy of teams alone asks another table, and what asks others is read again for those.
    break_policies: lambda each: each.name == "teams" and each.caller.authrole != OWNER.authrole,
}
"""Which queries are wrong by it, now and then; others would only make it take longer."""


@pytest.mark.parametrize("spoil", [break_late, break_images, break_windows, break_policies])
@pytest_twisted.ensureDeferred
async def test_wrong_way_of_keeping_copies_is_found_out(
    dsn: str, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """Or the queries, the writers and the oracle would prove nothing."""
    spoil(monkeypatch)

    async def work(oracle: Oracle) -> None:
        await torture(oracle, queries=120, least=20_000, only=BLAMED.get(spoil, lambda each: True))

    report = await run(dsn, SEED, work)
    assert report.wrong or report.errors
