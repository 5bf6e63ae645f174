"""
Readers as processes: started, killed, stopped; and what they have written down.
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
    """A change as a reader has published it."""

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
        """Its position."""
        return self.epoch, self.tick, self.index

    @property
    def content(self) -> tuple[Any, ...]:
        """What has to be the same whenever it is published."""
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
        dsn: Of the database.
        path: Of the file with what they publish.
        options: Of their feeds.
    """

    def __init__(self, dsn: str, path: Path, **options: Any) -> None:
        self.dsn = dsn
        self.path = path
        self._options = json.dumps(options)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        path.touch()

    def start(self, name: str) -> None:
        """Start one."""
        command = [sys.executable, "-m", "tests.db.reader", name, self.dsn, str(self.path)]
        with Path(f"{self.path}.{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [*command, self._options],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self, name: str) -> None:
        """Kill one."""
        self._processes[name].kill()
        self._processes[name].wait()

    def stand_still(self, name: str) -> None:
        """Have one do nothing, its connections open."""
        os.kill(self._processes[name].pid, signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        """Have one go on."""
        os.kill(self._processes[name].pid, signal.SIGCONT)

    def end(self) -> None:
        """End all."""
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()

    def lines(self) -> list[Line]:
        """Return what was published, in the order in which it was."""
        found = []
        for text in self.path.read_text().split("\n"):
            with suppress(ValueError):  # of a reader that was killed at it
                if text:
                    found.append(Line(*json.loads(text)))
        return found

    def wait_for_other(self, began: float, name: str) -> None:
        """Wait until one publishes after a time, and not the one of a name."""
        wait_until(lambda: self.last.at > began + 0.01 and self.last.name != name, 60)

    @property
    def last(self) -> Line:
        """The newest."""
        return self.lines()[-1]


@contextmanager
def readers(dsn: str, path: Path, *names: str, **options: Any) -> Iterator[Readers]:
    """Run some readers, until the body ends."""
    made = Readers(dsn, path, **options)
    try:
        for name in names:
            made.start(name)
        yield made
    finally:
        made.end()


def delivered(lines: list[Line]) -> list[Line]:
    """Return what a client has that drops what is not beyond what it had; check the rest."""
    kept: list[Line] = []
    content: dict[tuple[int, int, int], tuple[Any, ...]] = {}
    for line in lines:
        known = content.setdefault(line.place, line.content)
        assert known == line.content, f"another change at {line.place}"
        if not kept or line.place > kept[-1].place:
            kept.append(line)
    assert {line.place for line in kept} == content.keys(), "one came after a later one"
    return kept
