"""
Rows that were found together: a statement for all of them, and never an answer that is stale.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar
from weakref import ref

import psycopg2
import pytest
import pytest_twisted
from twistar.exceptions import ClassNotRegisteredError
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    ensureDeferred,
    gatherResults,
    maybeDeferred,
)
from twisted.internet.task import Clock

from service.db.database import Database
from service.db.introspect import catalog_txn
from service.db.session import identity_of
from service.errors import InvalidArgument
from service.models import prefetch as together
from service.models.model import Model
from service.models.prefetch import GROUP_SIZE
from service.models.relationships import preload
from tests.conftest import execute
from tests.db.relay import Relay
from tests.db.rooms import failure_of, pause
from tests.db.served import load, served

TABLES = """
DROP SCHEMA public CASCADE; CREATE SCHEMA public;
CREATE TABLE makers (country text, name text, PRIMARY KEY (country, name));
CREATE TABLE lines (id int PRIMARY KEY, name text, parent_id int REFERENCES lines,
    country text, maker text, FOREIGN KEY (country, maker) REFERENCES makers);
CREATE TABLE plans (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), line_id int UNIQUE
    REFERENCES lines, title text);
CREATE TABLE stops (id int PRIMARY KEY, line_id int REFERENCES lines, name text);
CREATE TABLE words (id text PRIMARY KEY);
CREATE TABLE lines_words (line_id int, word_id text);
CREATE TABLE notes (id int PRIMARY KEY, about_type text, about_id text);
INSERT INTO makers VALUES ('de', 'Abt'), ('fr', 'Abt');
INSERT INTO lines SELECT i, 'line ' || i, nullif(i / 2, 0), CASE i % 2 WHEN 0 THEN 'de' ELSE 'fr' END,
    'Abt' FROM generate_series(1, 6) i;
INSERT INTO plans (line_id, title) SELECT i, 'plan ' || i FROM generate_series(1, 5) i;
INSERT INTO stops SELECT i, 1 + i % 3, 'stop ' || i FROM generate_series(1, 9) i;
INSERT INTO words VALUES ('fast'), ('slow');
INSERT INTO lines_words VALUES (1, 'fast'), (1, 'fast'), (1, 'slow'), (3, 'slow');
INSERT INTO notes VALUES (1, 'Line', '1'), (2, 'Line', '2'), (3, 'Word', 'fast'), (4, NULL, NULL),
    (5, 'Line', 'nonsense'), (6, 'Nobody', '1');
