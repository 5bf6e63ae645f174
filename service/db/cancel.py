"""
Stopping queries on the server.

psycopg2's own `connection.cancel` keeps the interpreter lock while libpq connects and waits
(psycopg2 2.9, connection_type.c), so a slow network would stop the reactor as well, from
whatever thread it is called. The same libpq is called here through ctypes, which lets go of
the lock.
"""

from __future__ import annotations

import ctypes
import threading
import time
from queue import SimpleQueue

import psycopg2
from psycopg2 import _psycopg

from service.db.connection import PgConnection
from service.db.guard import GUARD
from service.db.worker import Job


class Canceler:
    """
    Threads that send cancel requests.

    Args:
        threads: How many requests may be on their way at once.
    """

    def __init__(self, threads: int) -> None:
        self._size = threads
        self._threads: list[threading.Thread] = []
        self._queue: SimpleQueue[Job | None] = SimpleQueue()

    def cancel(self, job: Job) -> None:
        """Stop a job that runs; one that has ended meanwhile is left alone."""
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._serve, name="pg-cancel", daemon=True)
                for _ in range(self._size)
            ]
            for thread in self._threads:
                thread.start()
        self._queue.put(job)

    def close(self) -> None:
        """Stop the threads once they have sent what was asked for."""
        for _ in self._threads:
            self._queue.put(None)
        self._threads = []

    def _serve(self) -> None:
        while (job := self._queue.get()) is not None:
            worker = job.worker
            if worker is None:
                continue
            # Held until the server has the request: the worker cannot start another
            # job on this connection meanwhile, so no other job can be hit.
            with worker.lock:
                connection = worker.connection
                if worker.job is job and connection is not None and not connection.closed:
                    connection.stopped = time.monotonic()
                    if not request_cancel(connection):
                        GUARD.give_up(connection)  # it may come yet, and hit another job


def request_cancel(connection: PgConnection) -> bool:
    """
    Ask the server to stop what runs on a connection.

    Returns:
        Whether the server has it; within the `connect_timeout` of the connection.
    """
    if _LIBPQ is None:
        try:
            connection.cancel()
        except psycopg2.Error:
            return False
        return True
    with connection.lock:
        if connection.closed:
            return True
        # A copy of the address: from here on the connection may be closed meanwhile.
        handle = ctypes.c_void_p(_LIBPQ.PQcancelCreate(connection.pgconn_ptr))
    try:
        return bool(_LIBPQ.PQcancelBlocking(handle))
    finally:
        _LIBPQ.PQcancelFinish(handle)


def _load() -> ctypes.CDLL | None:
    """Find the libpq of psycopg2 itself; None if it does not show it, or is older than 17."""
    try:
        # By psycopg2's own module: another libpq, as the system's, must not be given its pointers.
        libpq = ctypes.CDLL(_psycopg.__file__)
        # ctypes takes what is returned for an int of 32 bits, and would cut the pointer short.
        libpq.PQcancelCreate.restype = ctypes.c_void_p
        libpq.PQcancelCreate.argtypes = [ctypes.c_void_p]
        libpq.PQcancelBlocking.argtypes = [ctypes.c_void_p]
        libpq.PQcancelFinish.argtypes = [ctypes.c_void_p]
    except (OSError, AttributeError):
        return None
    return libpq


_LIBPQ = _load()
