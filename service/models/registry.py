"""
A model for every served relation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from twistar.registry import Registry

from service.catalog import Catalog, Relation
from service.db.scope import Database
from service.models.action import Action
from service.models.base import Model
from service.models.config import PgConfig
from service.models.driver import Driver
from service.models.meta import Meta, Values
from service.models.vehicle import Vehicle

WRITTEN: tuple[type[Model], ...] = (Action, Driver, Vehicle)
"""Models with rules of their own; they win over generated ones of the same relation."""


class Models:
    """
    Models by relation: those written by hand, and one made for each other relation.

    Args:
        database: Where their statements go.
        written: Models written by hand.
    """

    def __init__(self, database: Database, written: Iterable[type[Model]] = WRITTEN) -> None:
        self._database = database
        self._written = tuple(written)
        self._models: dict[tuple[str, str], type[Model]] = {}
        self._make: Callable[[Relation], type[Model]] | None = None

    def install(self) -> None:
        """Make twistar use this database; there is one per process, as twistar has it."""
        Registry.DBPOOL = self._database.pool
        Registry.IMPL = PgConfig(self._database)

    def load(self, catalog: Catalog, codec: Values) -> None:
        """
        Start from this catalog; objects that are about keep what they knew.

        A generated model is made when it is first asked for, so that a thousand relations
        do not keep the reactor.
        """
        self.install()
        written = {}
        for model in self._written:
            Registry.register(model)
            place = _place(model, catalog)
            relation = catalog.relations.get(place)
            model.META = None
            if relation is not None:
                written[place] = _bound(model, relation, catalog, codec)
        self._make = lambda relation: _bound(_generated(relation), relation, catalog, codec)
        self._models = written

    def of(self, relation: Relation) -> type[Model]:
        """Give the model of a relation."""
        place = relation.schema, relation.name
        found = self._models.get(place)
        if found is None:
            if self._make is None:
                raise LookupError("no catalog is loaded")
            found = self._models[place] = self._make(relation)
        return found


def _generated(relation: Relation) -> type[Model]:
    name = f"{relation.schema}.{relation.name}"
    return type(name, (Model,), {"TABLENAME": name, "__doc__": f"Rows of {name}."})


def _bound(model: type[Model], relation: Relation, catalog: Catalog, codec: Values) -> type[Model]:
    model.META = Meta(relation, catalog, codec, frozenset(dir(model)))
    return model


def _place(model: type[Model], catalog: Catalog) -> tuple[str, str]:
    schema, _, name = model.tablename().rpartition(".")
    return schema or catalog.schemas[0], name
