"""
How the tests are shared out among worker processes: `pytest -n auto`, as `make test` does.

A file stays whole, since its tests share a database and a service. What takes longest begins
first, or it would still run when all else is done.
"""

from __future__ import annotations

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

FIRST = (
    "tests/faults/test_faults.py",
    "tests/oracle/test_oracle.py::test_copies_of",
    "tests/oracle/test_oracle.py",
    "tests/wamp/test_fuzz.py",
    "tests/db/test_roles.py",
    "tests/wamp/test_start.py::test_twistd",
    "tests/wamp/test_start.py::test_standing",
    "tests/wamp/test_start.py",
    "tests/db/test_stalling.py::test_silent_server",
    "tests/db/test_stalling.py",
    "tests/wamp/test_stopped_server.py",
    "tests/db/test_shadowing.py",
    "tests/db/test_migrations_page.py",
    "tests/wamp/test_node.py",
    "tests/db/test_described_ways.py",
    "tests/db/test_migrating.py",
    "tests/db/test_capture_tracking.py",
    "tests/db/test_capture_torture.py",
    "tests/db/test_remembering.py",
    "tests/db/test_unannounced.py",
    "tests/db/test_names_hidden.py",
    "tests/db/test_calling.py",
    "tests/wamp/test_command.py",
    "tests/db/test_embedded.py",
    "tests/db/test_laws.py",
    "tests/test_install.py",
    "tests/db/test_stubs.py",
    "tests/test_docs.py",
)
"""Beginnings of the ids of tests, by how long they take; each names a group of its own."""


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LongestFirst:
    """Return what hands out the tests."""
    config.option.loadscopereorder = False  # which would put files of one long test last
    return LongestFirst(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests as they are to be handed out."""
    items.sort(key=lambda item: _order(item.nodeid))


class LongestFirst(LoadScopeScheduling):
    """Hands out whole files, but for what `FIRST` has apart, in the order of the tests."""

    def remove_node(self, node: WorkerController) -> str | None:
        """Take back what is left of the tests of a process that died, and not those that it has run."""
        work = self.assigned_work[node]
        self.assigned_work[node] = {
            group: tests for group, tests in work.items() if not all(tests.values())
        }
        return super().remove_node(node)

    def schedule(self) -> None:
        """
        Hand out tests, twice for a process that comes late, in place of one that died.

        A process begins a test when it knows what follows it: with one alone it would wait for
        ever.
        """
        super().schedule()
        for node in self.nodes:
            self._reschedule(node)

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid)


def _group(nodeid: str) -> str:
    return next((each for each in FIRST if nodeid.startswith(each)), nodeid.partition("::")[0])


def _order(nodeid: str) -> int:
    group = _group(nodeid)
    return FIRST.index(group) if group in FIRST else len(FIRST)
