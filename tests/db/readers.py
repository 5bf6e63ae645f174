"""
Feeds in separate processes that are started, killed and suspended, and the lines that they write.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import ROOT, wait_until


@dataclass(frozen=True)
class Line:
    """A change that a reader has published."""

    name: str
    at: float
    epoch: int
    tick: int
    index: int
    relation: int
    op: str
    key: Any
    old: Any
    new: Any
    xid: str
    last: bool

    @property
    def place(self) -> tuple[int, int, int]:
        """The position of the change."""
        return self.epoch, self.tick, self.index

    @property
    def content(self) -> tuple[Any, ...]:
        """The part that must be the same each time the change is published."""
        return (
            self.relation,
            self.op,
            str(self.key),
            str(self.old),
            str(self.new),
            self.xid,
            self.last,
        )


class Readers:
    """
    Several readers of one database.

    Args:
        dsn: DSN of the database.
        path: Path of the file to which they write.
        options: Settings of their feeds.
    """

    def __init__(self, dsn: str, path: Path, **options: Any) -> None:
        self.dsn = dsn
        self.path = path
        self._options = json.dumps(options)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        path.touch()

    def start(self, name: str) -> None:
        """Start a reader."""
        command = [sys.executable, "-m", "tests.db.reader_process", name, self.dsn, str(self.path)]
        with Path(f"{self.path}.{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [*command, self._options],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self, name: str) -> None:
        """Kill a reader."""
        self._processes[name].kill()
        self._processes[name].wait()

    def suspend(self, name: str) -> None:
        """Suspend a reader; its connections stay open."""
        os.kill(self._processes[name].pid, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Resume a suspended reader."""
        os.kill(self._processes[name].pid, signal.SIGCONT)

    def end(self) -> None:
        """Kill all readers."""
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()

    def lines(self) -> list[Line]:
        """Return the published changes, in order of publication."""
        found = []
        for text in self.path.read_text().split("\n"):
            with suppress(ValueError):  # an incomplete line of a killed reader
                if text:
                    found.append(Line(*json.loads(text)))
        return found

    def wait_for_other(self, began: float, name: str) -> None:
        """Wait until a reader other than `name` publishes, after the time `began`."""
        wait_until(lambda: self.last.at > began + 0.01 and self.last.name != name, 60)

    @property
    def last(self) -> Line:
        """Return the newest line."""
        return self.lines()[-1]


@contextmanager
def readers(dsn: str, path: Path, *names: str, **options: Any) -> Iterator[Readers]:
    """Run readers for the length of the body."""
    made = Readers(dsn, path, **options)
    try:
        for name in names:
            made.start(name)
        yield made
    finally:
        made.end()


def delivered(lines: list[Line]) -> list[Line]:
    """Return the lines kept by a client that drops repeated positions; check the dropped lines."""
    kept: list[Line] = []
    content: dict[tuple[int, int, int], tuple[Any, ...]] = {}
    for line in lines:
        known = content.setdefault(line.place, line.content)
        assert known == line.content, f"another change at {line.place}"
        if not kept or line.place > kept[-1].place:
            kept.append(line)
    assert {line.place for line in kept} == content.keys(), "a change came after a later one"
    return kept
