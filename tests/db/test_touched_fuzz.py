"""
Rows updated by the touched keys equal those of a new query, whatever writers do meanwhile.

Deliberately wrong variants run beside it and must fail; otherwise the writers would prove nothing.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import cursor
from twisted.python.failure import Failure

from schema.changes import install
from service.changes import cycle, refresh
from service.changes.cycle import NewState, QueryTask, cycle_txn, result_txn
from service.changes.delta import FoundRows, Window
from service.changes.invalidation import WatchedRuns, touched_txn
from service.changes.log import read_txn
from service.changes.positions import SnapshotPosition
from service.changes.refresh import by_keys_txn
from service.changes.touched import RowChange, row_change
from tests.amounts import amount
from tests.db.captured import connect
from tests.db.kept_queries import KeptQuery, Reader
from tests.db.ticks import snapshot_txn

SECONDS, LEAST, WRITERS, SEED = amount(1.5, 14.0), amount(200, 1000), 5, 20
LEAST_BY_KEYS = amount(100, 500)
PARENTS, CHILDREN, GRANDS = 120, 300, 500
SCHEMA = f"""
CREATE TABLE owners (id int PRIMARY KEY, name text, rank int);
CREATE TABLE parents (id int PRIMARY KEY, owner int REFERENCES owners ON DELETE SET NULL,
    region int, name text, score int);
CREATE TABLE children (id int PRIMARY KEY,
    parent int REFERENCES parents ON DELETE CASCADE ON UPDATE CASCADE, amount int);
CREATE TABLE grands (id int PRIMARY KEY,
    child int REFERENCES children ON DELETE CASCADE ON UPDATE CASCADE, v int);
CREATE TABLE tags (id int PRIMARY KEY, word text);
CREATE TABLE tagged (parent int REFERENCES parents ON DELETE CASCADE ON UPDATE CASCADE,
    tag int REFERENCES tags ON DELETE CASCADE, PRIMARY KEY (parent, tag));
CREATE TABLE members (who text, region int, PRIMARY KEY (who, region));
CREATE INDEX ON parents (owner); CREATE INDEX ON children (parent); CREATE INDEX ON grands (child);
CREATE INDEX ON tagged (tag);
INSERT INTO owners SELECT i, 'o' || i, i * 7 % 10 FROM generate_series(1, 12) i;
INSERT INTO parents SELECT i, i % 12 + 1, i % 5, 'n' || i, i * 37 % 100 FROM generate_series(1, {PARENTS}) i;
INSERT INTO children SELECT i, i % {PARENTS} + 1, i * 13 % 100 FROM generate_series(1, {CHILDREN}) i;
INSERT INTO grands SELECT i, i % {CHILDREN} + 1, i * 7 % 100 FROM generate_series(1, {GRANDS}) i;
INSERT INTO tags SELECT i, 'w' || i FROM generate_series(1, 6) i;
INSERT INTO tagged SELECT DISTINCT i % {PARENTS} + 1, i % 6 + 1 FROM generate_series(1, 200) i;
INSERT INTO members VALUES ('f_ann', 0), ('f_ann', 1), ('f_bob', 1), ('f_bob', 2);
CREATE ROLE f_ann; CREATE ROLE f_bob;
GRANT SELECT ON owners, parents, children, grands, tags, tagged, members TO f_ann, f_bob;
ALTER TABLE parents ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON parents FOR SELECT TO f_ann, f_bob
    USING (region IN (SELECT region FROM members WHERE who = current_user));
