"""Relationships of models: one statement each, with any key, and atomic."""

from __future__ import annotations

from typing import ClassVar

import psycopg2
import pytest
import pytest_twisted
from twistar.exceptions import InvalidRelationshipError, ReferenceNotSavedError

from app.fleet import Driver, Vehicle
from service.models.model import Model
from service.models.relationships import preload
from tests.conftest import execute
from tests.db.relay import Relay
from tests.db.served import model, served
from tests.deferreds import failure_of

TABLES = """
DROP SCHEMA public CASCADE; CREATE SCHEMA public;
CREATE TABLE drivers (id bigserial PRIMARY KEY, name text NOT NULL);
CREATE TABLE vehicles (id bigserial PRIMARY KEY, plate text NOT NULL, driver_id bigint
    REFERENCES drivers);
CREATE TABLE parents (id text PRIMARY KEY, name text);
CREATE TABLE children (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), name text,
    parent_id text REFERENCES parents);
CREATE TABLE tags (id text PRIMARY KEY);
CREATE TABLE marks (parent_id text, tag_id text, weight int DEFAULT 1);
CREATE TABLE notes (id serial PRIMARY KEY, about_id text, about_type text);
INSERT INTO parents VALUES ('p1', 'one'), ('p2', 'two'), ('t1) OR (1=1', 'three');
INSERT INTO tags VALUES ('t1'), ('t2'), ('t1) OR (1=1');
"""


class Child(Model):
    """A person with a parent."""

    TABLENAME = "children"
    BELONGSTO: ClassVar = ["parent"]


class Tag(Model):
    """A tag of many parents."""

    TABLENAME = "tags"
    HABTM: ClassVar = [{"name": "parents", "join_table": "marks"}]


class Note(Model):
    """A note about a row of any model."""

    TABLENAME = "notes"
    BELONGSTO: ClassVar = [{"name": "about", "polymorphic": True}]


class Parent(Model):
    """A person with children, tags and notes."""

    TABLENAME = "parents"
    HASMANY: ClassVar = [
        {"name": "children", "class_name": "child"},
        {"name": "notes", "as": "about"},
    ]
    HASONE: ClassVar = [{"name": "eldest", "class_name": "child"}]
    HABTM: ClassVar = [{"name": "tags", "join_table": "marks"}]


MODELS = (Child, Tag, Note, Parent)


@pytest.fixture(autouse=True)
def tables(dsn: str) -> None:
    execute(dsn, TABLES)


@pytest_twisted.ensureDeferred
async def test_vehicles_of_a_driver_are_related_both_ways(dsn: str) -> None:
    """The relationship of the demo's models."""
    async with served(dsn, Driver, Vehicle):
        driver = await Driver(name="Ada").save()
        vehicle = await Vehicle(plate="A 1", driver_id=driver.id).save()
        await Vehicle(plate="B 2").save()
        assert await driver.vehicles.get() == [vehicle]
        assert await driver.vehicles.count(where=["plate = ?", "B 2"]) == 0
        assert await vehicle.driver.get() == driver
        await vehicle.driver.clear()
        assert await vehicle.driver.get() is None
        await vehicle.driver.set(driver)
        assert await driver.vehicles.count() == 1


@pytest_twisted.ensureDeferred
async def test_relationships_by_uuid_and_text_keys_pass_keys_as_parameters(dsn: str) -> None:
    """Keys are never part of the SQL text."""
    async with served(dsn, *MODELS):
        parent, other = await Parent.find("p1"), await Parent.find("t1) OR (1=1")
        children = [await Child(name=str(n)).save() for n in range(3)]
        await parent.children.set(children[:2])
        await other.children.set(children[2:])
        assert {child.name for child in await parent.children.get()} == {"0", "1"}
        assert children[0].parent_id == "p1"
        await parent.children.set([children[2]])
        assert [child.name for child in await parent.children.get()] == ["2"]
        assert await other.children.count() == 0
        await other.tags.set(await Tag.all())
        assert await other.tags.count() == 3
        assert await other.tags.count(where=["id = ?", "t1"]) == 1
        bad = await Tag.find("t1) OR (1=1")
        assert await bad.parents.get() == [other]
        await parent.tags.set([bad])
        assert await parent.tags.get() == [bad]
        execute(dsn, "UPDATE marks SET weight = 5 WHERE parent_id = 'p1'")
        assert await parent.tags.count(join_where=["weight > ?", 4]) == 1


