"""
What twistar expects in its registry: a database configuration and a pool.

All of their methods use `Database`. `Model` does not use them; they are for code that calls
`Registry.getConfig()` or `Registry.DBPOOL` itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from uuid import UUID

from psycopg2 import extensions
from psycopg2.extras import UUID_adapter, execute_values
from twistar.dbconfig.postgres import PostgreSQLDBConfig
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from service.db.database import Database
from service.db.transaction import cursor_txn
from service.models.meta import (
    Where,
    conjunction,
    limit_of,
    order_clause,
    placeholders,
    table,
    where_of,
)
from service.sql.statement import quoted


class CallerPool:
    """
    The interface of adbapi's pool, in the caller's transaction and with the caller's role.

    Args:
        database: Runs the statements.
    """

    def __init__(self, database: Database) -> None:
        # Not the pool itself, which would run statements outside the caller's transaction and with the
        # service's own role.
        self.database = database
        self.dbapi = database.pool.dbapi

    def runQuery(self, sql: Any, params: Sequence[Any] | None = None) -> Deferred[Any]:
        """Run one statement and return its rows."""
        return self.database.statement(sql, params)

    def runOperation(self, sql: Any, params: Sequence[Any] | None = None) -> Deferred[None]:
        """Run one statement and return None."""
        return self.database.statement(sql, params, fetch=False).addCallback(lambda _: None)

    def runInteraction(
        self, interaction: Callable[..., Any], *args: Any, **kw: Any
    ) -> Deferred[Any]:
        """Run a function with a cursor in a transaction, or in a savepoint of the caller's."""
        return self.database.atomic(cursor_txn, interaction, args, kw)

    def runWithConnection(self, func: Callable[..., Any], *args: Any, **kw: Any) -> Deferred[Any]:
        """Run a function with a connection, in autocommit or in the caller's transaction."""
        return self.database.run(partial(func, **kw), *args)


extensions.register_adapter(UUID, UUID_adapter)  # without it psycopg2 cannot adapt one


