"""
Prepared statements (PREPARE, EXECUTE) of our own: a session plans them once, and then only runs them.

To plan those of the feed and of the refresh cycle takes PostgreSQL two to seven times as long as to
run them, and they run up to some hundred times a second.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import count
from typing import Any

from service.db.connection import PgCursor

GENERIC = "SET LOCAL plan_cache_mode = force_generic_plan;"
"""
Goes before a statement that takes arrays: of those PostgreSQL takes a plan for their values to be
worth making each time.
"""

_NUMBERS = count(1)
"""Of the names of prepared statements; one is never used again."""


class Planned:
    """
    A statement that each session plans once.

    Args:
        text: With parameters by name.
        types: Of its parameters, as PostgreSQL calls them.
    """

    def __init__(self, text: str, **types: str) -> None:
        self.text = text
        places = {name: f"${place}" for place, name in enumerate(types, 1)}
        self._numbered = re.sub(r"%\((\w+)\)s", lambda found: places[found[1]], text)
        self._types = f"({', '.join(types.values())})" if types else ""
        self._given = f"({', '.join(f'%({name})s' for name in types)})" if types else ""

    def run(
        self, cursor: PgCursor, values: Mapping[str, Any] | None = None, before: str = ""
    ) -> None:
        """
        Run it; behind a pooler, where the next transaction has another session, it is planned each time.

        Args:
            cursor: Has the rows then.
            values: Of its parameters, by name.
            before: Statements that travel in front of it, each with its semicolon.
        """
        connection = cursor.connection
        given = values or {}
        if connection.pooled:
            cursor.execute(before + self.text, given, clean=True)
            return
        name = connection.planned.get(self)
        if name is None:
            name = f"rowcast_{next(_NUMBERS)}"
            # Not with EXECUTE, so that it is known to be there when that fails; behind what may end a
            # transaction with the rights of another role.
            prepare = f"{before}PREPARE {name} {self._types} AS {self._numbered}"
            cursor.execute(prepare, clean=True)
            connection.planned[self], before = name, ""
        cursor.execute(f"{before}EXECUTE {name} {self._given}", given, clean=True)
