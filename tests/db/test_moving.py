"""A database URL in a file that changes while the service runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
from psycopg2.extensions import make_dsn
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred

from schema.database_url import Place
from service.errors import Unavailable
from tests.conftest import execute
from tests.db.served import database_at
from tests.deferreds import failure_of, pause

WHO = "SELECT current_user"


@pytest.fixture(scope="module")
def roles(dsn: str) -> None:
    execute(
        dsn,
        "DROP ROLE IF EXISTS moving_1; DROP ROLE IF EXISTS moving_2;"
        "CREATE ROLE moving_1 LOGIN; CREATE ROLE moving_2 LOGIN",
    )


@pytest_twisted.ensureDeferred
async def test_credentials_that_change_are_used_by_the_next_call(
    dsn: str, roles: None, tmp_path: Path
) -> None:
    """New calls use the new credentials, although sessions with the old ones are still open."""
    file = tmp_path / "url"
    file.write_text(make_dsn(dsn, user="moving_1"))
    async with database_at(Place(file=file).dsn, most=2, recheck=0.0) as database:
        assert await database.statement(WHO) == [("moving_1",)]
        async with database.transaction():
            assert await database.statement(WHO) == [("moving_1",)]
            file.write_text(make_dsn(dsn, user="moving_2"))
            assert await database.statement(WHO) == [("moving_1",)]
        assert await database.statement(WHO) == [("moving_2",)]


@pytest_twisted.ensureDeferred
async def test_credentials_file_within_seconds_is_read_once(dsn: str) -> None:
    """It is read every few seconds, not for each call, and no session is opened without need."""
    asked: list[str] = []

    def where() -> str:
        asked.append(dsn)
        return dsn

    async with database_at(where, most=1, recheck=0.2) as database:
        began = reactor.seconds()
        for _ in range(20):
            await database.statement("SELECT 1")
        read = len(asked)
        assert read <= 1 + (reactor.seconds() - began) / 0.2
        await pause(0.2)
        await database.statement("SELECT 1")
        assert len(asked) == read + 1
        assert database.pool.stats().connects == 1


@pytest.mark.parametrize("broken", [b"", b"postgresql:/", b"\xff\xfe", None])
@pytest_twisted.ensureDeferred
async def test_credentials_file_being_written_makes_calls_wait(
    dsn: str, roles: None, tmp_path: Path, broken: bytes | None
) -> None:
    """An open session is used meanwhile; without one, a call waits, and is refused as unavailable."""
    file = tmp_path / "url"
    place = Place(file=file)

    def write(content: bytes | None) -> None:
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_bytes(content)

    write(make_dsn(dsn, user="moving_1").encode())
    async with database_at(place.dsn, most=1, recheck=0.0, connect_wait=0.3) as database:
        assert await database.statement(WHO) == [("moving_1",)]
        write(broken)
        assert await database.statement(WHO) == [("moving_1",)]
        execute(
            dsn, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'moving_1'"
        )
        assert isinstance(await failure_of(database.statement(WHO, retry=True)), Unavailable)
    async with database_at(place.dsn, most=1, connect_wait=5) as database:
        waiting = ensureDeferred(database.statement(WHO))
        await pause(0.1)
        assert not waiting.called
        write(make_dsn(dsn, user="moving_2").encode())
        assert await waiting == [("moving_2",)]


@pytest_twisted.ensureDeferred
async def test_open_session_is_kept_while_new_credentials_fail(
    dsn: str, roles: None, tmp_path: Path
) -> None:
    """If the new credentials fail, the open session stays in use."""
    file = tmp_path / "url"
    file.write_text(make_dsn(dsn, user="moving_1"))
    async with database_at(Place(file=file).dsn, most=1, recheck=0.0) as database:
        assert await database.statement(WHO) == [("moving_1",)]
        file.write_text(make_dsn(dsn, user="moving_0"))
        assert await database.statement(WHO) == [("moving_1",)]
        execute(
            dsn, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'moving_1'"
        )
        file.write_text(make_dsn(dsn, user="moving_2"))
        assert await database.statement(WHO, retry=True) == [("moving_2",)]
