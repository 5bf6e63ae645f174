"""
Epochs: which positions remain valid.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg2
import pytest

from schema.changes import install
from service.changes import positions
from service.changes.leader import Upkeep, announce_txn, prepare_txn
from service.changes.log import Tick, last_txn, make_txn, next_txn, read_txn, ticks_txn
from service.changes.positions import (
    NO_SYSTEM,
    Epoch,
    SnapshotPosition,
    TickPosition,
    begin_txn,
    end_txn,
    epoch_now_txn,
    resume_txn,
    resumed_txn,
)
from service.db.connection import PgConnection, PgCursor
from service.db.session_settings import SessionSettings, open_session
from service.db.transaction import TransactionAborted
from tests.conftest import execute
from tests.db.feeds import clear_log
from tests.db.ticks import snapshot_txn

SCHEMA = f"""
CREATE TABLE items (id serial PRIMARY KEY, n int);
{install()}
SELECT rowcast.track('items');
"""


class History:
    """A reader that makes ticks one by one."""

    def __init__(self, connection: PgConnection, dsn: str) -> None:
        self.connection = connection
        self.dsn = dsn
        self.epoch, self.last = begin_txn(connection, 0)

    def write(self, many: int = 1) -> None:
        """Commit some rows, each in its own transaction."""
        for _ in range(many):
            execute(self.dsn, "INSERT INTO items (n) VALUES (1)")

    def tick(self) -> Tick:
        """Write a row, and make the tick that contains it."""
        self.write()
        found = next_txn(self.connection, self.last, self.epoch.number, 100, "ticks")
        assert found is not None
        self.last, _ = found
        return self.last

    def begin(self, known: int | None = None) -> Epoch:
        """Begin to lead, as another process would."""
        self.epoch, self.last = begin_txn(
            self.connection, self.last.number if known is None else known
        )
        return self.epoch

    def resumes(self, position: TickPosition | SnapshotPosition) -> int | None:
        """Return the number of log rows after a client's position; None if the position is gone."""
        found = resume_txn(self.connection, position)
        return None if found is None else len(read_txn(self.connection, found))

    def elsewhere(self, column: str) -> None:
        """Change the recorded identity, as if the database had another history."""
        execute(self.dsn, f"UPDATE rowcast.epochs SET {column} = {column} + 1")


