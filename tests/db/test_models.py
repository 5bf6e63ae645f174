"""
Models: finding, saving and refusals.

The tests are named for what unmodified twistar gets wrong; docs/twistar.md has the list.
"""

from __future__ import annotations

import threading
import uuid
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from twistar.dbconfig.base import InteractionBase
from twistar.exceptions import DBObjectSaveError, ImaginaryTableError
from twistar.registry import Registry
from twisted.internet import reactor
from twisted.internet.defer import gatherResults, succeed
from twisted.logger import formatEvent, globalLogPublisher

from service.errors import InvalidArgument, InvalidRow
from service.models.model import StaleObject
from service.models.record import Record
from tests.conftest import execute
from tests.db.lag import LagProbe
from tests.db.relay import Relay
from tests.db.served import load, model, served
from tests.deferreds import failure_of

TABLES = """
DROP SCHEMA public CASCADE; CREATE SCHEMA public;
CREATE TABLE things (id serial PRIMARY KEY, name text, amount int NOT NULL DEFAULT 0);
CREATE TABLE keys (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), name text);
CREATE TABLE codes (code text PRIMARY KEY, name text);
CREATE TABLE pairs (a int, b int, name text, PRIMARY KEY (a, b));
CREATE TABLE filled (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text,
    upper_name text GENERATED ALWAYS AS (upper(name)) STORED,
    state text NOT NULL DEFAULT 'new', made timestamptz NOT NULL DEFAULT now());
CREATE TABLE "order" (id serial PRIMARY KEY, "group" text, "userName" text, "100%?" int);
CREATE TABLE audited (id serial PRIMARY KEY, name text);
CREATE TABLE audit (id bigserial PRIMARY KEY, what text);
ALTER SEQUENCE audit_id_seq RESTART WITH 900000;
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO audit (what) VALUES (new.name); RETURN new; END $$;
CREATE TRIGGER note AFTER INSERT ON audited FOR EACH ROW EXECUTE FUNCTION note();
CREATE TABLE documents (id serial PRIMARY KEY, doc jsonb, words text);
CREATE TABLE clashes (id serial PRIMARY KEY, errors text, delete text, find int);
CREATE TABLE uniques (id serial PRIMARY KEY, name text UNIQUE);
CREATE TABLE bare (name text);
"""


@pytest.fixture(autouse=True)
def tables(dsn: str) -> None:
    execute(dsn, TABLES)


@pytest_twisted.ensureDeferred
async def test_insert_is_one_message_and_fills_the_object(dsn: str) -> None:
    """After `save`, the object has its key, defaults and generated columns, without another message."""
    Filled = model("filled")
    with Relay(dsn) as relay:
        async with served(relay.dsn, Filled, most=1):
            before = len(relay.statements)
            made = await Filled(name="anna").save()
            assert len(relay.statements) == before + 1
            assert (made.id, made.upper_name, made.state) == (1, "ANNA", "new")
            assert datetime.now(UTC) - made.made < timedelta(minutes=1)
            made.name = "bea"
            await made.save()
            assert relay.statements[-1].startswith(b'UPDATE "public"."filled" SET "name" = ')
            assert (made.upper_name, made.state) == ("BEA", "new")
            before = len(relay.statements)
            await made.save()
            assert len(relay.statements) == before


@pytest_twisted.ensureDeferred
async def test_key_of_any_type_finds_its_row(dsn: str) -> None:
    """uuid, text and composite keys, given by the client or by the server."""
    Keys, Codes, Pairs, Audited = (model(t) for t in ("keys", "codes", "pairs", "audited"))
    async with served(dsn, Keys, Codes, Pairs, Audited):
        server = await Keys(name="x").save()
        assert (await Keys.find(server.id)).name == "x"
        own = uuid.uuid4()
        await Keys(id=own, name="own").save()
        assert (await Keys.find(own)).name == "own"
        code = await Codes(code="c1", name="n").save()
        code.code = "c2"
        await code.save()
        assert await Codes.find("c1") is None
        assert (await Codes.find("c2")).name == "n"
        pair = await Pairs(a=1, b=2, name="z").save()
        assert await Pairs.find((1, 2)) == pair
        assert await Pairs.find({"b": 2, "a": 1}) == pair
        assert await pair.delete() == 1
        with pytest.raises(InvalidArgument, match='the key of "pairs" is a, b: 2 values, got'):
            Pairs.find(1)
        assert (await Audited(name="y").save()).id == 1


