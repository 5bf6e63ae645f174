"""
The watched tables, and the random transactions of the writers.
"""

from __future__ import annotations

import random
import threading
import time

import psycopg2
from psycopg2.extensions import cursor

from service.api.roles import Roles
from service.request.arguments import Caller

TABLES = ("teams", "people", "tasks", "notes", "lines", "members", "prices", "slots")
TEAMS, PEOPLE, TASKS = 8, 40, 90

ROLES = Roles({"reader": "oracle_reader"}, "oracle_owner")
READERS = [Caller(None, name, "reader", "realm1") for name in ("ann", "bob")]
OWNER = Caller(None, "olga", "owner", "realm1")

MAKE = """
DO $$ BEGIN
    CREATE ROLE oracle_reader; CREATE ROLE oracle_owner BYPASSRLS;
EXCEPTION WHEN duplicate_object THEN NULL; END $$;
CREATE TABLE teams (id int PRIMARY KEY, name text, region int, score int);
CREATE TABLE people (id int PRIMARY KEY, team int REFERENCES teams ON DELETE CASCADE ON UPDATE CASCADE,
    boss int REFERENCES people ON DELETE SET NULL ON UPDATE CASCADE, name text, age int, spot point);
CREATE TABLE tasks (id int PRIMARY KEY, person int REFERENCES people ON DELETE CASCADE ON UPDATE CASCADE,
    title text, points numeric(8,2), done boolean, due date, at timestamptz, data jsonb);
CREATE TABLE notes (task int REFERENCES tasks ON DELETE CASCADE ON UPDATE CASCADE, n int, body text,
    PRIMARY KEY (task, n));
CREATE TABLE lines (a int, b text);
CREATE TABLE members (who text, team int, PRIMARY KEY (who, team));
CREATE TABLE prices (amount numeric PRIMARY KEY,
    person int REFERENCES people ON DELETE CASCADE ON UPDATE CASCADE, n int, body text);
CREATE TABLE slots (at timestamptz, room char(4), code bytea, n int, title text, weight numeric(6,2),
    price numeric REFERENCES prices ON DELETE CASCADE ON UPDATE CASCADE, PRIMARY KEY (at, room, code));
CREATE INDEX ON people (team); CREATE INDEX ON people (boss); CREATE INDEX ON tasks (person);
CREATE FUNCTION open_tasks(above numeric) RETURNS SETOF tasks STABLE LANGUAGE sql
    AS 'SELECT * FROM tasks WHERE NOT done AND points >= above';
CREATE VIEW crew AS SELECT p.id, p.name, p.age, t.name AS team_name, t.region
    FROM people p JOIN teams t ON t.id = p.team;
COMMENT ON VIEW crew IS '@key id';
ALTER TABLE teams ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON teams TO oracle_reader USING (
    id IN (SELECT team FROM members WHERE who = current_setting('rowcast.authid', true)));
ALTER TABLE tasks ENABLE ROW LEVEL SECURITY;
CREATE POLICY public ON tasks TO oracle_reader USING (points < 80);
GRANT SELECT ON ALL TABLES IN SCHEMA public TO oracle_reader, oracle_owner;
GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO oracle_owner;
"""

FILL = f"""
INSERT INTO teams SELECT i, 't' || i % 5, i % 3, i * 37 % 100 FROM generate_series(1, {TEAMS}) i;
INSERT INTO people SELECT i, i % {TEAMS} + 1, NULLIF(i / 4, 0), 'p' || i % 11, i * 13 % 70
  FROM generate_series(1, {PEOPLE}) i;
INSERT INTO tasks SELECT i, i % {PEOPLE} + 1, 'task ' || i % 7, i * 29 % 100, i % 3 = 0,
    date '2026-01-01' + i % 20 FROM generate_series(1, {TASKS}) i;
INSERT INTO notes SELECT i, 1, 'n' || i FROM generate_series(1, {TASKS}, 2) i;
INSERT INTO lines SELECT i % 4, 'b' || i % 3 FROM generate_series(1, 12) i;
INSERT INTO prices SELECT i, i % {PEOPLE} + 1, i % 7, 'n' || i % 5 FROM generate_series(1, 60) i;
INSERT INTO slots SELECT timestamptz '2026-01-01 00:00+00' + i % 3 * interval '1 us', 'r' || i % 5,
    decode(lpad(to_hex(i * 3), 2, '0'), 'hex'), i % 9, 's' || i % 6, i % 4, i FROM generate_series(1, 60) i;
INSERT INTO members SELECT who, t FROM unnest('{{ann,bob}}'::text[]) who, generate_series(1, 4) t
 WHERE (who = 'ann') = (t < 3);
"""