@pytest.fixture(autouse=True)
def consecutive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Number epochs from 1 on, without gaps."""
    monkeypatch.setattr(positions, "EPOCHS", 1)


@pytest.fixture
def history(dsn: str) -> Iterator[History]:
    clear_log(dsn)
    connection = open_session(dsn, SessionSettings())
    prepare_txn(connection)
    yield History(connection, dsn)
    connection.close()


def test_first_epoch_begins_with_the_entire_log(dsn: str, history: History) -> None:
    assert (history.epoch.number, history.epoch.pruned_below) == (1, 3)
    assert history.tick().rows == 1
    assert history.begin() == history.epoch
    assert epoch_now_txn(history.connection) == history.epoch


def test_position_of_a_tick_resumes_before_it(history: History) -> None:
    ticks = [history.tick() for _ in range(3)]
    for at, tick in enumerate(ticks):
        assert history.resumes(TickPosition(1, tick.number, 1)) == 3 - at
        assert history.resumes(TickPosition(1, tick.number, 0)) == 3 - at
    end = end_txn(history.connection, 1)
    assert history.resumes(end) == 0
    history.write()
    assert history.resumes(end) == 1
    history.tick()
    assert history.resumes(end) == 2


@pytest.mark.parametrize(
    "position",
    [
        TickPosition(1, 500, 1),
        TickPosition(1, 500, 0),
        TickPosition(2, 2, 1),
        TickPosition(1, 0, 0),
        TickPosition(0, 2, 1),
        TickPosition(2**31 - 1, 2**63 - 1, 2**31 - 1),
    ],
)
def test_position_never_issued_is_gone(history: History, position: TickPosition) -> None:
    history.tick()
    assert history.resumes(position) is None


def test_tick_between_two_others_is_read_unchanged(history: History) -> None:
    history.tick()
    middle = history.tick()
    history.tick()
    found = ticks_txn(history.connection, middle.number, 1)
    assert found == [middle]
    assert last_txn(history.connection) == history.last


def test_position_remains_valid_after_a_promotion_without_loss(history: History) -> None:
    tick = history.tick()
    seen = SnapshotPosition(1, snapshot_txn(history.connection))
    history.tick()
    history.elsewhere("timeline")
    assert epoch_now_txn(history.connection) is None
    assert history.resumes(TickPosition(1, tick.number, 1)) is None, "nobody has begun the epoch"
    assert history.begin().number == 2
    assert history.last.number == tick.number + 1
    assert history.resumes(TickPosition(1, tick.number, 1)) == 2
    assert history.resumes(seen) == 1
    assert history.resumes(end_txn(history.connection, 2)) == 0
    assert history.tick().epoch == 2
    assert history.resumes(TickPosition(1, tick.number, 1)) == 3


def test_server_without_an_identity_has_epochs(dsn: str, history: History) -> None:
    """As on some managed services."""
    clear_log(dsn)
    execute(
        dsn,
        "REVOKE EXECUTE ON FUNCTION pg_catalog.pg_control_system() FROM PUBLIC;"
        "CREATE ROLE epochs_reader; GRANT USAGE ON SCHEMA rowcast TO epochs_reader;"
        "GRANT ALL ON ALL TABLES IN SCHEMA rowcast TO epochs_reader",
    )
    history.connection.command("SET ROLE epochs_reader")
    try:
        assert history.begin(0) == Epoch(1, NO_SYSTEM, history.epoch.timeline, 3)
        assert not history.epoch.identified
        position = TickPosition(1, history.tick().number, 1)
        assert history.begin() == epoch_now_txn(history.connection) == history.epoch
        assert history.resumes(position) == 1
        # a restored dump has positions beyond the new server's transaction ids
        execute(dsn, "UPDATE rowcast.ticks SET snapshot = '9000000:9000000:'")
        assert history.begin().number == 2
        assert history.resumes(position) is None
        assert execute(dsn, "SELECT count(*) FROM rowcast.log") == [(0,)]
    finally:
        history.connection.command("RESET ROLE")
        execute(
            dsn,
            "GRANT EXECUTE ON FUNCTION pg_catalog.pg_control_system() TO PUBLIC;"
            "DROP OWNED BY epochs_reader; DROP ROLE epochs_reader",
        )
    assert history.begin().number == 3, "who may ask finds another history than none"
    assert history.epoch.identified


def test_log_without_its_ticks_begins_a_new_epoch(dsn: str, history: History) -> None:
    position = TickPosition(1, history.tick().number, 1)
    execute(dsn, "DELETE FROM rowcast.ticks")
    assert history.begin().number == 2
    assert history.resumes(position) is None
    assert execute(dsn, "SELECT count(*) FROM rowcast.log") == [(0,)]


def test_position_in_a_tick_that_a_promotion_lost_is_gone(dsn: str, history: History) -> None:
    kept, lost = history.tick(), history.tick()
    seen = SnapshotPosition(1, snapshot_txn(history.connection))
    end = end_txn(history.connection, 1)
    execute(dsn, f"DELETE FROM rowcast.ticks WHERE tick = {lost.number}")
    history.elsewhere("timeline")
    history.begin(known=0)
    for _ in range(2):  # before and after its number is another tick's
        assert history.resumes(TickPosition(1, lost.number, 1)) is None
        assert history.resumes(end) is None
        assert history.resumes(seen) is None
        assert history.resumes(TickPosition(1, kept.number, 1)) is not None
        history.tick()
    assert history.last.number == lost.number + 1


def test_fewer_ticks_than_were_known_begin_an_epoch(dsn: str, history: History) -> None:
    """As after restoring a volume: the server's identity is the same."""
    lost = history.tick()
    execute(dsn, f"DELETE FROM rowcast.ticks WHERE tick = {lost.number}")
    assert history.begin().number == 2
    assert history.tick().number == lost.number
    assert history.resumes(TickPosition(1, lost.number, 1)) is None