@pytest_twisted.ensureDeferred
async def test_save_writes_changed_columns_only(dsn: str) -> None:
    """Two clients that change different columns both succeed."""
    Things = model("things")
    async with served(dsn, Things):
        key = (await Things(name="first", amount=1).save()).id
        one, two = await Things.find(key), await Things.find(key)
        one.name = "changed"
        await one.save()
        two.amount = 99
        await two.save()
        assert (two.name, two.amount) == ("changed", 99)


@pytest_twisted.ensureDeferred
async def test_save_of_a_deleted_row_is_stale(dsn: str) -> None:
    """Saving or refreshing it raises; deleting it deletes no row."""
    Things = model("things")
    async with served(dsn, Things):
        ghost = await Things(name="ghost").save()
        await Things.deleteAll(["id = ?", ghost.id])
        ghost.name = "boo"
        assert isinstance(await failure_of(ghost.save()), StaleObject)
        assert isinstance(await failure_of(ghost.refresh()), StaleObject)
        assert await ghost.delete() == 0
        with pytest.raises(DBObjectSaveError):
            ghost.save()


@pytest_twisted.ensureDeferred
async def test_find_for_update_locks_the_row(dsn: str) -> None:
    Things = model("things")
    async with served(dsn, Things) as database:
        thing = await Things(name="x").save()

        async def increment() -> None:
            async with database.transaction():
                found = await Things.find(thing.id, for_update=True)
                found.amount += 1
                await found.save()

        await gatherResults([database.transact(increment) for _ in range(5)])
        assert (await thing.refresh()).amount == 5


@pytest_twisted.ensureDeferred
async def test_columns_of_reserved_names_are_quoted(dsn: str) -> None:
    """Names may be reserved words and contain capitals, percent signs and question marks."""
    Order = model("order")
    async with served(dsn, Order) as database:
        await Order(**{"group": "g", "userName": "U", "100%?": 7}).save()
        (found,) = await Order.findBy(userName="U")
        assert (found.group, getattr(found, "100%?")) == ("g", 7)
        assert len(await Order.findBy(**{"100%?": [7, 8]})) == 1
        setattr(found, "100%?", 9)
        await found.save()
        assert await Order.count(['"100%?" = ?', 9]) == 1
        config = Registry.getConfig()
        await config.update("order", {"group": "h"}, ['"userName" = ?', "U"])
        assert (await found.refresh()).group == "h"
        assert database.pool.dbapi is Registry.DBPOOL.dbapi


@pytest.mark.parametrize(
    ("where", "count"),
    [
        (["doc ?? 'a'"], 1),
        (["doc ??| ?", ["a", "b"]], 1),
        (["doc ??& ? AND id > ?", ["a", "z"], 0], 0),
        (["words <> 'what?' AND id > ?", 0], 1),
        (["words LIKE '5%'"], 1),
        (["words LIKE '5%' AND id > ?", 0], 1),
        (["id % 2 = ?", 1], 1),
        (["id % 2 = 1 -- and ? is no parameter here"], 1),
        (["id = ANY(?)", [1, 2]], 1),
        (["id = ANY(?)", []], 0),
        (["words = $$50%?$$ OR id = ?", 1], 1),
    ],
)
@pytest_twisted.ensureDeferred
async def test_condition_with_a_placeholder_or_percent_finds_its_rows(
    dsn: str, where: list[Any], count: int
) -> None:
    """Only a `?` outside literals and operators is a parameter; a `%` is literal."""
    Documents = model("documents")
    execute(dsn, "INSERT INTO documents (doc, words) VALUES ('{\"a\": 1}', '50%')")
    async with served(dsn, Documents):
        assert await Documents.count(where) == count
        assert len(await Documents.find(where=where)) == count
        assert await Documents.exists(where) == bool(count)


