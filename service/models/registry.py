"""
A model for every served relation, as each catalog has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from twistar.registry import Registry
from twisted.logger import Logger

from service.catalog import Catalog, Relation
from service.db.database import Database
from service.models.action import Action
from service.models.base import Model
from service.models.config import PgConfig
from service.models.driver import Driver
from service.models.face import Face
from service.models.foreign_keys import declared
from service.models.judge import Judge
from service.models.meta import Meta, Values
from service.models.vehicle import Vehicle

log = Logger()

WRITTEN: tuple[type[Model], ...] = (Action, Driver, Vehicle)
"""Models with rules of their own; they win over generated ones of the same relation."""

Place = tuple[str, str]
"""Schema and name of a relation."""


class LoadedModels:
    """
    Models of the relations of one catalog; those of another catalog change nothing here.

    A generated model is made when it is first asked for, so that a thousand relations do not
    keep the reactor.

    Args:
        catalog: Whose relations.
        codec: For their values.
        written: Those that are written by hand, by relation.
    """

    def __init__(self, catalog: Catalog, codec: Values, written: Mapping[Place, Judge]) -> None:
        self._catalog = catalog
        self._codec = codec
        self._judges = dict(written)

    def of(self, relation: Relation) -> type[Model]:
        """
        Give the model of a relation.

        Raises:
            NoSuchProcedure: The catalog does not have it.
        """
        return self.judge(relation).model

    def judge(self, relation: Relation) -> Judge:
        """
        Give what judges the rows of a relation.

        Raises:
            NoSuchProcedure: The catalog does not have it.
        """
        place = relation.schema, relation.name
        found = self._judges.get(place)
        if found is None:
            found = self._judges[place] = self._generated(self._catalog.relation(*place))
        return found

    def _generated(self, relation: Relation) -> Judge:
        name = f"{relation.schema}.{relation.name}"
        named = {"TABLENAME": name, "__doc__": f"Rows of {name}."}
        model: type[Model] = type(name, (Model,), named)
        for kind, ends in declared(self._catalog, relation, self.of, dir(model)):
            model.relate(kind, ends)
        return _bound(model, relation, self._catalog, self._codec)


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
        self._loaded: LoadedModels | None = None
        self._lacking: dict[type[Model], list[str]] = {}

    def install(self) -> None:
        """Make twistar use this database; there is one per process, as twistar has it."""
        Registry.DBPOOL = Face(self._database)
        Registry.IMPL = PgConfig(self._database)

    def load(self, catalog: Catalog, codec: Values) -> LoadedModels:
        """
        Bind the models to this catalog; objects that are about keep what they knew.

        A class written by hand speaks of the newest catalog; what is given here, of this one.
        """
        self.install()
        written = {}
        for model in self._written:
            Registry.register(model)
            model.META = None
            place = _place(model, catalog)
            relation = catalog.relations.get(place)
            if relation is not None and self._fits(model, relation):
                written[place] = _bound(model, relation, catalog, codec)
        self._loaded = LoadedModels(catalog, codec, written)
        return self._loaded

    def of(self, relation: Relation) -> type[Model]:
        """
        Give the model of a relation, as the newest catalog has it.

        Raises:
            NoSuchProcedure: That catalog does not have it.
        """
        if self._loaded is None:
            raise LookupError("no catalog is loaded")
        return self._loaded.of(relation)

    def _fits(self, model: type[Model], relation: Relation) -> bool:
        """Tell whether the rules have what they speak of; if not, say so once."""
        lacking = _lacking(model, relation)
        if lacking and self._lacking.get(model) != lacking:
            log.warn(
                "{relation} has no {columns}: it is served without the rules of {model}",
                relation=f"{relation.schema}.{relation.name}",
                columns=", ".join(lacking),
                model=model.__name__,
            )
        self._lacking[model] = lacking
        return not lacking


def fits(model: type[Model], catalog: Catalog) -> bool:
    """Tell whether a catalog has the relation of a model, with all that its rules speak of."""
    relation = catalog.relations.get(_place(model, catalog))
    return relation is not None and not _lacking(model, relation)


def _lacking(model: type[Model], relation: Relation) -> list[str]:
    return [name for name in model.NEEDS if name not in relation.columns]


def _bound(model: type[Model], relation: Relation, catalog: Catalog, codec: Values) -> Judge:
    model.META = Meta(relation, catalog, codec, frozenset(dir(model)))
    return Judge(model, model.META)


def _place(model: type[Model], catalog: Catalog) -> Place:
    schema, _, name = model.tablename().rpartition(".")
    return schema or catalog.schemas[0], name
