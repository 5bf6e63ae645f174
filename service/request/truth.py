"""
What a filter says of every row, by its form alone.

A filter is judged for all rows that there could be at once. Whether a column is null, and whether
a condition holds of one that is not, are variables; what a term is for each way to set them is
one bit of a number, so that `and` and `or` are those of numbers, as SQL has them for three values.
"""

from __future__ import annotations

import marshal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from service.request.terms import Comparison, Filter, Junction, Negation, Related

MOST = 10
"""Variables of a filter; a term of more is taken to depend on the row, whatever it says."""

ALL = (1 << (1 << MOST)) - 1
VARIABLES = [ALL // ((1 << (1 << at)) + 1) for at in range(MOST)]
OPPOSITES = {"neq": "eq", "gte": "lt", "gt": "lte"}
"""Operators that hold where another does not, of values that are not null."""

Said = tuple[int, int]
"""The ways to set the variables in which a term is true, and those in which it is false."""

ALWAYS: Said = (ALL, 0)
NEVER: Said = (0, ALL)
DEPENDS: Said = (0, 0)


def holds_always(where: Filter, values: Sequence[Any]) -> bool:
    """Return whether a filter is true of every row, whatever the rows hold."""
    return _Judge(values).said(where) == ALWAYS


class _Judge:
    """
    Judges one filter.

    Args:
        values: Of the call.
    """

    def __init__(self, values: Sequence[Any]) -> None:
        self._values = values
        self._known: list[tuple[Any, list[Any]]] = []

    def said(self, where: Filter) -> Said:
        """Return for which settings of the variables a filter is true, and for which false."""
        if isinstance(where, Junction):
            said = [self.said(term) for term in where.terms]
            return _any(said) if where.any else _not(_any(map(_not, said)))
        if isinstance(where, Negation):
            return _not(self.said(where.term))
        if isinstance(where, Comparison):
            return self._compared(where)
        if _Judge(self._values).said(where.term) == NEVER:
            return NEVER  # no related row is one for which it holds
        return self._either(where)

    def _compared(self, where: Comparison) -> Said:
        null = self._either(Comparison(where.reference, "is", word="null"))
        if where.word in {"null", "unknown"}:
            return null
        if where.word == "not null":
            return _not(null)
        if where.word:  # IS TRUE is never null
            holds = self._either(replace(where, word="true"))
            return _not(_any([null, holds if where.word == "false" else _not(holds)]))
        if where.operator == "isdistinct":
            if self._operand(where) is None:
                return _not(null)
            return _any([null, _not(self._either(replace(where, operator="eq")))])
        quantifier = "any" if where.operator == "in" else where.quantifier
        if quantifier and all(each is None for each in self._operand(where)):
            return ALWAYS if quantifier == "all" else NEVER
        found = self._either(_plain(where))
        true, false = _not(found) if where.operator in OPPOSITES else found
        return true & null[1], false & null[1]

    def _operand(self, where: Comparison) -> Any:
        """Return what a column is compared with."""
        return self._values[where.operand.slot] if where.operand else None

    def _either(self, where: Filter) -> Said:
        """Return what is said by a variable, one for all filters that are alike."""
        values: list[Any] = []
        shape = self._shape(where, values)
        for variable, (known, others) in zip(VARIABLES, self._known, strict=False):
            if known == shape and _alike(others, values):
                return variable, ALL ^ variable
        if len(self._known) == MOST:
            return DEPENDS
        variable = VARIABLES[len(self._known)]
        self._known.append((shape, values))
        return variable, ALL ^ variable

    def _shape(self, where: Filter, values: list[Any]) -> Any:
        """Return what filters that are alike have in common, and put their values into a list."""
        if isinstance(where, Junction):
            return where.any, *(self._shape(term, values) for term in where.terms)
        if isinstance(where, Negation):
            return "not", self._shape(where.term, values)
        if isinstance(where, Related):
            return where.name, self._shape(where.term, values)
        others = [where.config, *(step.operand for step in where.reference.steps)]
        values += [self._values[each.slot] for each in others if each is not None]
        value, quantifier = self._operand(where), where.quantifier
        if where.nulls:
            value = [each for each in value if each is not None]
        if quantifier and len(value) == 1:
            quantifier, (value,) = "", value
        values.append(value)
        steps = tuple((step.key, step.text) for step in where.reference.steps)
        return (
            (where.reference.name, steps, where.operator, quantifier),
            (where.word, where.element, where.config is None),
        )


def _plain(where: Comparison) -> Comparison:
    """Return the comparison that holds where one does not, or the same in the usual words."""
    turned: Mapping[str, Literal["", "any", "all"]] = {"any": "all", "all": "any"}
    if where.operator in OPPOSITES:
        quantifier = turned.get(where.quantifier, "")
        return replace(where, operator=OPPOSITES[where.operator], quantifier=quantifier)
    if where.operator == "in":
        return replace(where, operator="eq", quantifier="any")
    return where


def _alike(values: list[Any], others: list[Any]) -> bool:
    """Return whether values are the same and of the same types: to JSON, true is not 1."""
    try:
        return marshal.dumps(values, 2) == marshal.dumps(others, 2)  # 2: without references
    except ValueError:  # of a type that no serializer gives, or nested deeper than any
        return False


def _not(said: Said) -> Said:
    return said[1], said[0]


def _any(said: Iterable[Said]) -> Said:
    true, false = NEVER
    for each in said:
        true, false = true | each[0], false & each[1]
    return true, false
