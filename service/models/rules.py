"""
The rules of a model: validations and hooks, which all count.

twistar ignores a validation that raises and saves the object; here nothing is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from twistar.dbobject import DBObject
from twisted.internet.defer import Deferred, ensureDeferred, maybeDeferred

from service.errors import InvalidRow
from service.models.finding import Finding

HOOKS = ("beforeCreate", "beforeUpdate", "beforeSave")


class Ruled:
    """Tells, of a class, whether it has validations or hooks before a save."""

    def __get__(self, instance: object, owner: type[Rules]) -> bool:
        return bool(owner.VALIDATIONS) or any(
            getattr(owner, hook) is not getattr(DBObject, hook) for hook in HOOKS
        )


class Guarded:
    """Tells, of a class, whether it has a hook before a delete."""

    def __get__(self, instance: object, owner: type[Rules]) -> bool:
        return owner.beforeDelete is not DBObject.beforeDelete


class Rules(Finding):
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
        """Run all validations; gives the object, whose `errors` then tell."""
        return ensureDeferred(self._validated())

    def isValid(self) -> Deferred[bool]:
        """Run all validations; tells whether there is nothing against the object."""
        return self.validate().addCallback(lambda _: self.errors.isEmpty())

    async def _validated(self) -> Rules:
        self.errors.clear()
        for validation in type(self).VALIDATIONS:
            await _outcome(validation, self)
        return self

    async def refusal(self, creating: bool) -> InvalidRow | None:
        """
        Run validations and hooks in twistar's order; gives what they have against the object.

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
        """Run the hook before a delete; gives what it has against it, as other hooks do."""
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
    """Call what may be a plain function, a coroutine function or one that gives a Deferred."""
    return await maybeDeferred(function, *args)
