"""
A model as it judges the rows of one catalog, whatever catalog is loaded meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.models.base import Model
from service.models.meta import Meta, Values


@dataclass(frozen=True)
class Judge:
    """
    What decides about writes to a relation that come over the wire.

    Args:
        model: With the rules.
        meta: What the catalog knows of the relation.
    """

    model: type[Model]
    meta: Meta

    @property
    def ruled(self) -> bool:
        """Whether there is anything to decide about rows, beyond what the catalog knows."""
        return bool(self.model.ruled)

    @property
    def guarded(self) -> bool:
        """Whether there is anything to decide before a row is deleted."""
        return bool(self.model.guarded)

    async def admit_new(
        self, values: Mapping[str, Any], codec: Values, path: str
    ) -> dict[str, Any]:
        """Judge a new row; see `Admission.admit_new`."""
        return await self.model.admit_new(values, codec, path, self.meta)

    async def admit_change(
        self, current: Mapping[str, Any], changes: Mapping[str, Any], codec: Values, path: str
    ) -> dict[str, Any]:
        """Judge changes of a row; see `Admission.admit_change`."""
        return await self.model.admit_change(current, changes, codec, path, self.meta)

    async def admit_delete(self, current: Mapping[str, Any]) -> None:
        """Judge the deletion of a row; see `Admission.admit_delete`."""
        await self.model.admit_delete(current, self.meta)
