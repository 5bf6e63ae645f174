"""
A refusal that may be the catalog's fault: the database may have changed since it was read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from service.db.errors import STALE
from service.errors import (
    DatabaseRefused,
    InvalidArgument,
    InvalidRow,
    NoSuchProcedure,
    NotAuthorized,
    ServiceError,
    Unavailable,
)

Suspect = Callable[[], Awaitable[bool]]
"""Has the catalog read again if it has changed; tells whether it is up to date then."""

RETRY_AFTER = 1.0
"""Seconds after which a caller may try again who was refused by a catalog that may be old."""

_DOUBTFUL = (InvalidArgument, NoSuchProcedure, NotAuthorized, InvalidRow, DatabaseRefused)


def doubtful(error: ServiceError) -> bool:
    """Return whether the same call might be answered from another catalog."""
    if isinstance(error, Unavailable):
        return error.details.get("sqlstate") in STALE
    return isinstance(error, _DOUBTFUL)
