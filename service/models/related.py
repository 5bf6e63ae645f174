"""
What a model declares of its relationships, worked out once, when the class is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from BermiInflector.Inflector import Inflector
from twistar.exceptions import InvalidRelationshipError, ReferenceNotSavedError

from service.models.ends import Ends
from service.models.finding import Finding
from service.models.meta import Meta
from service.models.relationship import Relationship
from service.models.to_many import HABTM, HasMany
from service.models.to_one import BelongsTo, HasOne
from service.models.together import acquaint

TYPES: dict[str, type[Relationship]] = {
    "HASMANY": HasMany,
    "HASONE": HasOne,
    "BELONGSTO": BelongsTo,
    "HABTM": HABTM,
}
"""What a model may declare."""


class Property:
    """The attribute of a relationship."""

    def __init__(self, kind: type[Relationship], ends: Ends) -> None:
        self.kind = kind
        self.ends = ends

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        if not instance.persisted:
            raise ReferenceNotSavedError("save an object before it is related to others")
        return self.kind(instance, self.ends)


class Related(Finding):
    """A model's relationships, worked out when the class is made."""

    RELATIONSHIP_CACHE: ClassVar[dict[str, tuple[type, Mapping[str, Any]]]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.initRelationshipCache()

    @classmethod
    def initRelationshipCache(cls) -> None:
        """Work out what HASMANY, HASONE, BELONGSTO and HABTM declare."""
        cls.RELATIONSHIP_CACHE = {}
        for kind in TYPES:
            for declared in getattr(cls, kind):
                cls.addRelation(declared, kind)

    @classmethod
    def addRelation(cls, relation: str | Mapping[str, Any], rtype: str) -> None:
        """
        Add a relationship.

        Raises:
            twistar.exceptions.InvalidRelationshipError: It has no name; or no join table,
                whose name twistar could only guess.
        """
        options = dict(relation) if isinstance(relation, Mapping) else {"name": relation}
        name = options.pop("name", None)
        if name is None:
            raise InvalidRelationshipError(f"a relationship of {cls.__name__} has no name")
        if rtype == "HABTM" and "join_table" not in options:
            raise InvalidRelationshipError(f"{cls.__name__}.{name} has no join_table")
        words = Inflector()
        given = options.get("class_name", name)
        # A class's own name is taken at its word: the Inflector would make Statu of Status.
        class_name = given if given[:1].isupper() else words.classify(given)
        here = options.get("foreign_key") or words.foreignKey(cls.__name__)
        there = options.get("association_foreign_key") or words.foreignKey(words.singularize(name))
        if options.get("polymorphic"):
            class_name, there = None, f"{name}_id"
        ends = Ends(name, class_name, _names(here), _names(there), options=options)
        cls.relate(TYPES[rtype], ends)

    @classmethod
    def relate(cls, kind: type[Relationship], ends: Ends) -> None:
        """Add a relationship that is worked out already."""
        cls.RELATIONSHIP_CACHE[ends.name] = (kind, ends.options)
        setattr(cls, ends.name, Property(kind, ends))

    @classmethod
    def hydrate(cls, rows: Sequence[tuple[Any, ...]], meta: Meta) -> list[Self]:
        """Make objects of rows, which know each other if there is anything to ask them all."""
        made = super().hydrate(rows, meta)
        if cls.RELATIONSHIP_CACHE and len(made) > 1:
            acquaint(made)
        return made

    def _twin(self) -> Self:
        """Make another object of the same row, among the same others."""
        assert self._row is not None
        (made,) = self.hydrate([self._row], self.made_with)
        made._together = self._together
        if self._together is not None:
            self._together.add(made)
        return made

    def joined(self) -> list[HABTM]:
        """Give the relationships that have rows in join tables."""
        return [
            getattr(self, name)
            for name, (kind, _) in self.RELATIONSHIP_CACHE.items()
            if kind is HABTM
        ]


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    """Give the columns of a key: one is its bare name."""
    return (given,) if isinstance(given, str) else tuple(given)
