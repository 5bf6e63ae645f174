"""
What a model declares of its relationships, worked out once, when the class is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from BermiInflector.Inflector import Inflector
from twistar.exceptions import InvalidRelationshipError, ReferenceNotSavedError

from service.models.ends import Ends
from service.models.finding import Finding
from service.models.relations import HABTM, BelongsTo, HasMany, HasOne, Relationship

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
        ends = Ends(
            name=name,
            other=None if options.get("polymorphic") else class_name,
            here=options.get("foreign_key") or words.foreignKey(cls.__name__),
            there=options.get("association_foreign_key")
            or words.foreignKey(words.singularize(name)),
            options=options,
        )
        cls.RELATIONSHIP_CACHE[name] = (TYPES[rtype], options)
        setattr(cls, name, Property(TYPES[rtype], ends))

    def joined(self) -> list[HABTM]:
        """Give the relationships that have rows in join tables."""
        return [
            getattr(self, name)
            for name, (kind, _) in self.RELATIONSHIP_CACHE.items()
            if kind is HABTM
        ]