def test_dump_restored_elsewhere_begins_with_an_empty_log(dsn: str, history: History) -> None:
    tick = history.tick()
    seen = SnapshotPosition(1, snapshot_txn(history.connection))
    execute(dsn, "UPDATE rowcast.log SET xid = '9000000000'")
    history.elsewhere("system")
    writer = psycopg2.connect(dsn)
    with writer.cursor() as rows:
        rows.execute("INSERT INTO items (n) VALUES (1)")
        assert history.begin().number == 2
        writer.commit()
    writer.close()
    assert history.last.number > tick.number
    assert history.resumes(TickPosition(1, tick.number, 1)) is None
    assert history.resumes(seen) is None
    # transactions that ran meanwhile are not lost
    assert history.tick().rows == 2


def test_copy_of_the_database_on_its_server_begins_with_an_empty_log(
    dsn: str, history: History
) -> None:
    """As after a dump was restored into another database of the server."""
    position = TickPosition(1, history.tick().number, 1)
    history.connection.close()
    name = psycopg2.extensions.parse_dsn(dsn)["dbname"]
    execute(dsn, "DROP DATABASE IF EXISTS copied")
    elsewhere = psycopg2.extensions.make_dsn(dsn, dbname="postgres")
    execute(elsewhere, f"CREATE DATABASE copied TEMPLATE {name}")
    try:
        copied = psycopg2.extensions.make_dsn(dsn, dbname="copied")
        with closing(open_session(copied, SessionSettings())) as connection:
            copy = History(connection, copied)
            assert copy.epoch.number == 2
            assert copy.resumes(position) is None
            assert execute(copied, "SELECT count(*) FROM rowcast.log") == [(0,)]
    finally:
        execute(elsewhere, "DROP DATABASE copied WITH (FORCE)")


def test_log_restored_in_its_database_begins_a_new_epoch(dsn: str, history: History) -> None:
    """As after `pg_restore --clean`, which creates the tables again."""
    position = TickPosition(1, history.tick().number, 1)
    execute(
        dsn,
        "CREATE TABLE rowcast.restored (LIKE rowcast.ticks INCLUDING ALL);"
        "INSERT INTO rowcast.restored SELECT * FROM rowcast.ticks; DROP TABLE rowcast.ticks;"
        "ALTER TABLE rowcast.restored RENAME TO ticks",
    )
    assert history.begin().number == 2
    assert history.resumes(position) is None


def test_snapshot_with_more_than_the_last_tick_of_its_epoch_is_gone(
    dsn: str, history: History
) -> None:
    writer = psycopg2.connect(dsn)
    with writer.cursor() as rows:
        rows.execute("INSERT INTO items (n) VALUES (1)")
        history.tick()
        writer.commit()
    writer.close()
    # of the same highest number, and one more that is visible
    seen = snapshot_txn(history.connection)
    history.elsewhere("timeline")
    history.begin()
    assert history.resumes(SnapshotPosition(1, seen)) is None
    assert history.resumes(SnapshotPosition(1, history.last.snapshot)) == 1


def test_pruned_positions_are_gone_and_others_have_all_that_follows(
    dsn: str, history: History
) -> None:
    early = snapshot_txn(history.connection)
    old = [history.tick() for _ in range(3)]
    late = snapshot_txn(history.connection)
    execute(dsn, "UPDATE rowcast.ticks SET at = at - interval '1 day'")
    new = [history.tick() for _ in range(2)]
    upkeep = Upkeep(3600.0, 1 << 30)
    assert upkeep.due(1e9)
    while upkeep.due(1e9):
        upkeep.run_txn(history.connection, 1e9)
    assert upkeep.pruned == 3
    assert execute(dsn, "SELECT count(*) FROM rowcast.log") == [(2,)]
    assert execute(dsn, "SELECT count(*) FROM rowcast.ticks") == [(3,)]
    for tick in old:
        assert history.resumes(TickPosition(1, tick.number, 1)) is None
    assert history.resumes(SnapshotPosition(1, early)) is None
    assert history.resumes(SnapshotPosition(1, late)) == 2
    assert history.resumes(TickPosition(1, old[-1].number + 1, 0)) == 2
    assert history.resumes(TickPosition(1, new[0].number, 1)) == 2
    assert history.resumes(TickPosition(1, new[1].number, 1)) == 1
    assert ticks_txn(history.connection, new[0].number, 5) == new


