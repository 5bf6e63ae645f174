"""
Reading the catalog for a command, without a pool and without a reactor.
"""

from __future__ import annotations

import psycopg2

from schema.database import reason
from service.catalog import Catalog
from service.db.introspect import catalog_txn


def read_catalog(dsn: str, schemas: tuple[str, ...]) -> Catalog:
    """
    Read what a database holds.

    Raises:
        ConnectionError: It cannot be reached; in one sentence.
    """
    try:
        connection = psycopg2.connect(dsn)
    except psycopg2.OperationalError as error:
        raise ConnectionError(reason(error)) from error
    try:
        connection.autocommit = True
        return catalog_txn(connection, schemas, 1)
    finally:
        connection.close()