ALTER TABLE children ENABLE ROW LEVEL SECURITY;
CREATE POLICY c ON children FOR SELECT TO f_ann, f_bob USING (amount < 80);
{install()}
SELECT rowcast.track(t::regclass) FROM unnest(ARRAY['owners', 'parents', 'children', 'grands', 'tags', 'tagged', 'members']) t;
"""

DEEP = {
    "children": {"where": {"amount": {"gt": 20}}, "embed": {"grands": {"where": {"v": {"gt": 20}}}}}
}
QUERIES = [
    ("parents", {"where": {"score": {"gte": 30}}, "embed": DEEP}),
    *[("parents", {"where": {"region": at}, "embed": {"owners": True, "tags": True}}) for at in range(3)],
    ("parents", {"where": {"children": {"amount": {"gt": 60}}}}),
    ("parents", {"embed": {"children": {"inner": True, "where": {"grands": {"v": {"lt": 30}}}}}}),
    ("parents", {"select": ["id", "name", "of:owners.name"], "where": {"owners": {"rank": {"gt": 4}}}}),
    ("parents", {"where": {"region": [0, 1, 2]}, "order": "-score", "limit": 10}),
    ("parents", {"order": ["owners.rank", "-score"], "limit": 10, "embed": {"children": True}}),
    ("children", {"order": "amount", "limit": 150, "embed": {"parents": {"embed": {"owners": True}}}}),
    ("parents", {"embed": {"children": {"measures": {"n": {"count": "*"}, "s": {"sum": "amount"}}, "spread": True}},
                 "where": {"children.n": {"gt": 1}}, "order": ["-children.s"], "limit": 10}),
    ("tagged", {"embed": {"parents": True, "tags": True}}),
    ("parents", {"group": ["region"], "measures": {"n": {"count": "*"}, "sum": {"sum": "score"}}}),
    ("parents", {"group": ["region", "owner"], "measures": {"n": {"count": "*"}, "r": {"max": "owners.rank"}},
                 "having": {"n": {"gt": 1}}}),
    ("children", {"group": ["parent"], "measures": {"sum": {"sum": "amount"}}, "where": {"parents": {"score": {"gt": 40}}}}),
    ("children", {"group": ["parent"], "measures": {"sum": {"sum": "amount"}, "n": {"count": "*"}},
                  "having": {"n": {"gt": 0}}, "order": ["-sum"], "limit": 10}),
    ("parents", {"group": ["region", "owner"], "measures": {"n": {"count": "*"}}, "limit": 4}),
    ("grands", {"measures": {"n": {"count": "*"}, "sum": {"sum": "v"}}, "where": {"v": {"gt": 50}}}),
    ("owners", {"embed": {"parents": {"measures": {"n": {"count": "*"}}, "group": ["region"]}}}),
]  # fmt: skip


def write(dsn: str, seed: int, stop: threading.Event) -> None:
    """Run random transactions until stopped: some roll back, some are slow."""
    dice = random.Random(seed)
    connection = connect(dsn)
    with connection.cursor() as rows:
        while not stop.is_set():
            try:
                for _ in range(dice.randint(1, 4)):
                    _some(rows, dice)
                    time.sleep(dice.choice((0, 0, 0.002, 0.02)))
                if dice.random() < 0.15:
                    connection.rollback()
                else:
                    connection.commit()
            except psycopg2.Error:
                connection.rollback()
    connection.close()


def _some(rows: cursor, dice: random.Random) -> None:
    n = dice.randint
    parent, child, grand = n(1, PARENTS + 20), n(1, CHILDREN + 40), n(1, GRANDS + 50)
    region, owner, tag, hundred = n(0, 4), n(1, 13), n(1, 7), n(0, 99)
    who = dice.choice(("f_ann", "f_bob"))
    (text, values) = dice.choice(
        [
            ("UPDATE parents SET score = %s, region = %s WHERE id = %s", (hundred, region, parent)),
            ("UPDATE parents SET owner = (SELECT id FROM owners WHERE id = %s) WHERE id = %s", (owner, parent)),
            ("UPDATE parents SET region = NULL WHERE id = %s", (parent,)),
            ("UPDATE owners SET rank = %s WHERE id = %s", (hundred % 10, owner)),
            ("DELETE FROM owners WHERE id = %s", (owner,)),
            ("INSERT INTO owners VALUES (%s, 'new', 5) ON CONFLICT DO NOTHING", (owner,)),
            ("UPDATE children SET parent = %s, amount = %s WHERE id = %s AND EXISTS (SELECT FROM parents WHERE id = %s)", (parent, hundred, child, parent)),
            ("UPDATE grands SET child = %s, v = %s WHERE id = %s AND EXISTS (SELECT FROM children WHERE id = %s)", (child, hundred, grand, child)),
            ("DELETE FROM parents WHERE id = %s", (parent,)),
            ("INSERT INTO parents VALUES (%s, NULL, %s, 'x', %s) ON CONFLICT DO NOTHING", (parent, region, hundred)),
            ("INSERT INTO children SELECT %s, id, %s FROM parents WHERE id = %s ON CONFLICT DO NOTHING", (child, hundred, parent)),
            ("INSERT INTO grands SELECT %s, id, %s FROM children WHERE id = %s ON CONFLICT DO NOTHING", (grand, hundred, child)),
            ("UPDATE parents SET id = id + 1000 WHERE id = %s AND NOT EXISTS (SELECT FROM parents WHERE id = %s)", (parent, parent + 1000)),
            ("UPDATE children SET id = id + 1000 WHERE id = %s AND NOT EXISTS (SELECT FROM children WHERE id = %s)", (child, child + 1000)),
            ("DELETE FROM children WHERE id = %s", (child,)),
            ("INSERT INTO tagged SELECT p.id, t.id FROM parents p, tags t WHERE p.id = %s AND t.id = %s ON CONFLICT DO NOTHING", (parent, tag)),
            ("DELETE FROM tagged WHERE parent = %s", (parent,)),
            ("UPDATE tags SET word = %s WHERE id = %s", (f"w{hundred}", tag)),
            *[("DELETE FROM members WHERE who = %s AND region = %s", (who, region))] * (hundred < 4),
            *[("INSERT INTO members VALUES (%s, %s) ON CONFLICT DO NOTHING", (who, region))] * (hundred < 4),
        ]
    )  # fmt: skip
    rows.execute(text, values)


class Keeper:
    """
    Queries whose rows cycles update.

    Args:
        dsn: DSN of the database.
    """

    def __init__(self, dsn: str) -> None:
        self.reader = Reader(dsn)
        self.kept = [
            KeptQuery(self.reader, relation, role, query)
            for relation, query in QUERIES
            for role in ("", "f_ann", "f_bob")
        ]
        assert all(kept.run.keyed is not None for kept in self.kept)
        self.watched = WatchedRuns()
        self.position: SnapshotPosition | None = None
        self.wrong: list[tuple[str, str]] = []
        self.compared = 0

    def step(self) -> None:
        """Run a cycle, and compare each query with a new one that the same cycle runs."""
        tasks = [kept.task for kept in self.kept]
        tasks += [QueryTask(kept.plain, None, True) for kept in self.kept]
        found = self._cycle(tasks)
        fresh = found[len(self.kept) :]
        for kept, new, right in zip(self.kept, found, fresh, strict=False):
            kept.take(new)
            self.compared += 1
            if kept.differs(right):
                self.wrong.append((kept.role, str(kept.query)))
                kept.state = None  # so that the next cycle reads all rows

    def _cycle(self, tasks: Sequence[QueryTask]) -> Sequence[NewState | Failure | None]:
        asking = [task for task in tasks if task.asks]
        outcome = cycle_txn(
            self.reader.connection, self.watched, asking, self.position, budget=math.inf
        )
        for kept in self.kept:
            self.watched.drop(kept.plain)
        assert outcome is not None
        self.position = outcome.position
        assert not outcome.late
        return [outcome.results.get(task.run) for task in tasks]


class WrongKeeper(Keeper):
    """
    Queries whose rows are updated with a deliberate error.

    Args:
        dsn: DSN of the database.
        change: Alters the changes of a cycle.
        late: Whether rows are read in a later snapshot than the changes.
        blind: Whether tables that only policies read are ignored.
        flag: Whether it is known if a window has all matching rows.
    """

    def __init__(
        self,
        dsn: str,
        change: Callable[[RowChange], RowChange] = lambda change: change,
        late: bool = False,
        blind: bool = False,
        flag: bool = True,
    ) -> None:
        super().__init__(dsn)
        self.change, self.late, self.flag = change, late, flag
        for kept in self.kept:
            keyed = kept.run.keyed
            if blind and keyed is not None:
                reads = frozenset(kept.run.reads & keyed.keyed.keys())
                kept.run = replace(
                    kept.run, keyed=replace(keyed, all_rows=frozenset()), reads=reads
                )

    def _cycle(self, tasks: Sequence[QueryTask]) -> Sequence[NewState | Failure | None]:
        connection = self.reader.connection
        for task in tasks:
            state = task.before
            if state is not None:
                self.watched.keep(task.run, state)
                if state.window is not None and not self.flag:
                    state.window = Window(state.window.keys, True)
        with self.reader.snapshot():
            now = snapshot_txn(connection)
            changes = []
            if self.position is not None:
                rows = read_txn(connection, self.position.snapshot)
                changes = [self.change(row_change(row)) for row in rows]
            if not self.late:
                found = self._found(tasks, changes)
        self.position = SnapshotPosition(0, now)
        if self.late:
            time.sleep(0.005)
            with self.reader.snapshot():
                found = self._found(tasks, changes)
        return found

    def _found(
        self, tasks: Sequence[QueryTask], changes: Sequence[RowChange]
    ) -> list[NewState | Failure | None]:
        connection = self.reader.connection
        touched = touched_txn(connection, self.watched, changes)
        return [result_txn(connection, task, touched) for task in tasks]


@pytest.fixture
def start_writers(dsn: str) -> Iterator[Callable[[], None]]:
    """Yield a function that starts the writers, which run until the end of the test."""
    stop = threading.Event()
    threads = [
        threading.Thread(target=write, args=(dsn, SEED * 100 + number, stop))
        for number in range(WRITERS)
    ]

    def start() -> None:
        for thread in threads:
            thread.start()

    yield start
    stop.set()
    for thread in threads:
        if thread.ident is not None:
            thread.join()


def test_rows_updated_by_keys_equal_those_of_a_new_query(
    dsn: str, start_writers: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refresh, "LEAST_SPARE", 2)
    monkeypatch.setattr(refresh, "MOST_SPARE", 2)
    # On a busy machine some reads by key are slow, after which all rows are read for a while.
    monkeypatch.setattr(refresh, "SLOW", 60.0)
    right, by_keys = Keeper(dsn), Counter[bool]()

    def counted(*args: Any) -> FoundRows | None:
        found = by_keys_txn(*args)
        by_keys[found is not None] += 1
        return found

    monkeypatch.setattr(cycle, "by_keys_txn", counted)
    wrong = {
        "rows read later than the changes": WrongKeeper(dsn, late=True),
        "images after the change alone": WrongKeeper(dsn, lambda each: replace(each, old=None)),
        "windows taken for all there is": WrongKeeper(dsn, flag=False),
        "tables of policies left out": WrongKeeper(dsn, blind=True),
    }
    start_writers()
    end = time.monotonic() + SECONDS
    # On a loaded machine the writers change more rows between two cycles than are read by keys.
    while time.monotonic() < end or right.compared < LEAST or by_keys[True] < LEAST_BY_KEYS:
        right.step()
    assert right.wrong == []
    for name, way in wrong.items():
        end = time.monotonic() + 40
        while not way.wrong:
            way.step()
            assert time.monotonic() < end, f"{name}: not found to be wrong in {way.compared}"
