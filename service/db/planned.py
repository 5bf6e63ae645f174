"""
Prepared statements (PREPARE, EXECUTE), which a session plans once and then only runs.

PostgreSQL needs two to seven times as long to plan the statements of the feed and of the refresh cycle
as to run them, and they run up to some hundred times a second. Calls that go by a whole key, or insert
rows, need two to three times as long to plan.
"""

from __future__ import annotations

import re
import time
from collections.abc import Hashable, Mapping, Sequence
from itertools import count
from typing import Any

import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_IDLE

from service.db.connection import PgConnection, PgCursor
from service.sql.statement import LARGE, Statement

GENERIC = "SET LOCAL plan_cache_mode = force_generic_plan;"
"""
Sent in front of a statement with array parameters, for which PostgreSQL would choose a custom plan each time.
"""

MET = ""
"""In place of a name: the session has run the statement once, unprepared."""
_NUMBERS = count(1)
"""Numbers for the names of prepared statements, none of which is used twice."""


class PreparedStatement:
    """
    A statement of the service's own, which each session prepares once.

    Args:
        text: The statement, with parameters by name.
        types: PostgreSQL types of the parameters by name, in order.
    """

    def __init__(self, text: str, **types: str) -> None:
        self.text = text
        places = {name: f"${place}" for place, name in enumerate(types, 1)}
        self._numbered = re.sub(r"%\((\w+)\)s", lambda found: places[found[1]], text)
        self._types = f"({', '.join(types.values())})" if types else ""
        self._given = f"({', '.join(f'%({name})s' for name in types)})" if types else ""

    def again(self, connection: PgConnection) -> str | None:
        """
        Return the statement's name in a session from its second use on; None at its first.

        For statements that travel in front of calls' statements: many of these make the session forget
        its prepared statements, so preparing at the first use would often be wasted.
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
        Run the statement; behind a pooler, where sessions change with each transaction, unprepared.

        Args:
            cursor: Cursor to run it with, which has its rows afterwards.
            values: Values of the parameters by name.
            before: Statements to send in front of it, each with its semicolon.
        """
        connection = cursor.connection
        given = values or {}
        if connection.pooled:
            cursor.execute(before + self.text, given, clean=True)
            return
        name = connection.planned.get(self)
        if name is None:
            name = f"rowcast_{next(_NUMBERS)}"
            # In another message than EXECUTE, so that it exists if that fails; after `before`, which may
            # end a transaction that another role's identity is set in.
            prepare = f"{before}PREPARE {name} {self._types} AS {self._numbered}"
            cursor.execute(prepare, clean=True)
            connection.planned[self], before = name, ""
        execute = f"{before}EXECUTE {name} {self._given}"
        cursor.execute(execute, given, clean=True, runs=self.text)


RUNS = 3
"""How often a session runs a call's statement unprepared before it prepares it."""
KEPT = 64
"""Maximum number of calls' statements prepared in a session; each takes some 50 kB on the server."""
_AGAIN = frozenset(["0A", "22", "26", "42"])
"""
SQLSTATE classes after which a statement runs again unprepared.

0A and 42 are errors of an outdated plan, 26 of a deallocated one. 22 is an invalid value: the error of
the unprepared statement has the position by which the value is found.
"""


WAITED = 0.02
"""
Seconds from which a prepared read may have waited for a lock, and runs again unprepared.

EXECUTE of a SELECT takes its snapshot before it waits for the lock on a table, a SELECT afterwards. If an
ALTER TABLE has rewritten the table meanwhile, it is empty to the earlier snapshot (PostgreSQL's manual,
"Caveats" of concurrency control).
"""


def run_settled(
    cursor: PgCursor, role: Hashable, statement: Statement, parameters: Sequence[Any]
) -> bool:
    """
    Run a settled statement as a prepared one, if it runs often and outside a transaction.

    In a transaction an error would abort the transaction, and the statement could not run again unprepared.

    Args:
        cursor: Cursor to run it with, which has its rows afterwards.
        role: Equal for callers with the same privileges on schemas, which PostgreSQL checks at PREPARE.
        statement: A settled statement that leaves no state in the session.
        parameters: Parameters of the statement.

    Returns:
        Whether its result is valid; if not, nothing was written, and the statement is to be run unprepared.
    """
    name = plan_settled(cursor, role, statement.text)
    if not name:
        return False
    given = f"({', '.join(['%s'] * len(parameters))})" if parameters else ""
    began = time.monotonic()
    try:
        cursor.execute(f"EXECUTE {name} {given}", parameters, clean=True, runs=statement.text)
    except psycopg2.Error as error:
        # `LARGE` is no invalid value: the unprepared statement would write the row again, and fail too.
        if error.pgcode is None or error.pgcode[:2] not in _AGAIN or LARGE in str(error):
            raise
        return False
    return statement.writes or time.monotonic() - began < WAITED


def plan_settled(cursor: PgCursor, role: Hashable, text: str) -> str:
    """
    Return the name of the prepared statement for a settled text; prepare it once the text runs often.

    Args:
        cursor: A cursor of the session.
        role: As that of `run_settled`.
        text: The statement, with `%s` for each parameter.

    Returns:
        The name; "" if the text is to run as it is: in a transaction, before it runs often, or if
        PostgreSQL does not prepare it.
    """
    connection = cursor.connection
    if not connection.alone or connection.get_transaction_status() != TRANSACTION_STATUS_IDLE:
        return ""
    key, names, runs = (role, text), connection.settled, connection.runs
    name = names.pop(key, None)
    if name is None:
        if len(runs) >= 4 * KEPT:  # most of these statements run seldom
            runs.clear()
        runs[key] = runs.get(key, 0) + 1
        if runs[key] <= RUNS:
            return ""
        name = _prepare(cursor, text)
    names[key] = name
    return name


def _prepare(cursor: PgCursor, text: str) -> str:
    """Prepare a statement in the session and return its name; "" if PostgreSQL refuses it."""
    connection, places = cursor.connection, count(1)
    names, identity, counted = connection.settled, connection.opening, connection.counted
    text = re.sub("%(.)", lambda found: f"${next(places)}" if found[1] == "s" else "%", text)
    oldest = names.pop(next(iter(names))) if len(names) >= KEPT else ""
    name = f"rowcast_{next(_NUMBERS)}"
    sql = f"{f'DEALLOCATE {oldest};' if oldest else ''}PREPARE {name} AS {text}"
    # The identity goes in another message: pg_prepared_statements shows the entire message, claims
    # included, to functions that run for other callers.
    if identity is not None:
        connection.command("BEGIN")
    try:
        cursor.execute(sql, clean=True)
    except psycopg2.OperationalError:  # the job was stopped, or the connection is lost
        raise
    except psycopg2.Error:
        name = ""
    if identity is not None:
        connection.command("COMMIT")  # ends a failed transaction too
        connection.opening, connection.counted = identity, counted
    return name