def test_rows_without_a_tick_are_not_pruned(dsn: str, history: History) -> None:
    history.tick()
    history.write(3)
    execute(dsn, "UPDATE rowcast.ticks SET at = at - interval '1 day'")
    execute(dsn, "UPDATE rowcast.log SET at = at - interval '1 day'")
    upkeep = Upkeep(1.0, 1)
    while upkeep.due(1e9):
        upkeep.run_txn(history.connection, 1e9)
    found = next_txn(history.connection, history.last, 1, 100, "ticks")
    assert found is not None
    assert found[0].rows == 3


def test_log_above_its_size_is_pruned_from_its_beginning(dsn: str, history: History) -> None:
    for _ in range(20):
        history.tick()
    execute(dsn, "ANALYZE rowcast.log")
    first, below = announce_txn(history.connection, 1e6, 1 << 30)
    assert below is None
    upkeep = Upkeep(1e6, 800)
    while upkeep.due(1e9):
        upkeep.run_txn(history.connection, 1e9)
    ((left,),) = execute(dsn, "SELECT count(*) FROM rowcast.log")
    assert 3 <= int(str(left)) <= 17
    assert upkeep.pruned == 20 - int(str(left))
    assert history.resumes(TickPosition(1, history.last.number, 1)) == 1
    assert first == 1


def test_tick_that_the_server_has_rolled_back_is_an_error(history: History) -> None:
    """PostgreSQL answers the COMMIT of a failed transaction with ROLLBACK, without an error."""

    def spoil(*made: object) -> None:
        with pytest.raises(psycopg2.Error):
            history.connection.command("SELECT 1 / 0")

    def nothing(*read: object) -> None:
        """Return None."""

    history.write()
    with pytest.raises(TransactionAborted):
        make_txn(history.connection, history.last, 1, 100, "ticks", False, nothing, spoil)
    assert last_txn(history.connection) == history.last


def test_many_positions_are_resolved_by_as_many_statements_as_one(
    dsn: str, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = [history.tick() for _ in range(5)]
    positions = [TickPosition(1, each.number, 1) for each in ticks]
    positions += [SnapshotPosition(1, each.snapshot) for each in ticks]
    statements = []
    execute_one = PgCursor.execute

    def counted(self: PgCursor, query: Any, *args: Any, **kwargs: Any) -> None:
        statements.append(query)
        execute_one(self, query, *args, **kwargs)

    monkeypatch.setattr(PgCursor, "execute", counted)
    one = {each: resume_txn(history.connection, each) for each in positions}
    each_time = len(statements) / len(positions)
    statements.clear()
    assert resumed_txn(history.connection, positions) == one
    assert None not in one.values()
    assert len(statements) <= each_time + 1


def test_position_that_is_being_pruned_keeps_all_that_follows(dsn: str, history: History) -> None:
    """Log rows that a transaction has found remain until its end."""
    ticks = [history.tick() for _ in range(3)]
    reader = open_session(dsn, SessionSettings())
    reader.command("BEGIN ISOLATION LEVEL REPEATABLE READ")
    found = resume_txn(reader, TickPosition(1, ticks[0].number, 1))
    execute(dsn, "UPDATE rowcast.ticks SET at = at - interval '1 day'")
    history.tick()
    upkeep = Upkeep(1.0, 1 << 30)
    while upkeep.due(1e9):
        upkeep.run_txn(history.connection, 1e9)
    assert upkeep.pruned == 3
    assert found is not None
    assert len(read_txn(reader, found)) == 3
    reader.close()


def test_session_of_the_feed_compiles_no_statement(dsn: str) -> None:
    """Before PostgreSQL 18, sequential scans that are avoided at any cost would be compiled."""
    with closing(open_session(dsn, SessionSettings())) as connection:
        prepare_txn(connection)
        assert connection.ask("SHOW jit") == ("off",)
        assert connection.ask("SHOW idle_session_timeout") == ("0",)
