"""A file with the URL of the database that names another database while the old one still runs."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import pytest_twisted
from psycopg2.extensions import make_dsn, parse_dsn

from schema import changes
from tests.conftest import Router, execute
from tests.db.watched import begin_epoch
from tests.deferreds import until
from tests.wamp.callers import refusal_of
from tests.wamp.conftest import Join
from tests.wamp.service import served
from tests.wamp.test_watching import Watching

TABLES = f"""
{changes.install()}
CREATE TABLE parcels (id int PRIMARY KEY, place text);
SELECT rowcast.track('parcels');
INSERT INTO parcels VALUES (1, 'moved'), (2, 'unmoved');
"""


@pytest.fixture(params=["copy", "new log", "old log"])
def other(dsn: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The DSN of another database: a copy, with the log, or one with a log of its own, used before or not."""
    server, name = make_dsn(dsn, dbname="postgres"), parse_dsn(dsn)["dbname"]
    execute(
        dsn,
        "DROP SCHEMA public CASCADE; CREATE SCHEMA public; DROP SCHEMA IF EXISTS rowcast CASCADE",
    )
    execute(dsn, TABLES)
    begin_epoch(dsn)
    execute(server, "DROP DATABASE IF EXISTS other WITH (FORCE)")
    execute(
        server, f"CREATE DATABASE other TEMPLATE {name if request.param == 'copy' else 'template0'}"
    )
    other = make_dsn(dsn, dbname="other")
    if request.param != "copy":
        execute(other, TABLES)
    if request.param == "old log":
        begin_epoch(other)
        execute(
            other,
            "INSERT INTO rowcast.ticks (tick, epoch, snapshot, changes)"
            " SELECT t.tick + n, epoch, snapshot, 0 FROM rowcast.ticks t, generate_series(1, 99) n",
        )
    execute(other, "UPDATE parcels SET place = 'other' WHERE id = 1")
    yield other
    execute(server, "DROP DATABASE other WITH (FORCE)")


@pytest_twisted.ensureDeferred
async def test_changed_url_moves_all_sessions_and_positions(
    dsn: str, router: Router, other: str, call_from: Join, tmp_path: Path
) -> None:
    """No session to the old database remains, and live queries get the rows of the new one."""
    file = tmp_path / "url"
    file.write_text(dsn)
    async with served(dsn, router, database_url=None, database_url_file=file) as service:
        caller = await call_from()
        await until(lambda: service.feed.leading and service.listener.listening)
        live = Watching(caller, "parcels")
        await until(lambda: live.copy.complete)
        await caller.call("rowcast.parcels.create", {"id": 3, "place": "lost"})
        await until(lambda: len(live.copy.rows) == 3)
        old, position = deepcopy(live.copy), await caller.call("rowcast.position")
        file.write_text(other)
        left = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid()"
        )
        await until(lambda: execute(dsn, left) == [(0,)])
        await until(lambda: [row["place"] for row in live.copy.values] == ["other", "unmoved"])
        await until(lambda: service.feed.leading and service.listener.listening)
        execute(dsn, "DELETE FROM parcels")
        refused = await refusal_of(caller.call("rowcast.changes", position))
        assert refused.error == "rowcast.error.position_gone"
        resumed = Watching(caller, "parcels", copy=old, since=old.position)
        await caller.call("rowcast.parcels.create", {"id": 4, "place": "new"})
        for each in (live, resumed):
            await until(lambda each=each: len(each.copy.rows) == 3)
            assert each.copy.values[0]["place"] == "other"
            assert each.copy.values[2]["place"] == "new"
            each.call.cancel()
