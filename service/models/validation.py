"""
Validation of a row by the catalog and by its model, before a statement is sent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import maybeDeferred

from service.catalog import Catalog, Column, Relation
from service.db.codec import Codec
from service.errors import InvalidRow, ServiceError, clip
from service.models.meta import Meta
from service.models.model import Model
from service.models.record import UnreadRow


def catalog_faults(
    relation: Relation,
    catalog: Catalog,
    values: Mapping[str, Any],
    creating: bool,
    defaulted: Collection[str] = (),
) -> dict[str, list[str]]:
    """
    Find the columns whose values PostgreSQL would refuse: NULL, too long, or no label of the enum.

    Args:
        relation: The relation of the row.
        catalog: Has the types of its columns.
        values: Wire values, or Python values, by column.
        creating: Whether the row is new, so that a column without a value needs a default. If a BEFORE
            trigger may set columns, that is left to the database.
        defaulted: Columns that are set to their default.

    Returns:
        Reasons by column, worded to follow the column's name.
    """
    found = {}
    fillable = creating and "insert" in relation.before_triggers
    for name, column in relation.columns.items():
        if name in values:
            value = values[name]
            # First the cheap test, since this runs for each value of each new row.
            if value is not None and not isinstance(value, str):
                continue
            reasons = list(_reasons(catalog, column, value, fillable))
        elif column.nullable or column.has_default or fillable:
            continue
        elif creating:
            reasons = ["is required"]
        elif name in defaulted:
            reasons = ["has no default"]
        else:
            continue
        if reasons:
            found[name] = reasons
    return found


def _reasons(catalog: Catalog, column: Column, value: Any, fillable: bool) -> Iterator[str]:
    if value is None:
        if not column.nullable and not fillable:
            yield "may not be null"
        return
    limit = column.max_length
    # PostgreSQL truncates trailing spaces to make a value fit.
    if limit is not None and value[limit:].strip(" "):
        yield f"is longer than {limit} characters"
    type = catalog.plain(catalog.type(column.type))
    if type.kind == "enum" and value not in type.labels:
        yield f"is none of {clip(', '.join(type.labels), 300)}"


@dataclass(frozen=True)
class BoundModel:
    """
    A model bound to the relation in one catalog, for writes by callers.

    Args:
        model: Has the validations and hooks.
        meta: The relation in the catalog; `model.META` may be of a newer one by now.
    """

    model: type[Model]
    meta: Meta

    def has_rules(self, creating: bool) -> bool:
        """Return whether the model has validations, or hooks before a new or changed row is saved."""
        return self.model.has_rules(creating)

    @property
    def has_delete_hook(self) -> bool:
        """Whether the model has a hook before a row is deleted."""
        return self.model.has_delete_hook()

    async def validate_insert(
        self, values: Mapping[str, Any], codec: Codec, path: str
    ) -> dict[str, Any]:
        """
        Validate a new row.

        Args:
            values: Wire values by column.
            codec: Makes the Python values that validations and hooks see.
            path: The place of the row in the call.

        Returns:
            The values to write, by column: the given object itself if no hook has changed it, and Python
            values that hooks have set.

        Raises:
            InvalidRow: With every failing column.
            InvalidArgument: A value is not of its column's type.
        """
        subject = self.model()
        subject._meta = self.meta
        return await self._validated(subject, values, codec, path)

    async def validate_update(
        self, current: Mapping[str, Any], changes: Mapping[str, Any], codec: Codec, path: str
    ) -> dict[str, Any]:
        """
        Validate changes of a row.

        Args:
            current: The current wire values of the row by column.
            changes: Wire values by column.
            codec: As in `validate_insert`.
            path: As in `validate_insert`.

        Returns:
            As `validate_insert`: the changes, and the columns that hooks have changed as well.

        Raises:
            InvalidRow: With every failing column.
            InvalidArgument: A value is not of its column's type.
        """
        return await self._validated(self._hydrated(current), changes, codec, path)

    def accepts_unseen(self, changes: Mapping[str, Any], codec: Codec) -> bool:
        """
        Return whether all rules accept changes of a row without a look at the row itself.

        Args:
            changes: Wire values by column.
            codec: As in `validate_insert`.
        """
        # Most rules need the changed values alone. Then one UPDATE is enough, while rules that need the row
        # have it locked and read first: three messages instead of one.
        row = UnreadRow()
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
            codec: As in `validate_insert`.
        """
        subject = self.model()
        subject._meta = self.meta
        return self._accepts(subject, values, codec)

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

    async def validate_delete(self, current: Mapping[str, Any]) -> None:
        """
        Validate the deletion of a row.

        Args:
            current: The current wire values of the row by column.

        Raises:
            InvalidRow: The hook refuses it.
        """
        subject = self._hydrated(current)
        if await maybeDeferred(subject.beforeDelete) is False or not subject.errors.isEmpty():
            raise subject.invalid("refused by beforeDelete")

    def _hydrated(self, current: Mapping[str, Any]) -> Model:
        row = tuple(current.get(name) for name in self.meta.columns)
        return self.model.hydrate([row], self.meta)[0]

    async def _validated(
        self, subject: Model, values: Mapping[str, Any], codec: Codec, path: str
    ) -> dict[str, Any]:
        meta, own = self.meta, subject.__dict__
        given = {
            name: codec.python(meta.types[name], value, f"{path}.{name}")
            for name, value in values.items()
        }
        # Into the object's dict, which holds the values that were set; all others are read from the row.
        own.update({meta.attributes[name]: value for name, value in given.items()})
        creating = not subject.persisted
        refusal = await subject.refusal(creating)
        if refusal is not None:
            raise InvalidRow(meta.relation.name, refusal.details["fields"], path)
        if creating:
            names = [name for name, attribute in meta.attributes.items() if attribute in own]
        else:
            names = list(dict.fromkeys([*values, *subject.dirty()]))
        found = {name: own[meta.attributes[name]] for name in names}
        return {
            # By identity: a hook may have set an equal value of another type, 1 for True.
            name: values[name] if name in given and value is given[name] else value
            for name, value in found.items()
        }