"""


class Maker(Model):
    """Somebody, known by country and name."""

    TABLENAME = "makers"
    HASMANY: ClassVar = [
        {"name": "lines", "foreign_key": ["country", "maker"]},
    ]


class Line(Model):
    """A line with stops, one plan, words, notes, a maker, and a line above it."""

    TABLENAME = "lines"
    BELONGSTO: ClassVar = [
        {"name": "parent", "class_name": "line"},
        {"name": "made_by", "class_name": "Maker", "association_foreign_key": ["country", "maker"]},
    ]
    HASMANY: ClassVar = [
        "stops",
        {"name": "branches", "class_name": "line", "foreign_key": "parent_id"},
        {"name": "notes", "as": "about"},
    ]
    HASONE: ClassVar = ["plan"]
    HABTM: ClassVar = [{"name": "words", "join_table": "lines_words"}]


class Plan(Model):
    """Of a line."""

    TABLENAME = "plans"
    BELONGSTO: ClassVar = ["line"]


class Stop(Model):
    """On a line."""

    TABLENAME = "stops"
    BELONGSTO: ClassVar = ["line"]


class Word(Model):
    """For many lines."""

    TABLENAME = "words"
    HABTM: ClassVar = [{"name": "lines", "join_table": "lines_words"}]


class Note(Model):
    """About anything."""

    TABLENAME = "notes"
    BELONGSTO: ClassVar = [{"name": "about", "polymorphic": True}]


MODELS = (Maker, Line, Plan, Stop, Word, Note)

Count = Callable[[], int]


@pytest.fixture(autouse=True)
def tables(dsn: str) -> None:
    execute(dsn, TABLES)


@asynccontextmanager
async def counted(dsn: str) -> AsyncIterator[tuple[Database, Count]]:
    """Serve the models on one connection; gives what tells the statements since it was asked."""
    with Relay(dsn) as relay:
        async with served(relay.dsn, *MODELS, most=2) as database:
            database.reactor = Clock()  # on which what was brought is good for as long as it takes
            await Word.find("fast")
            seen = len(relay.statements)

            def since() -> int:
                nonlocal seen
                before, seen = seen, len(relay.statements)
                return seen - before

            yield database, since


async def each(rows: list[Any], name: str) -> list[Any]:
    """Ask one row after the other."""
    return [await getattr(row, name).get() for row in rows]


async def all_at_once(rows: list[Any], name: str) -> list[Any]:
    """Ask all rows before any has answered."""
    return await gatherResults([getattr(row, name).get() for row in rows])


@pytest.mark.parametrize("ask", [each, all_at_once])
@pytest_twisted.ensureDeferred
async def test_one_statement_for_all(
    dsn: str, ask: Callable[[list[Any], str], Awaitable[list[Any]]]
) -> None:
    """Every kind of relationship gives each row what it gives a row alone, in one statement."""
    async with counted(dsn) as (_, since):
        for model, names in {
            Line: ["parent", "made_by", "stops", "branches", "notes", "plan", "words"],
            Maker: ["lines"],
            Word: ["lines"],
            Stop: ["line"],
            Plan: ["line"],
        }.items():
            keys = model.meta().key
            rows = await model.find(orderby=keys)
            alone = [await model.find(row.key) for row in rows]
            for name in names:
                since()
                found = await ask(rows, name)
                assert since() == 1, name
                expected = [await getattr(row, name).get() for row in alone]
                for mine, theirs in zip(found, expected, strict=True):
                    if isinstance(theirs, list):
                        assert len(mine) == len(theirs)
                        assert set(mine) == set(theirs)
                    else:
                        assert mine == theirs
        assert [len(lines) for lines in await ask(await Word.find(orderby="id"), "lines")] == [1, 2]


@pytest_twisted.ensureDeferred
async def test_of_many_kinds(dsn: str) -> None:
    """A statement for each kind; what points nowhere harms nobody but itself."""
    async with counted(dsn) as (_, since):
        notes = await Note.find(orderby="id")
        since()
        found = await each(notes[:4], "about")
        assert [type(about) for about in found] == [Line, Line, Word, type(None)]
        assert since() == 2
        error = await failure_of(maybeDeferred(lambda: notes[4].about.get()))
        assert isinstance(error, InvalidArgument)
        error = await failure_of(maybeDeferred(lambda: notes[5].about.get()))
        assert isinstance(error, ClassNotRegisteredError)
        assert await notes[0].about.get() == found[0]


@pytest_twisted.ensureDeferred
async def test_from_one_to_the_next(dsn: str) -> None:
    """What was brought together knows each other, too, however one walks."""
    async with counted(dsn) as (_, since):
        stops = await Stop.find(orderby="id")
        since()
        names = []
        for stop in stops:
            line = await stop.line.get()
            plan = await line.plan.get()
            for branch in await line.branches.get():
                names.append((plan.title, len(await branch.words.get())))
        assert len(names) == 15
        assert since() == 4


@pytest_twisted.ensureDeferred
async def test_objects_are_ones_own(dsn: str) -> None:
    """Rows that are related to the same one get an object each, as ever, and so does each call."""
    async with counted(dsn) as (_, since):
        first, second = (await Stop.find(where=["line_id = 1"], orderby="id"))[:2]
        since()
        lines = [await first.line.get(), await second.line.get(), await first.line.get()]
        assert since() == 1
        lines[0].name = "changed"
        assert [line.name for line in lines] == ["changed", "line 1", "line 1"]
        await lines[0].words.get()
        since()
        assert len(await lines[2].words.get()) == 2
        assert since() == 0


@pytest_twisted.ensureDeferred
async def test_conditions_ask_by_themselves(dsn: str) -> None:
    """Arguments of `find` are for one row."""
    async with counted(dsn) as (_, since):
        lines = await Line.find(orderby="id")
        await lines[0].stops.get()
        since()
        assert len(await lines[1].stops.get(where=["name = ?", "stop 4"])) == 1
        assert (await lines[1].stops.get(limit=1)).line_id == 2
        assert len(await lines[0].words.get(join_where=["word_id = ?", "slow"])) == 1
        assert since() == 3


@pytest_twisted.ensureDeferred
async def test_own_writes_are_seen(dsn: str) -> None:
    """Whatever the caller has sent, or waited for, what comes after sees it."""
    async with counted(dsn) as (database, since):
        lines = await Line.find(orderby="id")
        assert len(await lines[0].stops.get()) == 3
        saving = Stop(id=10, line_id=2).save()
        await lines[0].stops.get()
        await saving
        assert len(await lines[1].stops.get()) == 4
        await database.statement("DELETE FROM stops WHERE line_id = 3", fetch=False)
        assert await lines[2].stops.get() == []
        async with database.transaction():
            await lines[2].stops.set(await lines[0].stops.get())
            assert len(await lines[2].stops.get()) == 3
        assert await lines[0].stops.get() == []
        since()
        await each(lines, "stops")
        assert since() == 0


@pytest_twisted.ensureDeferred
async def test_no_transaction_answers_for_another(dsn: str) -> None:
    """Neither from before it or outside, nor from what was rolled back."""
    async with counted(dsn) as (database, since):
        lines = await Line.find(orderby="id")
        await lines[0].stops.get()
        execute(dsn, "DELETE FROM stops WHERE id IN (1, 2)")
        async with database.transaction() as level:
            assert [len(stops) for stops in await each(lines[:3], "stops")] == [3, 2, 2]
            since()
            with pytest.raises(ZeroDivisionError):
                await _cleared_in_vain(database, lines[1])
            assert len(await lines[1].stops.get()) == 2
            since()
            await level.run(lambda connection: connection.command("DELETE FROM stops"))
            assert await lines[1].stops.get() == []
            assert since() == 2
            await lines[2].stops.get()
            assert since() == 0
        assert await lines[0].stops.get() == []


@pytest_twisted.ensureDeferred
async def test_a_commit_is_seen(dsn: str) -> None:
    """What one task of a caller commits, the others see, though they asked after it was written."""
    async with counted(dsn) as (database, _):
        line = (await Line.find(orderby="id"))[0]
        written, asked = Deferred[None](), Deferred[None]()

        async def writes() -> None:
            async with database.transaction():
                await database.statement("DELETE FROM stops WHERE line_id = 1", fetch=False)
                written.callback(None)
                await asked

        writing = ensureDeferred(writes())
        await written
        assert len(await line.stops.get()) == 3
        asked.callback(None)
        await writing
        assert await line.stops.get() == []


@pytest_twisted.ensureDeferred
async def test_a_transaction_has_its_own_caller(dsn: str) -> None:
    """Whoever speaks in a transaction does so as the one who began it."""
    async with counted(dsn) as (database, _):
        line = (await Line.find(orderby="id"))[0]
        async with database.transaction():
            with database.identity(identity_of("", {})):
                assert len(await line.stops.get()) == 3
                await database.statement("DELETE FROM stops", fetch=False)
                assert await line.stops.get() == []


async def _cleared_in_vain(database: Database, line: Line) -> None:
    async with database.transaction():
        assert len(await line.stops.get()) == 2
        await line.stops.clear()
        assert await line.stops.get() == []
        raise ZeroDivisionError


@pytest_twisted.ensureDeferred
async def test_no_caller_answers_for_another(dsn: str) -> None:
    """What one may see, and has written, is not what another one may and has."""
    execute(
        dsn,
        "DROP ROLE IF EXISTS rider; CREATE ROLE rider; GRANT USAGE ON SCHEMA public TO rider; GRANT SELECT ON stops, lines TO rider;"
        " ALTER TABLE stops ENABLE ROW LEVEL SECURITY;"
        " CREATE POLICY few ON stops TO rider USING (id < 3)",
    )
    async with counted(dsn) as (database, _):
        lines = await Line.find(orderby="id")
        assert [len(stops) for stops in await each(lines[:3], "stops")] == [3, 3, 3]
        with database.identity(identity_of("rider", {})):
            assert [len(stops) for stops in await each(lines[:3], "stops")] == [0, 1, 1]
        assert [len(stops) for stops in await each(lines[:3], "stops")] == [3, 3, 3]
    execute(dsn, "DROP OWNED BY rider; DROP ROLE rider")


@pytest_twisted.ensureDeferred
async def test_what_others_change(dsn: str) -> None:
    """What was brought is good for a second, and let go of then."""
    async with counted(dsn) as (database, since):
        clock = database.reactor = Clock()
        lines = await Line.find(orderby="id")
        await each(lines, "stops")
        execute(dsn, "DELETE FROM stops")
        since()
        clock.advance(together.MAX_AGE / 2)
        assert len(await lines[1].stops.get()) == 3
        clock.advance(together.MAX_AGE / 2)
        assert await each(lines, "stops") == [[]] * 6
        assert since() == 1
        assert len(clock.getDelayedCalls()) == 1


@pytest_twisted.ensureDeferred
async def test_keys_that_are_not_saved(dsn: str) -> None:
    """A row is asked for what it says now; what another one says, unsaved, is its own affair."""
    async with counted(dsn) as (_, since):
        stops = await Stop.find(orderby="id")
        await each(stops, "line")
        stops[0].line_id = 5
        stops[1].line_id = "no number"
        stops[2].line_id = None
        since()
        assert (await stops[0].line.get()).id == 5
        assert await stops[2].line.get() is None
        assert since() == 1
        assert (await stops[3].line.get()).id == 2
        assert (await failure_of(stops[1].line.get())).args
        assert since() == 0
        await stops[3].refresh()
        assert (await stops[3].line.get()).id == 2
        await stops[4].line.clear()
        assert await stops[4].line.get() is None


@pytest_twisted.ensureDeferred
async def test_many_rows(dsn: str) -> None:
    """A statement brings so much at most, and rows that have too many ask for themselves."""
    execute(
        dsn,
        "INSERT INTO lines SELECT i, 'more', 1 FROM generate_series(7, 1206) i;"
        " INSERT INTO stops SELECT i, 7 + i / 50, '' FROM generate_series(10, 20000) i",
    )
    async with counted(dsn) as (_, since):
        lines = await Line.find(orderby="id")
        since()
        await each(lines, "made_by")
        assert since() == 1
        await each(lines, "plan")
        assert since() == -(-1206 // GROUP_SIZE)
        stops = await each(lines, "stops")
        assert sum(map(len, stops)) == 20000
        assert since() <= 8
        roots = await Line.find(where=["id < 3"], orderby="id")
        execute(dsn, "UPDATE stops SET line_id = 1 WHERE line_id <> 2")
        since()
        assert [len(found) for found in await each(roots, "stops")] == [19997, 3]
        assert since() == 3


@pytest_twisted.ensureDeferred
async def test_rows_that_are_written_one_by_one(dsn: str) -> None:
    """Where each row's answer is followed by a write, little is brought in vain."""
    execute(dsn, "INSERT INTO lines SELECT i, 'more', 1 FROM generate_series(7, 400) i")
    with Relay(dsn) as relay:
        async with served(relay.dsn, *MODELS, most=2) as database:
            database.reactor = Clock()
            lines = await Line.find(orderby="id")
            for line in lines[:20]:
                await line.stops.get()
                await database.statement("UPDATE stops SET name = 'x' WHERE id = 1", fetch=False)
            sent = [each for each in relay.statements if b'"stops" AS other' in each]
            assert all(len(each) < len(sent[0]) / 2 for each in sent[1:])
            assert len(sent[-1]) < 500
            since = len(sent)
            await each(lines, "stops")
            sent = [each for each in relay.statements if b'"stops" AS other' in each]
            assert len(sent) - since < 12


