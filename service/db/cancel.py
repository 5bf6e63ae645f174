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
from queue import SimpleQueue

import psycopg2
from psycopg2 import _psycopg

from service.db.job import Job


class Canceler:
    """
    Threads that send cancel requests.

    Args:
        threads: How many requests may be on their way at once.
    """

    def __init__(self, threads: int = 2) -> None:
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
        """Let the threads end once they have sent what was asked for."""
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
                    connection.stopped = True
                    request_cancel(connection)


def request_cancel(connection: psycopg2.extensions.connection) -> None:
    """Ask the server to stop what runs on a connection; waits until the server has it."""
    if _LIBPQ is None:
        connection.cancel()
        return
    handle = _LIBPQ.PQgetCancel(connection.pgconn_ptr)
    if handle:
        _LIBPQ.PQcancel(handle, ctypes.create_string_buffer(256), 256)
        _LIBPQ.PQfreeCancel(handle)


def _load() -> ctypes.CDLL | None:
    """Find the libpq that psycopg2 itself is linked to, or None if it does not show it."""
    try:
        libpq = ctypes.CDLL(_psycopg.__file__)
        libpq.PQgetCancel.restype = ctypes.c_void_p
        libpq.PQgetCancel.argtypes = [ctypes.c_void_p]
        libpq.PQcancel.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]
        libpq.PQfreeCancel.argtypes = [ctypes.c_void_p]
    except (OSError, AttributeError):
        return None
    return libpq


_LIBPQ = _load()