@pytest_twisted.ensureDeferred
async def test_find_by_null_or_list_matches_and_by_no_column_is_refused(dsn: str) -> None:
    """None matches NULL, a list matches any of its values, and only columns can be named."""
    Things = model("things")
    execute(dsn, "INSERT INTO things (name) VALUES ('a'), ('b'), (NULL)")
    async with served(dsn, Things):
        assert [thing.id for thing in await Things.findBy(name=None)] == [3]
        assert [thing.id for thing in await Things.findBy(name=["a", "b"])] == [1, 2]
        assert await Things.findBy(name=[]) == []
        assert await Things.find(None) is None
        with pytest.raises(ValueError, match="no column"):
            Things.findBy(**{"1 = 1) OR (id": 1})


@pytest.mark.parametrize(
    "orderby", ["id; DROP TABLE things", "(SELECT 1)", "nope", "id DESC DESC", ""]
)
@pytest_twisted.ensureDeferred
async def test_sql_in_orderby_limit_or_group_is_refused(dsn: str, orderby: str) -> None:
    """orderby, limit and group accept only column lists and numbers."""
    Things = model("things")
    async with served(dsn, Things):
        with pytest.raises(ValueError, match="cannot order by"):
            Things.find(orderby=orderby)
        with pytest.raises(ValueError, match="invalid literal"):
            Things.find(limit=("1; SELECT 1", 0))
        with pytest.raises(ValueError, match="grouped"):
            Things.find(group="name")
        config = Registry.getConfig()
        with pytest.raises(ValueError, match="cannot order by"):
            config.select("things", orderby="id; DROP TABLE things")
        with pytest.raises(ValueError, match="LIMIT"):
            config.update("things", {"name": "x"}, limit=1)


@pytest_twisted.ensureDeferred
async def test_find_with_order_limit_and_offset_returns_the_page(dsn: str) -> None:
    """Pages of rows in any order of columns."""
    Things = model("things")
    execute(dsn, "INSERT INTO things (name) VALUES ('a'), ('b'), (NULL)")
    async with served(dsn, Things):
        found = await Things.find(orderby="name DESC NULLS LAST, id", limit=(2, 0))
        assert [thing.name for thing in found] == ["b", "a"]
        assert (await Things.find(orderby=["id"], limit=1)).id == 1


@pytest_twisted.ensureDeferred
async def test_keywords_of_unknown_names_are_refused(dsn: str) -> None:
    """A misspelled keyword raises."""
    Things = model("things")
    async with served(dsn, Things):
        with pytest.raises(AttributeError, match="nmae"):
            Things(nmae="x")
        with pytest.raises(AttributeError, match="nmae"):
            _ = Things(name="x").nmae


@pytest_twisted.ensureDeferred
async def test_column_named_like_a_method_has_an_underscore(dsn: str) -> None:
    """The attribute of such a column has a trailing underscore, and the method still works."""
    Clashes = model("clashes")
    async with served(dsn, Clashes):
        made = await Clashes(errors_="e", delete_="d", find_=3).save()
        (found,) = await Clashes.findBy(errors_="e")
        assert (found.delete_, found.find_, len(found.errors)) == ("d", 3, 0)
        assert found.columns() == {"id": 1, "errors": "e", "delete": "d", "find": 3}
        assert await made.delete() == 1


@pytest_twisted.ensureDeferred
async def test_changes_of_the_schema_are_known_after_a_reload(dsn: str) -> None:
    """After a reload, a new column is written and a dropped one ignored."""
    Things = model("things")
    async with served(dsn, Things) as database:
        thing = await Things(name="x").save()
        execute(dsn, "ALTER TABLE things ADD extra text, DROP amount")
        await load(database, (Things,))
        thing.name = "y"
        await thing.save()
        assert (await Things(name="z", extra="kept").save()).extra == "kept"