class PgConfig(PostgreSQLDBConfig):
    """
    The configuration of twistar's Registry.

    Args:
        database: Runs the statements, in the caller's transaction if there is one.
    """

    log_source = Logger()

    def __init__(self, database: Database) -> None:
        self.database = database

    @property
    def txn(self) -> None:
        """
        Return None: there is no global transaction.

        `twistar.utils.transaction` sets this attribute. Without a setter it fails at once, and does not run
        the statements of unrelated calls in one transaction.
        """
        return None

    def log(self, query: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Log the text of a statement, if twistar's LOG is on; never its values."""
        # twistar's method fails to join lists of parameters, so with LOG on each statement would fail.
        if self.LOG:
            self.log_source.debug("twistar: {query}", query=query[:500])

    def runInteraction(self, interaction: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        """Run a function with a cursor in a transaction, or in a savepoint of the caller's."""
        return self.database.atomic(cursor_txn, interaction, args, kw)

    def execute(self, query: str, args: Sequence[Any] | None = None) -> Deferred[Any]:
        """Run a statement and return its rows."""
        self.log(query, (), {})
        return self.database.statement(query, args)

    def executeOperation(self, query: str, args: Sequence[Any] | None = None) -> Deferred[int]:
        """Run a statement and return the number of rows that it has affected."""
        self.log(query, (), {})
        return self.database.statement(query, args, fetch=False)

    def executeTxn(self, txn: Any, query: str, args: Sequence[Any] | None = None) -> Any:
        """Run a statement with a cursor, in a worker."""
        self.log(query, (), {})
        # None, because psycopg2 formats the text for an empty list as well: LIKE '5%' would fail.
        return txn.execute(query, args or None)

    def whereToString(self, where: Where) -> tuple[str, list[Any]]:
        """Return a condition in psycopg2's form."""
        return placeholders(where[0]), list(where[1:])

    def escapeColNames(self, colnames: Sequence[str]) -> list[str]:
        """Quote names for a condition in twistar's form."""
        return [quoted(name) for name in colnames]

    def getSchema(self, tablename: str, txn: Any = None) -> list[str]:
        """Return []: models know their columns from the catalog."""
        # twistar sends a query, and takes any error, such as a missing right, for a missing table.
        return []

    def select(
        self,
        tablename: str,
        id: Any = None,
        where: Where | None = None,
        group: None = None,
        limit: int | tuple[int, int] | None = None,
        orderby: str | None = None,
        select: str | None = None,
    ) -> Deferred[Any]:
        """Select rows as dicts; one of them, or None, for an id or a limit of 1."""
        if group is not None:
            raise ValueError("whole rows cannot be grouped")
        if id is not None:
            where = conjunction(["id OPERATOR(pg_catalog.=) ?", id], where)
        text, params = where_of(where)
        sql = f"SELECT {select or '*'} FROM {table(tablename)}{text}"
        if orderby is not None:
            sql += order_clause(orderby)
        ending, numbers = limit_of(limit)
        one = id is not None or (not isinstance(limit, tuple) and limit == 1)
        return self.database.statement(
            placeholders(sql + ending), params + numbers, post=partial(_dicts, one=one), retry=True
        )

    def insert(self, tablename: str, vals: Mapping[str, Any], txn: Any = None) -> Any:
        """Insert a row and return the value of its first column."""
        # RETURNING instead of twistar's lastval(), which a trigger that inserts elsewhere changes, and which
        # is another table's value if the key is not from a sequence.
        names = ", ".join(quoted(name) for name in vals)
        marks = ", ".join("?" for _ in vals)
        what = f"({names}) VALUES ({marks})" if vals else "DEFAULT VALUES"
        sql = placeholders(f"INSERT INTO {table(tablename)} {what} RETURNING *")
        if txn is None:
            inserted = self.database.statement(sql, list(vals.values()))
            return inserted.addCallback(lambda rows: rows[0][0])
        txn.execute(sql, list(vals.values()))
        return txn.fetchone()[0]

    def insertMany(self, tablename: str, vals: Sequence[Mapping[str, Any]]) -> Deferred[Any]:
        """
        Insert rows in one transaction.

        Raises:
            ValueError: The rows have different columns.
        """
        # twistar combines the names of the first row with the values of each row in that row's own order.
        names = list(vals[0]) if vals else []
        if any(set(each) != set(names) for each in vals):
            raise ValueError("the rows have different columns")
        # execute_values formats the statement, so `placeholders` doubles a percent sign in a name.
        columns = placeholders(", ".join(quoted(name) for name in names))
        sql = f"INSERT INTO {placeholders(table(tablename))} ({columns}) VALUES %s"
        rows = [[each[name] for name in names] for each in vals]
        return self.runInteraction(lambda cursor: execute_values(cursor, sql, rows))

    def update(
        self,
        tablename: str,
        args: Mapping[str, Any],
        where: Where | None = None,
        txn: Any = None,
        limit: None = None,
    ) -> Any:
        """Update rows and return their number."""
        if limit is not None:
            raise ValueError("PostgreSQL has no LIMIT for an UPDATE")
        sets = ", ".join(f"{quoted(name)} = ?" for name in args)
        text, params = where_of(where)
        sql = placeholders(f"UPDATE {table(tablename)} SET {sets}{text}")
        values = [*args.values(), *params]
        return self.executeOperation(sql, values) if txn is None else txn.execute(sql, values)

    def delete(self, tablename: str, where: Where | None = None) -> Deferred[int]:
        """Delete rows and return their number."""
        text, params = where_of(where)
        return self.executeOperation(placeholders(f"DELETE FROM {table(tablename)}{text}"), params)

    def count(self, tablename: str, where: Where | None = None) -> Deferred[int]:
        """Count rows."""
        text, params = where_of(where)
        counted = self.database.statement(
            placeholders(f"SELECT pg_catalog.count(*) FROM {table(tablename)}{text}"), params
        )
        return counted.addCallback(lambda rows: rows[0][0])

    def insertObj(self, obj: Any) -> Deferred[Any]:
        """Insert an object without its validations."""
        return obj.insert_row()

    def updateObj(self, obj: Any) -> Deferred[Any]:
        """Update the changed columns of an object without its validations."""
        return obj.update_row()

    def refreshObj(self, obj: Any) -> Deferred[Any]:
        """Read the row of an object again."""
        return obj.refresh()


def _dicts(rows: list[tuple[Any, ...]], cursor: extensions.cursor, one: bool) -> Any:
    assert cursor.description is not None
    names = [column.name for column in cursor.description]
    found = [dict(zip(names, row, strict=True)) for row in rows]
    return (found[0] if found else None) if one else found