WRITES = (
    "UPDATE teams SET score = {hundred}, region = {few} WHERE id = {team}",
    "UPDATE teams SET name = 't{few}' WHERE region = {few}",
    "UPDATE people SET team = {team} WHERE id = {person} AND EXISTS (SELECT FROM teams WHERE id = {team})",
    "UPDATE people SET age = {hundred}, name = 'p{few}' WHERE id = {person}",
    "UPDATE people SET boss = (SELECT id FROM people WHERE id = {other}) WHERE id = {person}",
    "UPDATE people SET team = NULL WHERE id = {person}",
    "DELETE FROM people WHERE id = {person}",
    "INSERT INTO people SELECT {person}, id, NULL, 'new', {hundred} FROM teams WHERE id = {team}"
    " ON CONFLICT (id) DO UPDATE SET age = excluded.age",
    "INSERT INTO teams VALUES ({team}, 'new', {few}, {hundred}) ON CONFLICT DO NOTHING",
    "DELETE FROM teams WHERE id = {team}",
    "UPDATE tasks SET points = {hundred} + 0.5, done = NOT done WHERE id = {task}",
    "UPDATE tasks SET points = {hundred}, due = NULL WHERE id BETWEEN {task} AND {task} + 5",
    "UPDATE tasks SET person = {person} WHERE id = {task} AND EXISTS (SELECT FROM people WHERE id = {person})",
    "INSERT INTO tasks SELECT {task}, id, 'new', {hundred}, false, '2026-02-01' FROM people"
    " WHERE id = {person} ON CONFLICT DO NOTHING",
    "DELETE FROM tasks WHERE id = {task}",
    "UPDATE tasks SET id = id + 500 WHERE id = {task} AND NOT EXISTS (SELECT FROM tasks WHERE id = {task} + 500)",
    "UPDATE tasks SET id = id - 500 WHERE id = {task} + 500 AND NOT EXISTS (SELECT FROM tasks WHERE id = {task})",
    "UPDATE people SET id = id + 300 WHERE id = {person} AND NOT EXISTS (SELECT FROM people WHERE id = {person} + 300)",
    "UPDATE people SET id = id - 300 WHERE id = {person} + 300 AND NOT EXISTS (SELECT FROM people WHERE id = {person})",
    "UPDATE people SET spot = point({few}, {hundred}) WHERE id = {person}",
    "UPDATE tasks SET at = timestamptz '2026-01-01 00:00+00' + {hundred} * interval '7 hours', data ="
    " jsonb_build_object('n', {few}, 'tags', jsonb_build_array({hundred}, 'x{few}')) WHERE id % 10 = {few} * 2",
    "UPDATE tasks SET data = NULL, at = NULL WHERE id = {task}",
    "INSERT INTO notes SELECT id, {few}, 'n{hundred}' FROM tasks WHERE id = {task} ON CONFLICT DO NOTHING",
    "UPDATE notes SET body = 'm{few}', n = n + 1 WHERE task = {task} AND n > 1",
    "DELETE FROM notes WHERE task = {task}",
    "INSERT INTO prices SELECT {hundred}, id, {few}, 'n{few}' FROM people WHERE id = {person} ON CONFLICT DO NOTHING",
    # an equal number with another scale, so its text form differs
    "UPDATE prices SET amount = {hundred}.0 WHERE amount = {hundred}",
    "UPDATE prices SET amount = {hundred}.00 WHERE amount = {hundred}",
    "UPDATE prices SET amount = amount + 0.5 WHERE amount = {hundred}"
    " AND NOT EXISTS (SELECT FROM prices WHERE amount = {hundred}.5)",
    "UPDATE prices SET n = {few}, person = (SELECT id FROM people WHERE id = {person}) WHERE amount = {hundred}",
    "DELETE FROM prices WHERE amount = {hundred}",
    "INSERT INTO slots SELECT timestamptz '2026-01-01 00:00+00' + {few} * interval '1 us', 'r{team}',"
    " decode(lpad(to_hex({other}), 2, '0'), 'hex'), {few}, 's{few}', {few}, amount FROM prices"
    " WHERE amount = {hundred} ON CONFLICT DO NOTHING",
    "UPDATE slots SET n = {hundred}, weight = {few} WHERE room = 'r{few}' AND n < {few}",
    "UPDATE slots SET at = at + interval '1 day', room = 'r{team}' WHERE code = decode(lpad(to_hex({other}), 2, '0'), 'hex')",
    "DELETE FROM slots WHERE room = 'r{few}' AND n = {few}",
    "INSERT INTO lines VALUES ({few}, 'b{few}')",
    "UPDATE lines SET b = 'b{few}' WHERE a = {few}",
    "DELETE FROM lines WHERE ctid = (SELECT min(ctid) FROM lines WHERE a = {few})",
)
RARE = (
    "TRUNCATE notes",
    "TRUNCATE lines",
    "DELETE FROM members WHERE who = '{who}' AND team = {team}",
    "INSERT INTO members VALUES ('{who}', {team}) ON CONFLICT DO NOTHING",
    "INSERT INTO members VALUES ('{who}', {team}) ON CONFLICT DO NOTHING",
    "INSERT INTO tasks SELECT g, {person}, 'many', g % 100, false, NULL FROM generate_series({task}, {task} + 30) g"
    " WHERE EXISTS (SELECT FROM people WHERE id = {person}) ON CONFLICT DO NOTHING",
)