@pytest_twisted.ensureDeferred
async def test_missing_table_is_not_a_missing_privilege(dsn: str) -> None:
    """Each of the two has its own error."""
    Missing, Things = model("missing"), model("things")
    async with served(dsn, Missing, Things) as database:
        assert isinstance(await failure_of(Missing(a=1).save()), ImaginaryTableError)
        execute(dsn, "DROP ROLE IF EXISTS nobody_here; CREATE ROLE nobody_here")
        async with database.transaction():
            await database.statement("SET LOCAL ROLE nobody_here")
            refused = await failure_of(Things(name="x").save())
            assert isinstance(refused, psycopg2.errors.InsufficientPrivilege)
            await database.level.rollback()
        execute(dsn, "DROP ROLE nobody_here")


@pytest_twisted.ensureDeferred
async def test_concurrent_find_or_create_is_one_row(dsn: str) -> None:
    """Concurrent calls return one row."""
    Uniques = model("uniques")
    async with served(dsn, Uniques, most=4):
        found = await gatherResults([Uniques.findOrCreate(name="n") for _ in range(12)])
        assert len({each.id for each in found}) == 1
        assert await Uniques.count() == 1


@pytest_twisted.ensureDeferred
async def test_insert_many_with_columns_in_any_order_writes_each_value_to_its_column(
    dsn: str,
) -> None:
    """Values are written to the columns of their names, whatever their order."""
    Pairs = model("pairs")
    async with served(dsn, Pairs):
        config = Registry.getConfig()
        await config.insertMany("pairs", [{"a": 1, "b": 2}, {"b": 30, "a": 40}])
        assert execute(dsn, "SELECT a, b FROM pairs ORDER BY a") == [(1, 2), (40, 30)]
        with pytest.raises(ValueError, match="different columns"):
            config.insertMany("pairs", [{"a": 1, "b": 2}, {"a": 3}])


@pytest_twisted.ensureDeferred
async def test_json_changed_in_place_is_written(dsn: str) -> None:
    """A document can be saved again after it was read, and a change inside it is detected."""
    Documents = model("documents")
    async with served(dsn, Documents):
        made = await Documents(doc=["a", {"b": 1}]).save()
        made.doc[1]["b"] = 2
        await made.save()
        assert (await Documents.find(made.id)).doc == ["a", {"b": 2}]
        made.doc = "text"
        await made.save()
        assert (await made.refresh()).doc == "text"


@pytest_twisted.ensureDeferred
async def test_relation_without_a_key_can_be_read_and_written(dsn: str) -> None:
    """Rows can be inserted and found; deleting one raises, because it has no key."""
    Bare = model("bare")
    async with served(dsn, Bare):
        made = await Bare(name="x").save()
        assert await Bare.count(["name = ?", "x"]) == 1
        with pytest.raises(InvalidArgument, match='"bare" has no primary key'):
            await made.delete()


@pytest_twisted.ensureDeferred
async def test_objects_are_equal_by_class_and_key(dsn: str) -> None:
    """Objects of one row are equal, unsaved ones only to themselves; a repr shows only the key."""
    Codes, Keys = model("codes"), model("keys")
    async with served(dsn, Codes, Keys):
        made = await Codes(code="c", name="secret").save()
        again = await Codes.find("c")
        assert {made, again} == {made}
        fresh = Codes(code="d")
        assert fresh != Codes(code="d")
        assert fresh != made
        assert made != "c"
        assert {fresh}
        assert repr(made) == "<Codes ('c',)>"
        assert repr(fresh) == "<Codes new>"


@pytest_twisted.ensureDeferred
async def test_error_of_a_validation_is_raised(dsn: str) -> None:
    """An error in a validation, a hook or afterInit prevents the save."""
    execute(dsn, "INSERT INTO things (name) VALUES ('there')")

    def raises(_: Record) -> None:
        raise ZeroDivisionError

    Validated = model("things", VALIDATIONS=[raises])
    Hooked = model("things", beforeSave=raises)
    Initialized = model("things", afterInit=raises)
    async with served(dsn, Validated, Hooked, Initialized):
        assert isinstance(await failure_of(Validated(name="x").save()), ZeroDivisionError)
        assert isinstance(await failure_of(Hooked(name="x").save()), ZeroDivisionError)
        assert isinstance(await failure_of(Initialized.find()), ZeroDivisionError)
        assert await Validated.count() == 1