@pytest_twisted.ensureDeferred
async def test_who_goes_and_who_stays(dsn: str) -> None:
    """A caller that is cancelled stops the statement if nobody else waits for it."""
    async with counted(dsn) as (_, since):
        lines = await Line.find(orderby="id")
        first, second = lines[0].stops.get(), lines[1].stops.get()
        first.cancel()
        assert isinstance(await failure_of(first), CancelledError)
        assert len(await second) == 3
        assert since() == 2
        third = lines[2].words.get()
        third.cancel()
        assert isinstance(await failure_of(third), CancelledError)
        assert len(await lines[2].words.get()) == 1
        execute(dsn, "DROP TABLE lines_words")
        for each in await gatherResults([failure_of_words(line) for line in lines]):
            assert isinstance(each, psycopg2.errors.UndefinedTable)


@pytest_twisted.ensureDeferred
async def test_one_who_was_told_sends_the_others_away(dsn: str) -> None:
    """Whoever fails first may cancel those that wait for the same statement."""
    async with counted(dsn) as _:
        lines = await Line.find(orderby="id")
        execute(dsn, "DROP TABLE stops")
        first, second, third = (line.stops.get() for line in lines[:3])
        seen = failure_of(first.addErrback(lambda reason: second.cancel() or reason))
        last = failure_of(third)
        assert isinstance(await seen, psycopg2.errors.UndefinedTable)
        assert isinstance(await failure_of(second), CancelledError)
        assert isinstance(await last, psycopg2.errors.UndefinedTable)


