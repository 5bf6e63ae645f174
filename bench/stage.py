"""
The processes that benchmarks measure: PostgreSQL, a router and the service (`bench/served.py`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cpu import of_process
from schema.database_url import Place
from service.embedded.crossbar import node, node_command
from tests.conftest import ROOT, execute, free_port

ROUTER = ROOT / "router"
SMALL = """
CREATE TABLE small AS SELECT i AS id, now() AS at, 'row ' || i AS name
    FROM generate_series(0, 9999) i;
ALTER TABLE small ADD PRIMARY KEY (id);
"""
"""The table that other callers read meanwhile."""
CONNECTIONS = "SELECT pid FROM pg_stat_activity WHERE application_name <> 'bench'"
"""The backends of the services; the programs of a benchmark connect with application_name 'bench'."""


@dataclass(frozen=True)
class Stage:
    """
    The running processes.

    Args:
        url: URL for callers over RawSocket.
        websocket: URL for callers over WebSocket.
        private: URL for the service.
        service: Process id of the service.
        router: Process id of the router's worker.
        dsn: DSN of the database.
        others: Process ids of further services.
        proxies: Process ids of the node's proxy workers.
    """

    url: str
    websocket: str
    private: str
    service: int
    router: int
    dsn: str
    others: Sequence[int] = ()
    proxies: Sequence[int] = ()


@contextmanager
def staged(
    crossbar: str,
    schema: str,
    probed: bool = True,
    code: Path = ROOT,
    services: int = 1,
    arrange: Callable[[dict[str, Any], Path], None] = lambda config, home: None,
    **settings: str,
) -> Iterator[Stage]:
    """
    Run a stage on a fresh database for the length of the body.

    Args:
        crossbar: Path of the Crossbar executable.
        schema: SQL that creates the database's contents.
        probed: Whether the service measures its loop lag, which takes some CPU.
        code: Checkout of the service.
        services: Number of services.
        arrange: Changes the node's configuration in place; receives the directory of the node, too.
        settings: Additional settings of the services.
    """
    home = Path(tempfile.mkdtemp(prefix="rowcast-bench-"))
    port, socket = free_port(), home / "service.sock"
    config = node("realm1", "rowcast", port, socket, code=str(code / "router"))
    arrange(config, home)
    (home / "config.json").write_text(json.dumps(config))
    with (
        Place(state=home / "pg").running() as dsn,
        (home / "log").open("wb") as log,
        ExitStack() as stack,
    ):
        execute(dsn, SMALL + schema)
        router = subprocess.Popen(
            node_command(crossbar, home), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        stack.callback(_end, router)
        while not socket.exists():
            time.sleep(0.1)
        time.sleep(1)
        private = f"unix:{socket}"
        me = [sys.executable, "-m", "bench.served", dsn, private, *(["probed"] if probed else [])]
        env = os.environ | {f"ROWCAST_{name.upper()}": it for name, it in settings.items()}
        served = []
        for _ in range(services):
            service = subprocess.Popen(me, stdout=subprocess.PIPE, text=True, env=env, cwd=code)
            stack.callback(_end, service)
            assert service.stdout is not None
            service.stdout.readline()
            served.append(service.pid)
        worker, *proxies = workers_of(router.pid)
        public = f"rs://127.0.0.1:{port}", f"ws://127.0.0.1:{port}/ws"
        yield Stage(*public, private, served[0], worker, dsn, served[1:], proxies)
    shutil.rmtree(home, ignore_errors=True)


def _end(child: subprocess.Popen[Any]) -> None:
    child.terminate()
    child.wait()


def workers_of(controller: int) -> list[int]:
    """Return the process ids of a node's workers, in the order of its configuration."""
    children = Path(f"/proc/{controller}/task/{controller}/children").read_text()
    return [int(pid) for pid in children.split()]


@contextmanager
def spent(stage: Stage) -> Iterator[list[float]]:
    """Yield a list that at the end has the CPU seconds of the service, the router and the backends."""
    cost: list[float] = []

    def now() -> tuple[float, float, dict[int, float]]:
        pids = [pid for (pid,) in execute(stage.dsn, CONNECTIONS) if isinstance(pid, int)]
        return (
            of_process(stage.service),
            of_process(stage.router),
            {pid: of_process(pid) for pid in pids},
        )

    before = now()
    yield cost
    after = now()
    backend = sum(after[2][pid] - before[2][pid] for pid in after[2].keys() & before[2].keys())
    cost += [after[0] - before[0], after[1] - before[1], backend]


def memory(pid: int) -> float:
    """Return the resident memory of a process in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Peaks(threading.Thread):
    """A thread that samples the memory of processes during a `with` statement."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        super().__init__(daemon=True)
        self.pids = pids
        self.before = {name: memory(pid) for name, pid in pids.items()}
        self.most = dict(self.before)
        self._over = threading.Event()

    def __enter__(self) -> Peaks:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        """Sample twenty times per second."""
        while not self._over.wait(0.05):
            with suppress(OSError):
                for name, pid in self.pids.items():
                    self.most[name] = max(self.most[name], memory(pid))

    def words(self) -> str:
        """Return the memory gained as text."""
        return ", ".join(
            f"{name} {self.before[name]:.0f} MB +{self.most[name] - self.before[name]:.0f}"
            for name in self.pids
        )


def quantiles(taken: Sequence[float]) -> str:
    """Return quantiles of latencies in seconds as text."""
    ordered = sorted(taken)
    parts = (
        f"p{part * 100:g} {ordered[int(part * (len(ordered) - 1))] * 1000:.1f} ms"
        for part in (0.5, 0.99, 1)
    )
    return f"{' '.join(parts)} of {len(ordered)}"
