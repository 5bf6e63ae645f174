"""
The CPU time of processes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path


def spent(pids: Iterable[int]) -> float:
    """Return the CPU seconds of this process and of others together."""
    return time.process_time() + sum(map(of_process, pids))


def of_process(pid: int) -> float:
    """Return the CPU seconds of a process: to the nanosecond if it has one thread, else to a clock tick."""
    try:
        if len(list(Path(f"/proc/{pid}/task").iterdir())) == 1:
            return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
        # `stat` includes threads that have ended; `schedstat` covers only one thread.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # the process has ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
