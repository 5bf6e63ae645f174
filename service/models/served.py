"""
The models of the served relations, bound to a catalog, and how they validate the rows that callers write.

A relation without a model written by hand has a generated one, with the relationships of its foreign keys. A
bound model validates rows by its own catalog, even after another catalog is loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from twistar.registry import Registry
from twisted.internet.defer import maybeDeferred
from twisted.logger import Logger

from service.catalog import Catalog, ForeignKey, Relation
from service.db.codec import Codec
from service.db.database import Database
from service.db.worker import ORIGIN
from service.errors import InvalidRow, ServiceError
from service.models.meta import Meta
from service.models.model import Model
from service.models.record import UNREAD, PartialRow, not_readable
from service.models.relationships import Association, BelongsTo, HasMany, HasOne, Relationship
from service.models.twistar import CallerPool, PgConfig

log = Logger()


@dataclass(frozen=True)
class BoundModel:
    """
    A model bound to the relation in one catalog, for writes by callers.

    Args:
        model: Has the validations and hooks.
        meta: The relation in the catalog; `model.META` may be of a newer one by now.
        logged: The roles and columns that `_log_unread` has logged.
    """

    model: type[Model]
    meta: Meta
    logged: set[tuple[str, str]] = field(default_factory=set, compare=False)

    def has_rules(self, creating: bool) -> bool:
        """Return whether the model has validations, or hooks before a new or changed row is saved."""
        return self.model.has_rules(creating)

    @property
    def has_delete_hook(self) -> bool:
        """Whether the model has a hook before a row is deleted."""
        return self.model.has_delete_hook()

    async def validate(
        self,
        values: Mapping[str, Any],
        codec: Codec,
        path: str,
        current: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """
        Validate a new row, or changes of a current one.

        Args:
            values: Wire values by column: those of the new row, or those that change.
            codec: Makes the Python values that validations and hooks see.
            path: The place of the row in the call.
            current: The wire values of the row before the changes, by column, without those that the
                caller's role may not read; None if the row is new.

        Returns:
            The values to write, by column: the given object itself if no hook has changed it, and Python
            values that hooks have set.

        Raises:
            InvalidRow: With every failing column.
            InvalidArgument: A value is not of its column's type.
            NotAuthorized: A rule has read a column of the current row that `current` lacks.
        """
        subject = self._subject(current)
        meta, own = self.meta, subject.__dict__
        given = {
            name: codec.python(meta.types[name], value, f"{path}.{name}")
            for name, value in values.items()
        }
        # Into the object's dict, which holds the values that were set; all others are read from the row.
        own.update({meta.attributes[name]: value for name, value in given.items()})
        with self._refusing_unread(subject):
            refusal = await subject.refusal(creating=current is None)
        if refusal is not None:
            raise InvalidRow(meta.relation.name, refusal.details["fields"], path)
        if current is None:
            names = [name for name, attribute in meta.attributes.items() if attribute in own]
        else:
            names = list(dict.fromkeys([*values, *subject.dirty()]))
        found = {name: own[meta.attributes[name]] for name in names}
        return {
            # By identity: a hook may have set an equal value of another type, 1 for True.
            name: values[name] if name in given and value is given[name] else value
            for name, value in found.items()
        }

    def accepts_unseen(self, changes: Mapping[str, Any], codec: Codec) -> bool:
        """
        Return whether all rules accept changes of a row without a look at the row itself.

        Args:
            changes: Wire values by column.
            codec: As in `validate`.
        """
        # Most rules need the changed values alone. Then one UPDATE is enough, while rules that need the row
        # have it locked and read first: three messages instead of one.
        row = PartialRow([UNREAD] * len(self.meta.columns))
        try:
            accepted = self._accepts(self.model.hydrate([row], self.meta)[0], changes, codec)
        except Exception:
            if row.asked:
                return False
            raise
        return accepted and not row.asked

    def accepts_new(self, values: Mapping[str, Any], codec: Codec) -> bool:
        """
        Return whether all rules accept a new row unchanged, without a Deferred to wait for.

        Args:
            values: Wire values by column.
            codec: As in `validate`.
        """
        return self._accepts(self._subject(None), values, codec)

    def _accepts(self, subject: Model, values: Mapping[str, Any], codec: Codec) -> bool:
        """Return whether the rules of an object accept values without waiting, and set no values."""
        meta, own = self.meta, subject.__dict__
        try:
            given = {
                meta.attributes[name]: codec.python(meta.types[name], value, name)
                for name, value in values.items()
            }
            own.update(given)
            if not subject.is_valid_at_once(creating=not subject.persisted):
                return False
        except ServiceError:
            return False
        return all(
            name not in own or (name in given and own[name] is given[name])
            for name in meta.position
        )

    def reasons_at_once(
        self, values: Mapping[str, Any], codec: Codec, creating: bool
    ) -> dict[str, list[str]]:
        """
        Return the reasons, by column, of the validations that need neither to wait nor the stored row.

        Args:
            values: Wire values by column, of which some may not be of their type.
            codec: As in `validate`.
            creating: Whether the row is new.
        """
        subject, meta = self._subject(None if creating else {}), self.meta
        for name, value in values.items():
            with suppress(ServiceError):
                value = codec.python(meta.types[name], value, name)
            subject.__dict__[meta.attributes[name]] = value
        found = subject.reasons_at_once()
        return {meta.named.get(name, name): reasons for name, reasons in found.items()}

    async def validate_delete(self, current: Mapping[str, Any]) -> None:
        """
        Validate the deletion of a row.

        Args:
            current: The current wire values of the row by column; without those that the caller's role
                may not read.

        Raises:
            InvalidRow: The hook refuses it.
            NotAuthorized: The hook has read a column that `current` lacks.
        """
        subject = self._subject(current)
        with self._refusing_unread(subject):
            refused = await maybeDeferred(subject.beforeDelete) is False
        if refused or not subject.errors.isEmpty():
            raise subject.invalid("refused by beforeDelete")

    def _subject(self, current: Mapping[str, Any] | None) -> Model:
        """Return an object of a row with these wire values, or of a new row."""
        if current is None:
            subject = self.model()
            subject._meta = self.meta
            return subject
        row = PartialRow(current.get(name, UNREAD) for name in self.meta.columns)
        return self.model.hydrate([row], self.meta)[0]

    @contextmanager
    def _refusing_unread(self, subject: Model) -> Iterator[None]:
        """
        Refuse a row whose rules, in the body, read a column that the caller's role may not read.

        A rule that took it for NULL would let a weaker role write what the rule refuses to all others. The
        refusal does not name the column, which the caller need not know of; the log does.

        Raises:
            NotAuthorized: They did, whatever they made of it.
        """
        row = subject._row
        try:
            yield
        except Exception:
            if not (isinstance(row, PartialRow) and row.asked):
                raise
        if isinstance(row, PartialRow) and row.asked:
            self._log_unread(row.asked)
            raise not_readable()

    def _log_unread(self, asked: Collection[int | str]) -> None:
        """Log, once for each role, which columns the rules need that a role may not read."""
        meta, origin = self.meta, ORIGIN.get()
        found = {each if isinstance(each, str) else meta.columns[each] for each in asked}
        columns, role = ", ".join(sorted(found)), origin.role if origin else ""
        if (role, columns) not in self.logged:
            self.logged.add((role, columns))
            log.warn(
                "the rules of {model} read {columns} of {relation}, which {role} may not read: its writes are"
                " refused → GRANT SELECT ({columns}) ON {relation}, or a rule that does not read it",
                model=self.model.__name__,
                columns=columns,
                relation=f"{meta.relation.schema}.{meta.relation.name}",
                role=f"the role {role}" if role else "the service's role",
            )


def associations(
    catalog: Catalog, relation: Relation, of: Callable[[Relation], Any], taken: Collection[str]
) -> Iterator[Association]:
    """
    Yield the relationships of a generated model: those of its foreign keys.

    The relationship to a referenced row is named after the column without `_id`, or else after the relation;
    the one to referencing rows after their relation. If names collide, each is that of its constraint. A
    junction is an ordinary relation on the way to the other side; as twistar's HABTM it would lose its rows
    with each row that is deleted.

    Args:
        catalog: Has the foreign keys.
        relation: The relation of the model.
        of: Returns the model of a relation.
        taken: Names of the class's own attributes, which are not used; neither are those of columns.
    """
    found = [*_referred(catalog, relation), *_referring(catalog, relation)]
    names = Counter(name for name, *_ in found)
    used = {*taken, *relation.columns}
    for name, key, kind, target in found:
        for word in (name, key.name) if names[name] == 1 else (key.name,):
            if word not in used:
                used.add(word)
                own, others = ((), key.columns) if kind is BelongsTo else (key.columns, ())
                other = partial(of, target)
                yield Association(kind, word, other, own, others, key=key.target_columns)
                break


Found = tuple[str, ForeignKey, type[Relationship], Relation]


def _referred(catalog: Catalog, relation: Relation) -> Iterator[Found]:
    for key in relation.foreign_keys:
        target = catalog.relations.get(key.target)
        if target is not None and _readable(relation, key.columns):
            column = key.columns[0]
            plain = len(key.columns) == 1 and column.endswith("_id") and len(column) > 3
            yield column[:-3] if plain else target.name, key, BelongsTo, target


def _referring(catalog: Catalog, relation: Relation) -> Iterator[Found]:
    for other, key in catalog.referrers.get((relation.schema, relation.name), ()):
        if key in other.foreign_keys and _readable(relation, key.target_columns):
            yield other.name, key, HasOne if other.refers_once(key) else HasMany, other


def _readable(relation: Relation, names: Collection[str]) -> bool:
    return all(relation.columns[name].selectable for name in names)


class LoadedModels:
    """
    The models of the relations of one catalog, independent of those of other catalogs.

    A generated model is built at its first use, because a thousand at once would block the reactor.

    Args:
        catalog: The catalog.
        codec: Reads and writes its values.
        written: The models written by hand, by schema and name of the relation.
    """

    def __init__(
        self, catalog: Catalog, codec: Codec, written: Mapping[tuple[str, str], BoundModel]
    ) -> None:
        self._catalog = catalog
        self._codec = codec
        self._bound = dict(written)

    def of(self, relation: Relation) -> type[Model]:
        """
        Return the model of a relation.

        Raises:
            NoSuchProcedure: The catalog does not have the relation.
        """
        return self.bound(relation).model

    def bound(self, relation: Relation) -> BoundModel:
        """
        Return the model of a relation with its rules, for writes by callers.

        Raises:
            NoSuchProcedure: The catalog does not have the relation.
        """
        place = relation.schema, relation.name
        found = self._bound.get(place)
        if found is None:
            found = self._bound[place] = self._generated(self._catalog.relation(*place))
        return found

    def _generated(self, relation: Relation) -> BoundModel:
        name = f"{relation.schema}.{relation.name}"
        named = {"TABLENAME": name, "__doc__": f"Rows of {name}."}
        model: type[Model] = type(name, (Model,), named)
        for association in associations(self._catalog, relation, self.of, dir(model)):
            model.relate(association)
        return _bound(model, relation, self._catalog, self._codec)


class Models:
    """
    Loads the models of each catalog: those written by hand, and a generated one for each other relation.

    Args:
        database: Runs their statements.
        written: Models written by hand; they take precedence over generated ones of the same relation.
    """

    def __init__(self, database: Database, written: Iterable[type[Model]] = ()) -> None:
        self._database = database
        self._written = tuple(written)
        self._lacking: dict[type[Model], list[str]] = {}

    def install(self) -> None:
        """Register this database with twistar, which has one for each process."""
        Registry.DBPOOL = CallerPool(self._database)
        Registry.IMPL = PgConfig(self._database)

    def load(self, catalog: Catalog, codec: Codec) -> LoadedModels:
        """
        Bind the models to a catalog; objects that were read before keep the catalog of their read.

        A class written by hand is always bound to the newest catalog; the result stays bound to this one.
        """
        # twistar has one registry for the process, so its classes use the database that was loaded last.
        self.install()
        written = {}
        for model in self._written:
            Registry.register(model)
            # This catalog may lack a relation that the last one had.
            model.META = None
            place = _place(model, catalog)
            relation = catalog.relations.get(place)
            if relation is not None and self._fits(model, relation):
                written[place] = _bound(model, relation, catalog, codec)
        return LoadedModels(catalog, codec, written)

    def _fits(self, model: type[Model], relation: Relation) -> bool:
        """Return whether the relation has the columns that the rules use; if not, log it once."""
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
    """Return whether a catalog has the relation of a model, with all columns that its rules use."""
    relation = catalog.relations.get(_place(model, catalog))
    return relation is not None and not _lacking(model, relation)


def _lacking(model: type[Model], relation: Relation) -> list[str]:
    return [name for name in model.NEEDS if name not in relation.columns]


def _bound(model: type[Model], relation: Relation, catalog: Catalog, codec: Codec) -> BoundModel:
    # A column named like a method would hide the method, so the names of the class are reserved.
    model.META = Meta(relation, catalog, codec, frozenset(dir(model)))
    return BoundModel(model, model.META)


def _place(model: type[Model], catalog: Catalog) -> tuple[str, str]:
    schema, _, name = model.tablename().rpartition(".")
    return schema or catalog.schemas[0], name
