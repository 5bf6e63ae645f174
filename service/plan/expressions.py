"""
References, select lists and sort keys against a relation's columns.
"""

from __future__ import annotations

from collections.abc import Iterable

from service.catalog import Catalog, Column, Relation, Type
from service.errors import InvalidArgument, UnknownName
from service.plan.conditions import Bound, Expression, PlannedStep
from service.plan.types import Output, SortKey
from service.request.terms import Item, Key, Operand, Reference, Step


class Scope:
    """
    What names mean in one relation of a call.

    Args:
        catalog: For types.
        relation: For columns.
    """

    def __init__(self, catalog: Catalog, relation: Relation) -> None:
        self.catalog = catalog
        self.relation = relation

    def bound(self, operand: Operand, type: Type, raw: bool = False) -> Bound:
        """Give a parameter its type."""
        return Bound(operand.slot, type, operand.path, raw=raw)

    def named(self, name: str) -> Type:
        """Look a type up that every PostgreSQL has."""
        return self.catalog.types_by_name[name]

    def expression(self, reference: Reference) -> Expression:
        """
        Resolve a reference.

        Raises:
            InvalidArgument: There is no such column, or it has nothing to step into.
        """
        if reference.owners:
            raise UnknownName(
                "embed", reference.owners[0], (), f'relation "{self.relation.name}"', reference.path
            )
        column = self.relation.column(reference.name, reference.path)
        if reference.steps:
            return self._stepped(column, reference)
        return self.of_column(column, reference.path)

    def of_column(self, column: Column, path: str = "") -> Expression:
        """Give a column as it is."""
        return Expression(
            column,
            self.catalog.plain(self.catalog.type(column.type)),
            nullable=column.nullable,
            path=path,
        )

    def outputs(self, select: tuple[Item, ...] | None) -> tuple[Output, ...]:
        """
        Resolve a select list; None stands for all columns that may be read.

        Raises:
            InvalidArgument: A name is unknown, or stands twice in the answer.
        """
        if select is None:
            return self._all()
        found: dict[str, Output] = {}
        for item in select:
            for output in self._item(item):
                if output.name in found:
                    raise InvalidArgument(
                        f'"{output.name}" stands twice in the select list',
                        path=item.reference.path,
                        hint='write "other_name:column" to tell them apart',
                    )
                found[output.name] = output
        return tuple(found.values())

    def sort_keys(self, order: Iterable[Key]) -> tuple[SortKey, ...]:
        """
        Resolve sort keys; a column that stands twice counts once.

        Raises:
            InvalidArgument: A name is unknown, or its type has no order.
        """
        keys: list[SortKey] = []
        for key in order:
            expression = self.expression(key.reference)
            if not expression.type.comparable:
                raise InvalidArgument(
                    f"values of type {expression.type.sql} have no order",
                    path=key.reference.path,
                    column=expression.column.name,
                )
            nulls = key.nulls or ("first" if key.descending else "last")
            keys.append(SortKey(expression, key.descending, nulls))
        return tuple(keys)

    def _all(self) -> tuple[Output, ...]:
        return tuple(
            Output(self.of_column(column), column.name)
            for column in self.relation.columns.values()
            if column.selectable
        )

    def _item(self, item: Item) -> tuple[Output, ...]:
        reference = item.reference
        if reference.name == "*" and "*" not in self.relation.columns:
            if reference.steps or item.alias or item.cast:
                raise InvalidArgument('"*" stands alone', path=reference.path)
            return self._all()
        expression = self.expression(reference)
        if item.cast:
            cast = self.catalog.type_named(item.cast, reference.path)
            expression = Expression(
                expression.column,
                cast,
                expression.as_json,
                expression.steps,
                cast,
                expression.nullable,
                expression.path,
            )
        last = reference.steps[-1].key if reference.steps else reference.name
        return (Output(expression, item.alias or last),)

    def _stepped(self, column: Column, reference: Reference) -> Expression:
        type = self.catalog.plain(self.catalog.type(column.type))
        if not (type.name in {"json", "jsonb", "hstore"} or type.kind in {"array", "composite"}):
            raise InvalidArgument(
                f'"{column.name}" is {type.sql}: "->" steps into json, jsonb, arrays'
                " and composites",
                path=reference.path,
                column=column.name,
            )
        steps = tuple(self._step(step) for step in reference.steps)
        return Expression(
            column,
            self.named("text" if steps[-1].text else "jsonb"),
            as_json=type.name != "jsonb",
            steps=steps,
            path=reference.path,
        )

    def _step(self, step: Step) -> PlannedStep:
        return PlannedStep(
            self.bound(step.operand, self.named("int4" if step.index else "text")),
            step.key,
            step.text,
        )