@pytest_twisted.ensureDeferred
async def test_relationship_of_many_to_many_is_one_statement(dsn: str) -> None:
    """It is a subselect; relationships of many objects are one query."""
    with Relay(dsn) as relay:
        async with served(relay.dsn, *MODELS, most=1):
            parents = await Parent.find(orderby="id")
            await parents[0].tags.set(await Tag.find(limit=(2, 0)))
            for name in ("a", "b"):
                await Child(name=name, parent_id="p1").save()
            before = len(relay.statements)
            assert len(await parents[0].tags.get()) == 2
            assert len(relay.statements) == before + 1
            await preload(parents, "children", "eldest", "tags")
            assert len(relay.statements) == before + 4
            children = [await parent.children.get() for parent in parents]
            assert [len(found) for found in children] == [2, 0, 0]
            eldest = [await parent.eldest.get() for parent in parents]
            assert eldest[0] in children[0]
            assert eldest[1:] == [None, None]
            assert [len(await parent.tags.get()) for parent in parents] == [2, 0, 0]
            assert len(relay.statements) == before + 4


@pytest_twisted.ensureDeferred
async def test_set_that_fails_in_the_middle_changes_nothing(dsn: str) -> None:
    async with served(dsn, *MODELS):
        parent = await Parent.find("p1")
        await parent.tags.set([await Tag.find("t1")])
        execute(dsn, "ALTER TABLE marks ADD CHECK (tag_id <> 't2')")
        error = await failure_of(parent.tags.set([await Tag.find("t2")]))
        assert isinstance(error, psycopg2.errors.CheckViolation)
        assert [tag.id for tag in await parent.tags.get()] == ["t1"]


@pytest_twisted.ensureDeferred
async def test_delete_that_fails_changes_nothing(dsn: str) -> None:
    """The object and its junction rows remain."""
    async with served(dsn, *MODELS):
        parent = await Parent.find("p1")
        await parent.tags.set([await Tag.find("t1")])
        child = await Child(name="c", parent_id="p1").save()
        error = await failure_of(parent.delete())
        assert isinstance(error, psycopg2.errors.ForeignKeyViolation)
        assert parent.persisted
        assert parent.id == "p1"
        assert await parent.tags.count() == 1
        await child.delete()
        assert await parent.delete() == 1
        assert execute(dsn, "SELECT count(*) FROM marks") == [(0,)]


@pytest_twisted.ensureDeferred
async def test_polymorphic_relationship_keeps_the_class(dsn: str) -> None:
    """A column beside the key has the class of the related object."""
    async with served(dsn, *MODELS):
        parent = await Parent.find("p1")
        notes = [await Note().save() for _ in range(2)]
        await parent.notes.set(notes)
        assert await parent.notes.count() == 2
        assert await notes[0].about.get() == parent
        await parent.notes.set(notes[:1])
        assert await parent.notes.get() == notes[:1]
        await notes[1].about.set(await Parent.find("p2"))
        assert (await notes[1].about.get()).id == "p2"
        assert await (await Note().save()).about.get() is None


@pytest_twisted.ensureDeferred
async def test_relationship_of_an_unsaved_object_is_refused(dsn: str) -> None:
    """A load that fails raises its error."""
    async with served(dsn, *MODELS):
        with pytest.raises(ReferenceNotSavedError):
            _ = Parent(id="x").children
        parent = await Parent.find("p1")
        error = await failure_of(parent.children.set([Child(name="new")]))
        assert isinstance(error, ReferenceNotSavedError)
        loaded = await parent.loadRelations()
        assert loaded == {"children": [], "notes": [], "eldest": None, "tags": []}
        execute(dsn, "DROP TABLE marks")
        error = await failure_of(parent.loadRelations("children", "tags"))
        assert isinstance(error, psycopg2.errors.UndefinedTable)


def test_declaration_without_name_or_join_table_is_refused() -> None:
    """A junction table must be named; a subclass has its own relationships."""
    with pytest.raises(InvalidRelationshipError, match="join_table"):
        model("parents", HABTM=["tags"])
    with pytest.raises(InvalidRelationshipError, match="no name"):
        model("parents", HASMANY=[{"class_name": "child"}])
    Base = model("parents")
    Sub = type("Sub", (Base,), {"HASMANY": ["children"]})
    assert set(Sub.RELATIONSHIP_CACHE) == {"children"}
    assert Base.RELATIONSHIP_CACHE == {}
    Named = model("parents", HASONE=[{"name": "state", "class_name": "Status"}])
    assert Named.state.other == "Status"
    Nameless = type("Nameless", (Model,), {})
    with pytest.raises(TypeError, match="TABLENAME"):
        Nameless.tablename()
