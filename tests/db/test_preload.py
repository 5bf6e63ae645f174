"""
`preload`: one statement per relationship and level, for the requested relationships only.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar
from weakref import ref

import psycopg2
import pytest
import pytest_twisted
from twistar.exceptions import ClassNotRegisteredError, ReferenceNotSavedError
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, gatherResults

from service.db.database import Database
from service.db.introspect import catalog_txn
from service.db.session_settings import identity_of
from service.errors import InvalidArgument
from service.models.model import Model
from service.models.relationships import preload
from tests.conftest import execute
from tests.db.relay import Relay
from tests.db.served import load, served
from tests.deferreds import failure_of

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
    """A model whose key is country and name."""

    TABLENAME = "makers"
    HASMANY: ClassVar = [
        {"name": "lines", "foreign_key": ["country", "maker"]},
    ]


class Line(Model):
    """A line with stops, a plan, words, notes, a maker, and a parent line."""

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
    """Serve the models on one connection; yield a function that returns the statements since its last call."""
    with Relay(dsn) as relay:
        async with served(relay.dsn, *MODELS, most=2) as database:
            await Word.find("fast")
            seen = len(relay.statements)

            def since() -> int:
                nonlocal seen
                before, seen = seen, len(relay.statements)
                return seen - before

            yield database, since


async def each(rows: list[Any], name: str) -> list[Any]:
    """Get a relationship of each row, one after another."""
    return [await getattr(row, name).get() for row in rows]


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (Line, ["parent", "made_by", "stops", "branches", "notes", "plan", "words"]),
        (Maker, ["lines"]),
        (Word, ["lines"]),
        (Stop, ["line"]),
        (Plan, ["line"]),
    ],
)
@pytest_twisted.ensureDeferred
async def test_preload_of_every_kind_equals_the_relationships_of_each_row(
    dsn: str, model: type[Model], names: list[str]
) -> None:
    """There is one statement for all rows, and then none; each row has the same related rows as without it."""
    async with counted(dsn) as (_, since):
        rows = await model.find(orderby=model.meta().key)
        for name in names:
            since()
            expected = await each(rows, name)
            assert since() <= len(rows)
            await preload(rows, name)
            assert since() == 1, name
            found = await each(rows, name)
            assert since() == 0, name
            for mine, theirs in zip(found, expected, strict=True):
                if isinstance(theirs, list):
                    assert len(mine) == len(theirs)
                    assert set(mine) == set(theirs)
                else:
                    assert mine == theirs
            assert any(found), name


@pytest_twisted.ensureDeferred
async def test_preload_of_a_path_is_a_statement_for_each_level(dsn: str) -> None:
    """A common prefix of two paths is loaded once."""
    async with counted(dsn) as (_, since):
        stops = await Stop.find(orderby="id")
        since()
        await preload(stops, "line.plan", "line.branches.words", "line")
        assert since() == 4
        names = []
        for stop in stops:
            line = await stop.line.get()
            plan = await line.plan.get()
            for branch in await line.branches.get():
                names.append((plan.title, len(await branch.words.get())))
        assert len(names) == 15
        assert since() == 0


@pytest_twisted.ensureDeferred
async def test_find_with_preload_has_the_relationships(dsn: str) -> None:
    """This holds for each form of `find`: many, one by key, through a relationship; by name or list."""
    async with counted(dsn) as (_, since):
        lines = await Line.find(orderby="id", preload=["stops", "parent.made_by"])
        assert since() == 4
        assert [len(stops) for stops in await each(lines, "stops")] == [3, 3, 3, 0, 0, 0]
        assert (await (await lines[5].parent.get()).made_by.get()).country == "fr"
        assert since() == 0
        line = await Line.find(1, preload="words")
        assert since() == 2
        assert {word.id for word in await line.words.get()} == {"fast", "slow"}
        assert since() == 0
        assert await Line.find(99, preload="words") is None
        assert since() == 1
        (stop, *_) = await line.stops.get(orderby="id", preload="line")
        assert since() == 2
        assert await stop.line.get() == line
        assert since() == 0


@pytest_twisted.ensureDeferred
async def test_preload_of_nothing_sends_nothing(dsn: str) -> None:
    """There are no objects, or none of them refers to another row."""
    async with counted(dsn) as (_, since):
        roots = await Line.find(where=["parent_id IS NULL"])
        since()
        await preload([], "stops")
        await preload(roots, "parent.stops")
        assert await each(roots, "parent") == [None]
        assert since() == 0


@pytest_twisted.ensureDeferred
async def test_preload_of_an_unknown_name_is_refused(dsn: str) -> None:
    """Columns, methods and relationships of other classes are refused."""
    async with counted(dsn) as (_, since):
        lines = await Line.all()
        since()
        for path in ("name", "save", "line", "", "parent.title"):
            with pytest.raises(ValueError, match="Line has no relationship"):
                await preload(lines, path)
        assert since() <= 1
        with pytest.raises(ReferenceNotSavedError):
            await preload([Line(id=9)], "stops")


@pytest_twisted.ensureDeferred
async def test_preload_of_several_classes_is_a_statement_for_each(dsn: str) -> None:
    """Both the related rows and the objects may be of several classes."""
    async with counted(dsn) as (_, since):
        notes = await Note.find(where=["id < 5"], orderby="id")
        since()
        await preload(notes, "about")
        found = await each(notes, "about")
        assert [type(about) for about in found] == [Line, Line, Word, type(None)]
        assert since() == 2
        assert await notes[0].about.get() is found[0]
        mixed = [*await Stop.find(limit=(2, 0)), *await Plan.find(limit=(2, 0))]
        since()
        await preload(mixed, "line")
        assert since() == 2
        assert all(await each(mixed, "line"))


@pytest_twisted.ensureDeferred
async def test_preload_of_an_invalid_key_fails(dsn: str) -> None:
    """It fails like the relationship of that row; the other rows are unchanged."""
    async with counted(dsn) as _:
        notes = await Note.find(orderby="id")
        assert isinstance(await failure_of(preload(notes[:5], "about")), InvalidArgument)
        error = await failure_of(preload(notes[5:], "about"))
        assert isinstance(error, ClassNotRegisteredError)
        assert (await notes[0].about.get()).id == 1


@pytest_twisted.ensureDeferred
async def test_find_with_conditions_does_not_use_preloaded_rows(dsn: str) -> None:
    """`find` and `count` with arguments send a statement."""
    async with counted(dsn) as (_, since):
        lines = await Line.find(orderby="id", preload=["stops", "words", "plan"])
        since()
        assert len(await lines[1].stops.get(where=["name = ?", "stop 4"])) == 1
        assert (await lines[1].stops.get(limit=1)).line_id == 2
        assert len(await lines[0].words.get(join_where=["word_id = ?", "slow"])) == 1
        assert await lines[0].stops.count() == 3
        assert await lines[0].plan.get(where=["title = ?", "none"]) is None
        assert since() == 5


@pytest_twisted.ensureDeferred
async def test_relationship_once_preloaded_is_kept_until_it_changes(dsn: str) -> None:
    """`refresh`, `set`, `clear` and a changed key discard it; a save of other columns does not."""
    async with counted(dsn) as (_, since):
        stops = await Stop.find(orderby="id", preload="line")
        lines = await Line.find(orderby="id", preload=["stops", "words", "plan"])
        execute(dsn, "UPDATE lines SET name = 'changed'")
        stops[0].name = "other"
        await stops[0].save()
        since()
        assert (await stops[0].line.get()).name == "line 2"
        assert since() == 0
        await stops[0].refresh()
        assert (await stops[0].line.get()).name == "changed"
        stops[1].line_id = 5
        assert (await stops[1].line.get()).id == 5
        stops[1].line_id = None
        assert await stops[1].line.get() is None
        stops[1].line_id = "no number"
        assert isinstance(await failure_of(_line(stops[1])), InvalidArgument)
        await stops[2].line.set(lines[5])
        assert await stops[2].line.get() == lines[5]
        await stops[3].line.clear()
        assert await stops[3].line.get() is None
        await lines[0].stops.set([stops[4]])
        assert await lines[0].stops.get() == [stops[4]]
        await lines[0].words.clear()
        assert await lines[0].words.get() == []
        plan = await lines[1].plan.get()
        await lines[5].plan.set(plan)
        assert await lines[5].plan.get() == plan


@pytest_twisted.ensureDeferred
async def test_rows_of_a_key_that_changes_during_preload_are_not_kept(dsn: str) -> None:
    """The loaded rows belong to the key that the row had before."""
    async with counted(dsn) as _:
        stop = await Stop.find(1)
        loading = preload([stop], "line")
        stop.line_id = 3
        await loading
        assert (await stop.line.get()).id == 3


async def _line(stop: Stop) -> Any:
    return await stop.line.get()


@pytest_twisted.ensureDeferred
async def test_rows_of_one_key_share_the_preloaded_objects(dsn: str) -> None:
    """They share the objects, but each call returns its own list."""
    async with counted(dsn) as _:
        first, second = await Stop.find(where=["line_id = 1"], limit=(2, 0), preload="line.stops")
        line = await first.line.get()
        assert await second.line.get() is line
        (await line.stops.get()).clear()
        assert len(await line.stops.get()) == 3


@pytest_twisted.ensureDeferred
async def test_preload_runs_in_the_callers_transaction(dsn: str) -> None:
    """It sees rows written there; after a rollback, `refresh` discards them."""
    async with counted(dsn) as (database, _):
        lines = await Line.find(orderby="id")
        async with database.transaction() as level:
            await database.statement("DELETE FROM stops WHERE line_id = 1", fetch=False)
            await preload(lines, "stops")
            await level.rollback()
        assert await lines[0].stops.get() == []
        await lines[0].refresh()
        assert len(await lines[0].stops.get()) == 3


@pytest_twisted.ensureDeferred
async def test_preload_runs_as_the_caller(dsn: str) -> None:
    """A role receives only rows that it may read."""
    execute(
        dsn,
        "DROP ROLE IF EXISTS rider; CREATE ROLE rider; GRANT USAGE ON SCHEMA public TO rider;"
        " GRANT SELECT ON stops, lines TO rider; ALTER TABLE stops ENABLE ROW LEVEL SECURITY;"
        " CREATE POLICY few ON stops TO rider USING (id < 3)",
    )
    async with counted(dsn) as (database, _):
        with database.identity(identity_of("rider", {})):
            lines = await Line.find(orderby="id", preload="stops")
            assert [len(stops) for stops in await each(lines[:3], "stops")] == [0, 1, 1]
            error = await failure_of(preload(lines, "words"))
            assert isinstance(error, psycopg2.errors.InsufficientPrivilege)
        await preload(lines, "stops")
        assert [len(stops) for stops in await each(lines[:3], "stops")] == [3, 3, 3]
    execute(dsn, "DROP OWNED BY rider; DROP ROLE rider")


@pytest_twisted.ensureDeferred
async def test_preload_of_many_rows_does_not_block_the_reactor(dsn: str) -> None:
    """Thousands of rows are one statement, and do not block the reactor."""
    execute(
        dsn,
        "INSERT INTO lines SELECT i, 'more', 1 FROM generate_series(7, 3006) i;"
        " INSERT INTO stops SELECT i, 7 + i % 3000, '' FROM generate_series(10, 20009) i",
    )
    async with counted(dsn) as (_, since):
        lines = await Line.find(orderby="id")
        since()
        turns = 0

        def turn() -> None:
            nonlocal turns, next_turn
            turns += 1
            next_turn = reactor.callLater(0, turn)

        next_turn = reactor.callLater(0, turn)
        await preload(lines, "stops")
        next_turn.cancel()
        assert since() == 1
        assert turns > 3000 // 50
        assert sum(map(len, await each(lines, "stops"))) == 20009


@pytest_twisted.ensureDeferred
async def test_preload_that_is_cancelled_keeps_nothing(dsn: str) -> None:
    """Its statement is cancelled, and each row loads its own relationships."""
    async with counted(dsn) as _:
        lines = await Line.find(orderby="id")
        loading = preload(lines, "stops")
        loading.cancel()
        assert isinstance(await failure_of(loading), CancelledError)
        execute(dsn, "DELETE FROM stops")
        assert await each(lines, "stops") == [[]] * 6


@pytest_twisted.ensureDeferred
async def test_preloaded_rows_are_freed_with_their_object(dsn: str) -> None:
    """Preloaded rows are freed with their row, and no row references another one of its page."""
    async with counted(dsn) as (database, _):
        lines = await Line.find(orderby="id", preload="stops")
        kept, gone = ref(lines[0]), ref(lines[1])
        stop = ref((await lines[1].stops.get())[0])
        del lines[1:]
        # A worker references the result of its last job until the next one.
        await gatherResults([database.statement("SELECT pg_sleep(0.1)") for _ in range(2)])
        gc.collect()
        assert gone() is None
        assert stop() is None
        assert kept() is lines[0]


@pytest_twisted.ensureDeferred
async def test_after_init_of_preloaded_objects_has_run(dsn: str) -> None:
    """It runs as for each object that `find` returns."""
    seen = []

    async def after_init(self: Stop) -> None:
        seen.append(self.id)

    async with counted(dsn) as _:
        Stop.afterInit = after_init
        try:
            await Line.find(preload="stops")
        finally:
            del Stop.afterInit
        assert sorted(seen) == list(range(1, 10))


@pytest_twisted.ensureDeferred
async def test_keys_of_several_columns_can_be_set_and_cleared(dsn: str) -> None:
    """They behave like keys of one column."""
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
async def test_generated_models_have_the_relationships_of_their_foreign_keys(dsn: str) -> None:
    """They preload them like declared ones, including composite keys."""
    with Relay(dsn) as relay:
        async with served(relay.dsn, most=1) as database:
            models = await load(database, ())
            catalog = await database.run(catalog_txn, ("public",), 1)
            line = models.of(catalog.relation("public", "lines"))
            names = ["parent", "makers", "plans", "stops", "lines"]
            assert set(line.RELATIONSHIP_CACHE) == set(names)
            seen = len(relay.statements)
            lines = await line.find(orderby="id", preload=[*names, "makers.lines"])
            assert len(relay.statements) == seen + 7
            parents = await each(lines, "parent")
            assert [each and each.id for each in parents] == [None, 1, 1, 2, 2, 3]
            plans = await each(lines, "plans")
            assert [plan and plan.title for plan in plans][4:] == ["plan 5", None]
            assert [len(stops) for stops in await each(lines, "stops")] == [3, 3, 3, 0, 0, 0]
            makers = await each(lines, "makers")
            assert {maker.key for maker in makers} == {("de", "Abt"), ("fr", "Abt")}
            assert len(await makers[0].lines.get()) == 3
            assert len(relay.statements) == seen + 7
