"""
Writes that come over the wire, judged by the model before they become a statement.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from service.errors import InvalidRow
from service.models.meta import Meta, Values
from service.models.rules import Rules


class Admission(Rules):
    """What the wire asks of a model."""

    @classmethod
    async def admit_new(
        cls, values: Mapping[str, Any], codec: Values, path: str, meta: Meta | None = None
    ) -> dict[str, Any]:
        """
        Judge a new row.

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
        Judge changes of a row.

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
        Judge the deletion of a row.

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
