"""
Canceling queries on the server.

psycopg2's `connection.cancel` holds the interpreter lock while libpq connects and waits (psycopg2 2.9,
connection_type.c), so a slow network would block the reactor, whichever thread called it. Here libpq is
called through ctypes, which releases the lock.
"""

from __future__ import annotations

import ctypes
import threading
import time
from queue import SimpleQueue

import psycopg2
from psycopg2 import _psycopg

from service.db.connection import GUARD, PgConnection
from service.db.worker import Job


class Canceler:
    """
    Threads that send cancel requests.

    Args:
        threads: Maximum number of requests at a time.
    """

    def __init__(self, threads: int) -> None:
        self._size = threads
        self._threads: list[threading.Thread] = []
        self._queue: SimpleQueue[Job | None] = SimpleQueue()

    def cancel(self, job: Job) -> None:
        """Cancel the query of a running job; a job that has ended meanwhile is left alone."""
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._serve, name="pg-cancel", daemon=True)
                for _ in range(self._size)
            ]
            for thread in self._threads:
                thread.start()
        self._queue.put(job)

    def close(self) -> None:
        """End the threads once they have sent the requests so far."""
        for _ in self._threads:
            self._queue.put(None)
        self._threads = []

    def _serve(self) -> None:
        while (job := self._queue.get()) is not None:
            worker = job.worker
            if worker is None:
                continue
            # Held until the server has the request: the worker cannot begin another job on this
            # connection meanwhile, so no other job can be canceled.
            with worker.lock:
                connection = worker.connection
                if worker.job is job and connection is not None and not connection.closed:
                    connection.stopped = time.monotonic()
                    if not request_cancel(connection):
                        # The request may still arrive, and would cancel another job's query.
                        GUARD.give_up(connection)


def request_cancel(connection: PgConnection) -> bool:
    """
    Send a cancel request for the query that runs on a connection.

    Returns:
        Whether the server has received it, within the connection's `connect_timeout`.
    """
    if _LIBPQ is None:
        # Where libpq's function returns false, psycopg2's raises, which would end the canceler's thread.
        try:
            connection.cancel()
        except psycopg2.Error:
            return False
        return True
    with connection.lock:
        if connection.closed:
            return True
        # libpq copies the server's address, so the connection may be closed from here on.
        handle = ctypes.c_void_p(_LIBPQ.PQcancelCreate(connection.pgconn_ptr))
    try:
        return bool(_LIBPQ.PQcancelBlocking(handle))
    finally:
        _LIBPQ.PQcancelFinish(handle)


def _load() -> ctypes.CDLL | None:
    """Load the libpq that psycopg2 uses; None if its symbols are hidden, or it is older than 17."""
    try:
        # Through psycopg2's own module: another libpq, such as the system's, must not get its pointers.
        libpq = ctypes.CDLL(_psycopg.__file__)
        # Without a restype ctypes takes a result for an int of 32 bits, and truncates the pointer.
        libpq.PQcancelCreate.restype = ctypes.c_void_p
        libpq.PQcancelCreate.argtypes = [ctypes.c_void_p]
        libpq.PQcancelBlocking.argtypes = [ctypes.c_void_p]
        libpq.PQcancelFinish.argtypes = [ctypes.c_void_p]
    except (OSError, AttributeError):
        return None
    return libpq


_LIBPQ = _load()