def failure_of_words(line: Line) -> Any:
    return line.words.get(where=["true"]).addErrback(lambda reason: reason.value)


@pytest_twisted.ensureDeferred
async def test_nobody_is_kept(dsn: str) -> None:
    """Rows, and what was brought for them, go when the last who holds them does."""
    async with counted(dsn) as _:
        lines = await Line.find(orderby="id")
        stops = await each(lines, "stops")
        kept, gone = ref(lines[0]), ref(lines[1])
        brought = ref(next(iter(lines[0]._group._prefetched.values())))
        stop = ref(stops[0][0])
        await pause(0)  # until nothing on the stack has them any more
        del lines[1:], stops
        gc.collect()
        assert gone() is None
        assert stop() is None
        assert kept() is lines[0]
        del lines[0]
        gc.collect()
        assert kept() is None
        assert brought() is None


@pytest_twisted.ensureDeferred
async def test_keys_of_several_columns(dsn: str) -> None:
    """They can be set and cleared like others."""
    async with counted(dsn):
        makers, lines = await Maker.find(orderby="country"), await Line.find(orderby="id")
        await makers[0].lines.set(lines[:2])
        assert await lines[0].made_by.get() == makers[0]
        assert await makers[0].lines.count() == 2
        await makers[0].lines.clear()
        assert await each(makers, "lines") == [[], [lines[2], lines[4]]]
        await lines[1].made_by.set(makers[1])
        assert (await lines[1].refresh()).country == "fr"
        await lines[1].made_by.clear()
        assert await lines[1].made_by.get() is None


