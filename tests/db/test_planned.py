"""
Statements that a session prepares once.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg2
import pytest

from service.db.connection import PgConnection
from service.db.planned import PreparedStatement
from service.db.session_settings import SessionSettings, open_session
from tests.conftest import execute

DOUBLED = PreparedStatement("SELECT %(number)s * 2, %(words)s", number="int", words="text[]")
QUOTIENT = PreparedStatement("SELECT 12 / %(number)s", number="int")
PREPARED = "SELECT name FROM pg_prepared_statements ORDER BY name"


@pytest.fixture
def connection(dsn: str) -> Iterator[PgConnection]:
    found = open_session(dsn, SessionSettings())
    yield found
    found.close()


def run(
    connection: PgConnection, statement: PreparedStatement, before: str = "", **values: object
) -> object:
    with connection.cursor() as cursor:
        statement.run(cursor, values, before)
        return cursor.fetchone()


def prepared(connection: PgConnection) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(PREPARED, clean=True)
        return [name for (name,) in cursor.fetchall()]


def test_statement_is_prepared_once_for_all_values(connection: PgConnection) -> None:
    assert run(connection, DOUBLED, number=1, words=[]) == (2, [])
    first = prepared(connection)
    assert len(first) == 1
    assert run(connection, DOUBLED, number=2, words=["%s", "'"]) == (4, ["%s", "'"])
    assert prepared(connection) == first


def test_statement_is_sent_in_one_message_with_others(connection: PgConnection) -> None:
    for number in (1, 2):
        assert run(connection, DOUBLED, "BEGIN;", number=number, words=[]) == (2 * number, [])
        assert connection.command("COMMIT") == "COMMIT"


def test_statement_is_prepared_after_the_one_sent_before_it(connection: PgConnection) -> None:
    """As after the COMMIT of a transaction whose role may not read the statement's table."""
    execute(connection.dsn, "CREATE TABLE guarded (id int); CREATE ROLE reads_nothing")
    count = PreparedStatement("SELECT count(*)::int FROM guarded")
    connection.command("BEGIN; SET LOCAL ROLE reads_nothing")
    assert run(connection, count, "COMMIT;") == (0,)
    assert run(connection, count, "BEGIN;") == (0,)
    connection.command("COMMIT")


def test_statement_that_has_failed_is_run_again(connection: PgConnection) -> None:
    for _ in range(2):
        with pytest.raises(psycopg2.errors.DivisionByZero):
            run(connection, QUOTIENT, number=0)
        assert run(connection, QUOTIENT, number=3) == (4,)
    assert len(prepared(connection)) == 1


def test_statement_that_a_caller_has_replaced_is_not_run(connection: PgConnection) -> None:
    run(connection, DOUBLED, number=1, words=[])
    (name,) = prepared(connection)
    with connection.cursor() as cursor:
        cursor.execute(f"DEALLOCATE {name}; PREPARE {name} (int, text[]) AS SELECT 'forged', $2")
    assert run(connection, DOUBLED, number=1, words=[]) == (2, [])


def test_reset_session_prepares_again(connection: PgConnection) -> None:
    run(connection, DOUBLED, number=1, words=[])
    connection.touch()
    connection.clean()
    assert prepared(connection) == []
    assert run(connection, DOUBLED, number=3, words=[]) == (6, [])


def test_renewed_session_prepares_again(connection: PgConnection) -> None:
    """Sessions are renewed when the schema has changed."""
    run(connection, DOUBLED, number=1, words=[])
    connection.renew(1)
    assert run(connection, DOUBLED, number=3, words=[]) == (6, [])
    assert len(prepared(connection)) == 1


def test_nothing_is_prepared_behind_a_pooler(connection: PgConnection) -> None:
    connection.pooled = True
    assert run(connection, DOUBLED, number=1, words=["a"]) == (2, ["a"])
    assert prepared(connection) == []
