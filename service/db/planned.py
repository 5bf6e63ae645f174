"""
Prepared statements (PREPARE, EXECUTE): a session plans them once, and then only runs them.

To plan those of the feed and of the refresh cycle takes PostgreSQL two to seven times as long as to
run them, and they run up to some hundred times a second. The statements of calls that go by a whole key,
or write new rows, take it two to three times as long.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from itertools import count
from typing import Any

import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_IDLE

from service.db.connection import PgConnection, PgCursor
from service.sql.statement import LARGE, Statement

GENERIC = "SET LOCAL plan_cache_mode = force_generic_plan;"
"""
Goes before a statement that takes arrays: of those PostgreSQL takes a plan for their values to be
worth making each time.
"""

MET = ""
"""In place of a name, where a session has met a statement once."""
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

    def again(self, connection: PgConnection) -> str | None:
        """
        Return the name of the statement in a session, once that has met it twice; else None.

        For what travels in front of others, in sessions in which code of others may run at any time: after
        that all names are forgotten, and to plan for a single use is in vain.
        """
        if connection.pooled:
            return None
        name = connection.planned.get(self)
        if name == MET:
            name = f"rowcast_{next(_NUMBERS)}"
            connection.command(f"PREPARE {name} {self._types} AS {self._numbered}")
            connection.planned[self] = name
        elif name is None:
            connection.planned[self] = MET
        return name or None

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
        execute = f"{before}EXECUTE {name} {self._given}"
        cursor.execute(execute, given, clean=True, runs=self.text)


RUNS = 3
"""How often a statement of calls runs in a session before that plans it."""
KEPT = 64
"""Statements of calls that one session keeps: some 50 kB of the server's memory each."""
_AGAIN = frozenset(["0A", "22", "26", "42"])
"""
Classes of errors after which a statement is run once more as it is.

The first and the last are those of a plan that is out of date, the third of one that is gone; the second
are those of values, of which the text of the statement tells which one it is.
"""


def run_settled(
    cursor: PgCursor, role: Hashable, statement: Statement, parameters: Sequence[Any]
) -> bool:
    """
    Run a settled statement as one that the session has planned, if it stands alone and runs often.

    In a transaction it does not: an error there would be the end of it, and could not be tried again.

    Args:
        cursor: Has the rows then.
        role: Equal for callers who may look up the same names: PostgreSQL asks that as it plans.
        statement: Settled, and sure to leave nothing behind in the session.
        parameters: Of the statement.

    Returns:
        Whether it did; otherwise nothing has happened, and the statement is to be run as it is.
    """
    connection = cursor.connection
    if not connection.alone or connection.get_transaction_status() != TRANSACTION_STATUS_IDLE:
        return False
    key, names, runs = (role, statement.text), connection.settled, connection.runs
    name = names.pop(key, None)
    if name is None:
        if len(runs) >= 4 * KEPT:  # of statements that run seldom, most of them
            runs.clear()
        runs[key] = runs.get(key, 0) + 1
        if runs[key] <= RUNS:
            return False
        name = _prepare(cursor, statement)
    names[key] = name
    if not name:
        return False
    given = f"({', '.join(['%s'] * len(parameters))})" if parameters else ""
    try:
        cursor.execute(f"EXECUTE {name} {given}", parameters, clean=True, runs=statement.text)
    except psycopg2.Error as error:
        # That a row is large is what the text would say, too, once it had written it again.
        if error.pgcode is None or error.pgcode[:2] not in _AGAIN or LARGE in str(error):
            raise
        return False
    return True


def _prepare(cursor: PgCursor, statement: Statement) -> str:
    """Return the name of a statement that the session plans now, "" where that is refused."""
    connection, places = cursor.connection, count(1)
    names, identity, counted = connection.settled, connection.opening, connection.counted
    text = re.sub(
        "%(.)", lambda found: f"${next(places)}" if found[1] == "s" else "%", statement.text
    )
    oldest = names.pop(next(iter(names))) if len(names) >= KEPT else ""
    name = f"rowcast_{next(_NUMBERS)}"
    words = f"{f'DEALLOCATE {oldest};' if oldest else ''}PREPARE {name} AS {text}"
    # Not in one message with who calls: all of it stands in pg_prepared_statements then, where a function
    # that runs for somebody else can read it.
    if identity is not None:
        connection.command("BEGIN")
    try:
        cursor.execute(words, clean=True)
    except psycopg2.OperationalError:  # it was stopped, or the connection is lost
        raise
    except psycopg2.Error:
        name = ""
    if identity is not None:
        connection.command("COMMIT")  # which ends one that has failed, too
        connection.opening, connection.counted = identity, counted
    return name
