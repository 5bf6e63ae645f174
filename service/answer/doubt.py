"""
A refusal that may be the catalog's fault: the database may have changed since it was read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from service.errors import InvalidRow, NoSuchProcedure, UnknownName

Suspect = Callable[[], Awaitable[bool]]
"""Has the catalog read again; tells whether it was."""


async def doubting(answer: Callable[[], Awaitable[Any]], suspect: Suspect, name: str) -> Any:
    """
    Answer a call, and once more from a new catalog if it named what the old one does not know.

    Args:
        answer: Answers it.
        suspect: Has the catalog read again, but not too often.
        name: Of the procedure. An import may be one call of an upload, which its refusal ended.
    """
    try:
        return await answer()
    except InvalidRow:
        suspect()  # a column may take more by now, which the next call will find
        raise
    except NoSuchProcedure:
        if not await suspect():
            raise
    except UnknownName:
        if name.endswith(".import") or not await suspect():
            raise
    return await answer()
