"""
What a pool may take, and what it has taken.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PoolLimits:
    """
    How much the pool may take.

    Args:
        least: Workers that are there from the start.
        most: Workers at most, each with one connection; one of them is kept from
            transactions that stay open, so that those can never take all.
        acquire_timeout: Seconds a call waits for a free connection.
        connect_wait: Seconds a worker goes on trying to connect.
        max_age: Seconds after which a session is replaced.
        recheck: Seconds between two looks whether the credentials of a session have changed.
    """

    least: int = 1
    most: int = 5
    acquire_timeout: float = 10.0
    connect_wait: float = 5.0
    max_age: float = 1800.0
    recheck: float = 2.0


@dataclass(frozen=True)
class PoolStats:
    """
    Gauges and counters of a pool.

    Args:
        size: Workers, each with a connection once it was used.
        busy: Workers that are taken.
        waiting: Calls that wait for a worker.
        timeouts: Calls that have waited in vain, so far.
        connects: Sessions opened, so far.
    """

    size: int
    busy: int
    waiting: int
    timeouts: int
    connects: int