@pytest_twisted.ensureDeferred
async def test_save_of_an_invalid_object_raises_unless_not_strict(dsn: str) -> None:
    """`save` raises with all errors; with STRICT off, models behave like twistar's."""
    Things = model("things")
    Things.validatesPresenceOf("name")
    Things.validatesLengthOf("name", range=range(1, 5))
    Tolerant = type("Tolerant", (Things,), {"STRICT": False})
    async with served(dsn, Things, Tolerant):
        error = await failure_of(Things().save())
        assert isinstance(error, InvalidRow)
        assert error.details["fields"] == {
            "name": ["cannot be blank", "must have a length between 1 and 4 (inclusive)"]
        }
        given = await Tolerant().save()
        assert not given.persisted
        assert str(given.errors).startswith("cannot be blank")


@pytest_twisted.ensureDeferred
async def test_uniqueness_of_a_taken_value_is_refused(dsn: str) -> None:
    """The value is compared with other rows, and a database error is raised instead of counted as unique."""
    Uniques = model("uniques")
    Uniques.validatesUniquenessOf("name")
    async with served(dsn, Uniques):
        first = await Uniques(name="n").save()
        await first.save()
        assert isinstance(await failure_of(Uniques(name="n").save()), InvalidRow)
        execute(dsn, "ALTER TABLE uniques RENAME name TO title")
        error = await failure_of(Uniques(name="m").save())
        assert isinstance(error, psycopg2.errors.UndefinedColumn)


@pytest_twisted.ensureDeferred
async def test_hooks_run_in_twistars_order(dsn: str) -> None:
    """Hooks may be plain functions, coroutine functions or return Deferreds; False refuses."""
    seen: list[str] = []

    async def before_create(self: Record) -> None:
        seen.append("create")
        self.amount = 7

    def before_save(self: Record) -> Any:
        seen.append("save")
        return succeed(self.name != "no")

    Things = model("things", beforeCreate=before_create, beforeSave=before_save)
    async with served(dsn, Things):
        made = await Things(name="x").save()
        made.name = "no"
        error = await failure_of(made.save())
        assert isinstance(error, InvalidRow)
        assert error.details["fields"] == {"*": ["refused by beforeSave"]}
    assert seen == ["create", "save", "save"]
    assert made.amount == 7


@pytest_twisted.ensureDeferred
async def test_delete_refused_by_its_hook_keeps_the_row(dsn: str) -> None:
    """If beforeDelete refuses, the row and the object remain."""
    Things = model("things", beforeDelete=lambda self: False)
    async with served(dsn, Things):
        made = await Things(name="x").save()
        assert await made.delete() == 0
        assert made.persisted


TYPES = {
    "numbers": ("int[]", [1, None, 3]),
    "no_numbers": ("int[]", []),
    "words": ("text[]", ["a,b", '"', None]),
    "ids": ("uuid[]", [str(uuid.UUID(int=1))]),
    "moods": ("mood[]", ["sad", "ok"]),
    "no_moods": ("mood[]", []),
    "mood": ("mood", "ok"),
    "document": ("jsonb", {"a": [1, "x", None]}),
    "text_document": ("json", "a string"),
    "id": ("uuid", str(uuid.UUID(int=2))),
    "address": ("inet", "10.0.0.1/24"),
    "place": ("place", {"x": 1, "y": "a,b"}),
    "some_range": ("int4range", "[1,5)"),
    "ranges": ("int4multirange", "{[1,3),[5,7)}"),
    "moment": ("timestamptz", datetime(2020, 1, 1, 12, tzinfo=UTC)),
    "never": ("timestamptz", "infinity"),
    "antique": ("timestamptz", "4713-01-01T00:00:00Z BC"),
    "far": ("date", "20000-01-01"),
    "day": ("date", date(2020, 2, 29)),
    "long": ("interval", timedelta(days=1, seconds=5)),
    "month": ("interval", "P1M"),
    "price": ("numeric", Decimal("1.10")),
    "unknown": ("numeric", Decimal("12345678901234567890.123456789")),
    "ratio": ("float8", 0.1 + 0.2),
    "endless": ("float8", float("inf")),
    "data": ("bytea", b"\0\xff"),
}


