"""
Reading the catalog for a command, without a pool and without a reactor.
"""

from __future__ import annotations

import psycopg2
import psycopg2.extensions
from psycopg2.sql import SQL, Identifier

from schema.database import reason
from service.catalog import Catalog
from service.db.introspect import catalog_txn


def read_catalog(dsn: str, schemas: tuple[str, ...], role: str | None = None) -> Catalog:
    """
    Read what a database holds.

    Args:
        dsn: Of the database.
        schemas: Those that are served.
        role: Whose rights count, if not those of the one who logs in.

    Raises:
        ConnectionError: It cannot be reached, or not as that role; in one sentence.
    """
    try:
        connection = psycopg2.connect(dsn)
    except psycopg2.OperationalError as error:
        raise ConnectionError(reason(error)) from error
    try:
        connection.autocommit = True
        if role is not None:
            _become(connection, role)
        return catalog_txn(connection, schemas, 1)
    finally:
        connection.close()


def _become(connection: psycopg2.extensions.connection, role: str) -> None:
    with connection.cursor() as cursor:
        try:
            cursor.execute(SQL("SET ROLE {}").format(Identifier(role)))
        except psycopg2.Error as error:
            raise ConnectionError(error.diag.message_primary or f'no role "{role}"') from error
