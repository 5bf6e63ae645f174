"""
The distribution of tests over xdist workers (`pytest -n auto`, which `make test` runs).

The tests of a file run in one worker, because they share a database and a service. The longest
groups start first; otherwise one of them would still run when all others are done.
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
    "tests/wamp/test_start.py::test_running_service",
    "tests/wamp/test_start.py",
    "tests/test_docs.py",
    "tests/wamp/test_command.py",
    "tests/db/test_unannounced.py",
    "tests/db/test_catchup.py",
    "tests/db/test_kept_rows.py",
    "tests/db/test_migrating.py",
    "tests/db/test_stubs.py",
    "tests/db/test_described_relationships.py",
    "tests/db/test_capture_torture.py",
    "tests/db/test_nested.py",
    "tests/db/test_stalling.py::test_worker_of_a_silent_server",
    "tests/db/test_stalling.py",
    "tests/wamp/test_stopped_server.py",
    "tests/wamp/test_node.py",
    "tests/db/test_migrations_page.py",
    "tests/db/test_failover.py",
    "tests/test_install.py",
    "tests/db/test_computing.py",
    "tests/db/test_capture_tracking.py",
    "tests/db/test_shadowing.py",
    "tests/db/test_embedded.py",
    "tests/db/test_laws.py",
)
"""Prefixes of test ids, longest run time first. The tests that a prefix matches form one group."""


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LongestFirst:
    """Return the scheduler."""
    config.option.loadscopereorder = (
        False  # it sorts by number of tests: a file of one long test runs last
    )
    return LongestFirst(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests into the order of `FIRST`."""
    items.sort(key=lambda item: _order(item.nodeid))


class LongestFirst(LoadScopeScheduling):
    """A scheduler that assigns groups (files, or prefixes in `FIRST`) in the order of the tests."""

    def remove_node(self, node: WorkerController) -> str | None:
        """Reassign the unfinished groups of a crashed worker, without those that it has completed."""
        work = self.assigned_work[node]
        self.assigned_work[node] = {
            group: tests for group, tests in work.items() if not all(tests.values())
        }
        return super().remove_node(node)

    def schedule(self) -> None:
        """
        Assign groups; assign a second one to a worker that replaces a crashed one.

        A worker starts a test only when it knows the next one, so with a single test it would wait
        for ever.
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
