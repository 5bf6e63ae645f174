"""
A child is started again at a pace that depends on how long it lived; its log stays small.
"""

from __future__ import annotations

import threading
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.error import ProcessDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from service.embedded import crossbar as router
from service.embedded.crossbar import Crossbar
from service.embedded.supervisor import FIRST_PAUSE, MAX_LOG, STEADY, NotReady, Supervised
from service.settings import Settings
from tests.deferreds import result_of


class Processes(Clock):
    """A clock that records the processes to start."""

    def __init__(self) -> None:
        super().__init__()
        self.children: list[Any] = []
        self.starts: list[float] = []

    def spawnProcess(self, child: Any, *command: Any, **options: Any) -> Any:
        """Keep the child."""
        self.children.append(child)
        self.starts.append(self.seconds())
        return SimpleNamespace(pid=len(self.starts), signalProcess=lambda name: self.end())

    def end(self) -> None:
        """End the child."""
        self.children.pop().processEnded(Failure(ProcessDone(0)))


class Child(Supervised):
    """A child that is ready at once."""

    async def prepare(self) -> list[str]:
        """Return a program."""
        return ["child"]

    async def ready(self, pid: int) -> bool:
        """Return True."""
        return True

    def shutdown_signal(self) -> str:
        """Return a signal."""
        return "TERM"


@pytest.fixture
def reactor() -> Processes:
    return Processes()


@pytest.fixture
def child(reactor: Processes, tmp_path: Path) -> Child:
    return Child(reactor, "the child", tmp_path / "child.log")


def test_pauses_between_starts_grow_and_are_reset(reactor: Processes, child: Child) -> None:
    """One that ends at once waits longer each time; one that lived for a while does not."""
    child.startService()
    for pause in (FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE):
        reactor.end()
        reactor.advance(pause)
    assert reactor.starts == pytest.approx([0, 0.1, 0.3, 0.7])
    reactor.advance(STEADY)
    reactor.end()
    reactor.advance(FIRST_PAUSE)
    assert reactor.starts[-1] == pytest.approx(0.7 + STEADY + FIRST_PAUSE)
    stopped = child.stopService()
    assert stopped is not None
    assert stopped.called


def test_large_log_is_rotated(reactor: Processes, child: Child) -> None:
    """The previous log is kept."""
    child.log.write_bytes(b"x" * MAX_LOG)
    child.startService()
    assert child.log.stat().st_size == MAX_LOG
    child.log.write_bytes(b"x" * MAX_LOG + b"!")
    reactor.end()
    reactor.advance(FIRST_PAUSE)
    assert child.log.stat().st_size == 0
    assert child.log.with_name("child.log.1").stat().st_size == MAX_LOG + 1


def test_child_whose_files_cannot_be_used_is_refused(reactor: Processes, child: Child) -> None:
    """As after `twistd --uid`, if the files are those of another user."""
    child.log.mkdir()
    child.startService()
    with pytest.raises(NotReady, match=f"^the child cannot use {child.log} as user "):
        result_of(child.started())


def test_last_line_of_a_long_log_is_read_without_the_rest(child: Child) -> None:
    assert child.last_output_line() == "it said nothing"
    child.log.write_bytes(b"said long ago\n" * 1_000_000 + b"the reason \xff\n\n")
    tracemalloc.start()
    assert child.last_output_line() == "the reason \ufffd"
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_process_that_has_the_port_is_found_in_a_thread(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The search through the processes of the machine does not block the reactor."""
    seen: list[int] = []
    pool = ThreadPool(1, 1)
    reactor: Any = Processes()
    reactor.getThreadPool = lambda: pool
    reactor.callFromThread = lambda *call: None

    def look(settings: Settings) -> str:
        seen.append(threading.get_ident())
        return "taken"

    monkeypatch.setattr(router, "obstacle", look)
    pool.start()
    Crossbar(reactor, Settings(state=tmp_path)).startService()
    pool.stop()
    assert len(seen) == 1
    assert seen != [threading.get_ident()]