def write(dsn: str, seed: int, transactions: int) -> None:
    """Run random transactions: some roll back, some are slow, some roll back to a savepoint."""
    dice = random.Random(seed)
    connection = psycopg2.connect(dsn)
    try:
        with connection.cursor() as rows:
            for _ in range(transactions):
                try:
                    _transaction(rows, dice)
                    connection.rollback() if dice.random() < 0.15 else connection.commit()
                except psycopg2.Error:
                    connection.rollback()
    finally:
        connection.close()


def _transaction(rows: cursor, dice: random.Random) -> None:
    for _ in range(dice.randint(1, 4)):
        taken_back = dice.random() < 0.1
        if taken_back:
            rows.execute("SAVEPOINT s")
        rows.execute(_statement(dice))
        if taken_back:
            rows.execute("ROLLBACK TO s")
        time.sleep(dice.choice((0, 0, 0, 0.002, 0.01)))


def _statement(dice: random.Random) -> str:
    text = dice.choice(RARE if dice.random() < 0.04 else WRITES)
    return text.format(
        team=dice.randint(1, TEAMS + 2),
        person=dice.randint(1, PEOPLE + 8),
        other=dice.randint(1, PEOPLE),
        task=dice.randint(1, TASKS + 15),
        hundred=dice.randint(0, 99),
        few=dice.randint(0, 4),
        who=dice.choice(("ann", "bob")),
    )


class Writers:
    """Several writers, each of which runs a burst of transactions in its own thread."""

    def __init__(self, dsn: str, seed: int, writers: int, transactions: int) -> None:
        self._threads = [
            threading.Thread(target=write, args=(dsn, seed * 100 + n, transactions), daemon=True)
            for n in range(writers)
        ]
        for each in self._threads:
            each.start()

    @property
    def busy(self) -> bool:
        """Return whether a writer is still running."""
        return any(each.is_alive() for each in self._threads)
