"""
Triggers of the application that write to their own table: the log is in no order, and the net changes
are right.
"""

from __future__ import annotations

import json
import random
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import cursor as Cursor

from schema.changes import install
from service.changes.log import PgSnapshot, Tick, read_txn, tracked_txn
from service.changes.net import net_changes
from service.db.session_settings import SessionSettings, open_session
from tests.conftest import execute
from tests.db.ticks import snapshot_txn

KEYS, TRANSACTIONS = 20, 250
TICK = Tick(1, 1, PgSnapshot(3, 3, ()), PgSnapshot(3, 3, ()), 0)
SCHEMA = f"""
CREATE TABLE plain (id int PRIMARY KEY, n int);
CREATE TABLE parted (id int PRIMARY KEY, n int) PARTITION BY RANGE (id);
CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (0) TO (8);
-- its columns are in another order, so what moves here is written in another
CREATE TABLE parted_high (n int, id int PRIMARY KEY);
ALTER TABLE parted ATTACH PARTITION parted_high FOR VALUES FROM (8) TO (1000);
{install()}
SELECT rowcast.track('plain'), rowcast.track('parted');
CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF pg_trigger_depth() < 3 THEN
        IF NEW.n % 3 = 0 THEN
            EXECUTE format('UPDATE %I SET n = $1 + 100 WHERE id = $2', TG_ARGV[0]) USING NEW.n, NEW.id;
        ELSIF NEW.n % 3 = 1 THEN
            EXECUTE format('UPDATE %I SET n = n + 1000 WHERE id = $1', TG_ARGV[0]) USING (NEW.id + 1) % {KEYS};
        ELSE
            EXECUTE format('DELETE FROM %I WHERE id = $1 AND mod(n, 7) = 0', TG_ARGV[0]) USING (NEW.id + 2) % {KEYS};
        END IF;
    END IF;
    RETURN NULL;
END $$;
-- one of them is meant to run before ours, as far as names can do that
CREATE TRIGGER " first" AFTER INSERT OR UPDATE ON plain FOR EACH ROW EXECUTE FUNCTION meddle('plain');
CREATE TRIGGER " first" AFTER INSERT OR UPDATE ON parted FOR EACH ROW EXECUTE FUNCTION meddle('parted');
"""

State = dict[int, Any]


@pytest.mark.parametrize("table", ["plain", "parted"])
def test_net_changes_of_an_unordered_log_are_right(dsn: str, table: str) -> None:
    dice = random.Random(11)
    reader, writer = open_session(dsn, SessionSettings()), psycopg2.connect(dsn)
    tracked = tracked_txn(reader)
    raw, net = State(), State()
    raw_wrong, net_wrong = 0, list[object]()
    position = snapshot_txn(reader)
    with writer.cursor() as rows:
        for _ in range(TRANSACTIONS):
            for _ in range(dice.randint(1, 4)):
                rows.execute("SAVEPOINT step")
                try:
                    write(rows, dice, table)
                    rows.execute("RELEASE step")
                except psycopg2.Error:
                    rows.execute("ROLLBACK TO step")
            writer.commit()
            found = read_txn(reader, position)
            position = snapshot_txn(reader)
            for row in found:
                raw_wrong += apply(
                    raw, row.old and json.loads(row.old), row.new and json.loads(row.new)
                )
            for change in net_changes(found, tracked, TICK):
                if change.op not in ("insert", "update", "delete") or apply(
                    net, change.old, change.new
                ):
                    net_wrong.append(change)
    writer.close()
    reader.close()
    final = {key: image for key, image in execute(dsn, f"SELECT id, row_to_json(t) FROM {table} t")}
    assert net_wrong == []
    assert net == final
    assert raw_wrong > 50, "in the order of the log it would do as well"


def write(rows: Cursor, dice: random.Random, table: str) -> None:
    """Write to several rows, by one statement."""
    start, kind = dice.randrange(KEYS), dice.random()
    if kind < 0.4:
        rows.execute(
            f"INSERT INTO {table} SELECT g % {KEYS}, %s + g FROM generate_series(%s, %s) g"
            " ON CONFLICT (id) DO UPDATE SET n = excluded.n".replace(f"% {KEYS}", f"%% {KEYS}"),
            [dice.randrange(50), start, start + dice.randint(0, 4)],
        )
    elif kind < 0.8:
        rows.execute(
            f"UPDATE {table} SET n = n + %s WHERE id BETWEEN %s AND %s",
            [dice.randrange(9), start, start + 4],
        )
    elif kind < 0.9:
        rows.execute(f"UPDATE {table} SET id = %s WHERE id = %s", [dice.randrange(KEYS), start])
    else:
        rows.execute(f"DELETE FROM {table} WHERE id = %s", [start])


def apply(state: State, old: Any, new: Any) -> int:
    """Apply a change; return the number of images that contradict the state."""
    wrong = 0
    if old is not None:
        wrong += state.pop(old["id"], None) != old
    if new is not None:
        wrong += new["id"] in state
        state[new["id"]] = new
    return wrong
