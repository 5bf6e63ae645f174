"""
What the catalog and the model say against a row, before the database is asked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar, Self

from twistar.dbobject import DBObject
from twisted.internet.defer import Deferred, ensureDeferred, maybeDeferred

from service.catalog import Catalog, Column, Relation
from service.errors import InvalidRow, clip
from service.models.meta import Meta, Values
from service.models.record import Queries


def catalog_faults(
    relation: Relation,
    catalog: Catalog,
    values: Mapping[str, Any],
    creating: bool,
    defaulted: Collection[str] = (),
) -> dict[str, list[str]]:
    """
    Find the columns whose values cannot stay: NULL, too long, no label of the enum.

    Args:
        relation: Whose row it is.
        catalog: For its types.
        values: Wire values, or Python's, by column.
        creating: Whether it is a new row, so that a column that is not given must have a
            default. Where a trigger may fill it in, only the database can tell.
        defaulted: Columns that are to take their default, and so have no value.

    Returns:
        Reasons by column, worded to follow the column's name.
    """
    found = {}
    fillable = creating and relation.filled
    for name, column in relation.columns.items():
        if name in values:
            reasons = list(_reasons(catalog, column, values[name], fillable))
        elif fillable:
            continue
        elif creating and not column.nullable and not column.has_default:
            reasons = ["is required"]
        elif name in defaulted and not column.nullable and not column.has_default:
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
    if not isinstance(value, str):
        return
    limit = column.max_length
    # PostgreSQL cuts spaces off the end to make a value fit.
    if limit is not None and value[limit:].strip(" "):
        yield f"is longer than {limit} characters"
    type = catalog.plain(catalog.type(column.type))
    if type.kind == "enum" and value not in type.labels:
        yield f"is none of {clip(', '.join(type.labels), 300)}"


HOOKS = ("beforeCreate", "beforeUpdate", "beforeSave")


class Ruled:
    """Whether a class has validations or hooks before a save."""

    def __get__(self, instance: object, owner: type[Rules]) -> bool:
        return bool(owner.VALIDATIONS) or any(
            getattr(owner, hook) is not getattr(DBObject, hook) for hook in HOOKS
        )


class Guarded:
    """Whether a class has a hook before a delete."""

    def __get__(self, instance: object, owner: type[Rules]) -> bool:
        return owner.beforeDelete is not DBObject.beforeDelete


class Rules(Queries):
    """
    What decides whether an object may be written.

    Attributes:
        ruled: Whether there is anything to decide, beyond what the catalog knows.
        guarded: Whether there is anything to decide before a row is deleted.
    """

    ruled: ClassVar[Any] = Ruled()
    guarded: ClassVar[Any] = Guarded()

    @classmethod
    def validatesUniquenessOf(cls, *names: str, **options: Any) -> None:
        """Add a validation: no other row has this value; an error of the database is one."""
        message = options.get("message", "is not unique")

        async def unique(subject: Rules) -> None:
            for name in names:
                value = getattr(subject, name)
                others = await cls.findBy(**{name: value}) if value is not None else []
                if any(other != subject for other in others):
                    subject.errors.add(name, message)

        cls.addValidator(unique)

    def validate(self) -> Deferred[Any]:
        """Run all validations and return the object, with its `errors`."""
        return ensureDeferred(self._validated())

    def isValid(self) -> Deferred[bool]:
        """Run all validations and return whether the object has no errors."""
        return self.validate().addCallback(lambda _: self.errors.isEmpty())

    async def _validated(self) -> Rules:
        self.errors.clear()
        for validation in type(self).VALIDATIONS:
            await _outcome(validation, self)
        return self

    async def refusal(self, creating: bool) -> InvalidRow | None:
        """
        Run validations and hooks in twistar's order, and return their refusal, if any.

        A hook refuses by returning False, or by adding to `errors`.
        """
        await self._validated()
        hooks = ("beforeCreate" if creating else "beforeUpdate", "beforeSave")
        for hook in hooks if self.errors.isEmpty() else ():
            if await _outcome(getattr(self, hook)) is False:
                return self._invalid({"*": [f"refused by {hook}"]})
            if not self.errors.isEmpty():
                break
        return None if self.errors.isEmpty() else self._invalid({})

    async def keeping(self) -> InvalidRow | None:
        """Run the hook before a delete, and return its refusal, if any."""
        self.errors.clear()
        kept = await _outcome(self.beforeDelete) is False
        if not kept and self.errors.isEmpty():
            return None
        return self._invalid({"*": ["refused by beforeDelete"]})

    def _invalid(self, otherwise: Mapping[str, list[str]]) -> InvalidRow:
        meta = self.made_with
        fields = {meta.named.get(name, name): found for name, found in self.errors.items()}
        return InvalidRow(meta.relation.name, fields or otherwise)


async def _outcome(function: Any, *args: Any) -> Any:
    """Call a plain function, a coroutine function, or one that returns a Deferred."""
    return await maybeDeferred(function, *args)


class Admission(Rules):
    """What the wire asks of a model."""

    @classmethod
    async def admit_new(
        cls, values: Mapping[str, Any], codec: Values, path: str, meta: Meta | None = None
    ) -> dict[str, Any]:
        """
        Validate a new row.

        Args:
            values: Wire values by column.
            codec: To make the Python values that validations and hooks see.
            path: Where the row stood in the call.
            meta: Of the catalog that the call began with; the newest one's if left out.

        Returns:
            What is to be written, by column: a value that nobody touched as it was given,
            the very object, and what hooks have set as Python values.

        Raises:
            InvalidRow: With every failing column.
            InvalidArgument: A value is not of its column's type.
        """
        subject = cls()
        subject._meta = meta or cls.meta()
        return await subject._admitted(values, codec, path, creating=True)

    @classmethod
    async def admit_change(
        cls,
        current: Mapping[str, Any],
        changes: Mapping[str, Any],
        codec: Values,
        path: str,
        meta: Meta | None = None,
    ) -> dict[str, Any]:
        """
        Validate changes of a row.

        Args:
            current: The row's wire values by column, as it is now.
            changes: Wire values by column.
            codec: As in `admit_new`.
            path: As in `admit_new`.
            meta: As in `admit_new`.

        Returns:
            As `admit_new`: the changes, and what hooks have changed beside them.
        """
        return await cls._of(current, meta)._admitted(changes, codec, path, creating=False)

    @classmethod
    async def admit_delete(cls, current: Mapping[str, Any], meta: Meta | None = None) -> None:
        """
        Validate the deletion of a row.

        Args:
            current: The row's wire values by column, as it is now.
            meta: As in `admit_new`.

        Raises:
            InvalidRow: It is to stay.
        """
        refusal = await cls._of(current, meta).keeping()
        if refusal is not None:
            raise refusal

    @classmethod
    def _of(cls, current: Mapping[str, Any], meta: Meta | None) -> Self:
        meta = meta or cls.meta()
        (subject,) = cls.hydrate([tuple(current.get(name) for name in meta.columns)], meta)
        return subject

    async def _admitted(
        self, values: Mapping[str, Any], codec: Values, path: str, creating: bool
    ) -> dict[str, Any]:
        meta = self.made_with
        given = {
            name: codec.python(meta.types[name], value, f"{path}.{name}")
            for name, value in values.items()
        }
        self._take({meta.attributes[name]: value for name, value in given.items()})
        refusal = await self.refusal(creating)
        if refusal is not None:
            raise InvalidRow(meta.relation.name, refusal.details["fields"], path)
        own = self.__dict__
        if creating:
            names = [name for name, attribute in meta.attributes.items() if attribute in own]
        else:
            names = list(dict.fromkeys([*values, *self.dirty()]))
        admitted = {}
        for name in names:
            value = own[meta.attributes[name]]
            untouched = name in given and value is given[name]
            admitted[name] = values[name] if untouched else value
        return admitted

    def _take(self, values: Mapping[str, Any]) -> Self:
        self.__dict__.update(values)
        return self