@pytest_twisted.ensureDeferred
async def test_objects_from_anywhere(dsn: str) -> None:
    """`preload` does it for objects that were not found together."""
    async with counted(dsn) as (_, since):
        lines = [await Line.find(key) for key in (1, 2, 3)]
        since()
        words = await preload(lines, "words")
        assert [{word.id for word in found} for found in words] == [
            {"fast", "slow"},
            set(),
            {"slow"},
        ]
        assert [len(stops) for stops in await each(lines, "stops")] == [3, 3, 3]
        assert since() == 2


@pytest_twisted.ensureDeferred
async def test_generated_models(dsn: str) -> None:
    """A generated model has what its foreign keys say, and asks for it once for all rows."""
    with Relay(dsn) as relay:
        async with served(relay.dsn, most=1) as database:
            models = await load(database, ())
            catalog = await database.run(catalog_txn, ("public",), 1)
            line = models.of(catalog.relation("public", "lines"))
            assert set(line.RELATIONSHIP_CACHE) == {"parent", "makers", "plans", "stops", "lines"}
            lines = await line.find(orderby="id")
            seen = len(relay.statements)
            assert [line and line.id for line in await each(lines, "parent")] == [
                None,
                1,
                1,
                2,
                2,
                3,
            ]
            assert [plan and plan.title for plan in await each(lines, "plans")][4:] == [
                "plan 5",
                None,
            ]
            assert [len(stops) for stops in await each(lines, "stops")] == [3, 3, 3, 0, 0, 0]
            makers = await each(lines, "makers")
            assert {maker.key for maker in makers} == {("de", "Abt"), ("fr", "Abt")}
            assert len(await makers[0].lines.get()) == 3
            assert len(relay.statements) == seen + 5