@pytest_twisted.ensureDeferred
async def test_attribute_of_any_type_survives_read_and_save(dsn: str) -> None:
    """A value that was read can be saved unchanged, whatever its type."""
    columns = ", ".join(f"{name} {sql}" for name, (sql, _) in TYPES.items())
    execute(
        dsn,
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE place AS (x int, y text);"
        f"CREATE TABLE typed (number serial PRIMARY KEY, {columns})",
    )
    Typed = model("typed")
    values = {name: value for name, (_, value) in TYPES.items()}
    async with served(dsn, Typed):
        made = await Typed(**values).save()
        assert {name: getattr(made, name) for name in values} == values
        assert made.dirty() == ()
        found = await Typed.find(made.number)
        assert {name: getattr(found, name) for name in values} == values
        again = Typed(**{name: getattr(found, name) for name in values})
        await again.save()
        rows = execute(dsn, "SELECT to_jsonb(typed) - 'number' FROM typed ORDER BY number")
        assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("sql", "value"), [("text", b"bytes"), ("text", "nul\0"), ("text", "\ud800"), ("int", 2**31)]
)
@pytest_twisted.ensureDeferred
async def test_value_of_the_wrong_type_is_refused_before_it_is_sent(
    dsn: str, sql: str, value: object
) -> None:
    """The error has the column's name, and nothing is sent."""
    execute(dsn, f"CREATE TABLE picky (id serial PRIMARY KEY, value {sql})")
    Picky = model("picky")
    async with served(dsn, Picky):
        with pytest.raises(InvalidArgument) as caught:
            await Picky(value=value).save()
        assert caught.value.details["path"] == "value"


@pytest_twisted.ensureDeferred
async def test_timestamps_need_a_time_zone(dsn: str) -> None:
    """A naive datetime would be interpreted in the session's time zone."""
    Filled = model("filled")
    async with served(dsn, Filled):
        with pytest.raises(ValueError, match="time zone"):
            await Filled(name="x", made=datetime(2020, 1, 1)).save()


@pytest_twisted.ensureDeferred
async def test_making_many_objects_does_not_block_the_reactor(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objects are made in the worker; five thousand of them do not block the reactor."""
    execute(dsn, "INSERT INTO things (name) SELECT 'n' FROM generate_series(1, 5000)")
    Things = model("things")
    async with served(dsn, Things):
        await Things.count()
        makers: set[str] = set()
        make = Things.hydrate

        def seen(*args: Any) -> Any:
            makers.add(threading.current_thread().name)
            return make(*args)

        monkeypatch.setattr(Things, "hydrate", seen)
        with LagProbe(reactor) as probe:
            found = await Things.find(orderby="id")
        assert makers
        assert all(name.startswith("pg-") for name in makers)
        assert probe.own(1) < 1  # no single block is long, even on a loaded machine
        assert [found[0].id, found[-1].id, len(found)] == [1, 5000, 5000]


@pytest_twisted.ensureDeferred
async def test_log_of_twistar_shows_no_values(dsn: str) -> None:
    """Twistar's LOG has the statements without their parameters."""
    seen: list[dict[str, Any]] = []
    globalLogPublisher.addObserver(seen.append)
    InteractionBase.LOG = True
    try:
        async with served(dsn, model("things")):
            await Registry.getConfig().update("things", {"name": "secret"}, ["id = ?", 1])
    finally:
        InteractionBase.LOG = False
        globalLogPublisher.removeObserver(seen.append)
    texts = [formatEvent(event) for event in seen]
    assert any('UPDATE "things"' in text for text in texts)
    assert not any("secret" in text for text in texts)
