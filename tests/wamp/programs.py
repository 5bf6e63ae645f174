"""
Programs that tests run in separate processes, and the children of these.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from schema.child import bound_to_parent
from tests.conftest import wait_until

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell that runs the tests in the background sets SIGINT to be ignored, and programs inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    # so does nohup with SIGHUP; a handler that does nothing is not inherited
    signal.signal(signal.SIGHUP, lambda number, frame: None)


class Program:
    """
    A running program.

    Args:
        environ: Environment variables, in addition to a minimal environment.
        arguments: The program and its arguments.
    """

    def __init__(self, environ: dict[str, str], *arguments: str) -> None:
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed by close)
        # A crashed test process could not end the program and its children.
        command = [str(shutil.which(arguments[0])), *arguments[1:]]
        self._child = subprocess.Popen(
            bound_to_parent(command, signal.SIGTERM),
            env={**environ, "PYTHONFAULTHANDLER": "1"},
            cwd=environ["HOME"],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
        )
        self.pid = self._child.pid

    @property
    def output(self) -> str:
        """All that it has printed."""
        self._output.seek(0)
        return self._output.read()

    def says(self, words: str) -> None:
        """Wait until its output contains a text."""
        wait_until(lambda: words in self.output or not self.running(), 120, lambda: self.output)
        assert words in self.output, self.output

    def running(self) -> bool:
        """Whether it has not ended."""
        return self._child.poll() is None

    def ends(self, number: int | None = None, within: float = 120) -> int:
        """Send a signal, if one is given, and wait for the end; return the exit status."""
        if number is not None:
            self._child.send_signal(number)
        try:
            return self._child.wait(within)
        except subprocess.TimeoutExpired:
            self._child.send_signal(signal.SIGABRT)  # faulthandler prints where it is blocked
            self._child.wait()
            raise AssertionError(f"does not end:\n{self.output}") from None

    def close(self) -> None:
        """Kill the program if it still runs."""
        if self.running():
            self._child.kill()
            self._child.wait()
        self._output.close()


@contextmanager
def program(environ: dict[str, str], *arguments: str) -> Iterator[Program]:
    """Run a program for the length of the body."""
    started = Program(environ, *arguments)
    try:
        yield started
    finally:
        started.close()


def tool(name: str) -> str:
    """Return the path of a program of this virtual environment."""
    return str(Path(sys.executable).with_name(name))


def parts(service: Program) -> list[psutil.Process]:
    """Return the descendants of a service's process."""
    return psutil.Process(service.pid).children(recursive=True)


def gone(processes: list[psutil.Process], within: float = 8.0) -> None:
    """Wait until processes have ended."""

    def left() -> list[psutil.Process]:
        return [process for process in processes if alive(process)]

    wait_until(lambda: not left(), within, lambda: str(left()))


def alive(process: psutil.Process) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def port_open(port: str) -> bool:
    """Return whether a process listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(port))) == 0
