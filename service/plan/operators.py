"""
Plan comparisons and computed values: choose PostgreSQL's operators by the types of their operands.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import replace

from service.catalog import Catalog, Column, Type
from service.datatypes import DOCUMENTS
from service.errors import InvalidArgument, NotAuthorized
from service.plan.plans import (
    PG_CATALOG,
    Bound,
    Compare,
    Computed,
    Condition,
    Expression,
    Not,
    Operator,
    Part,
    PathStep,
    Search,
)
from service.plan.scope import Scope, has_hidden_field
from service.request.filters import AFFIXES, KEYS, PATHS, PATTERNS
from service.request.requests import Assignment, Comparison, Operand
from service.request.row_values import COMPUTING
from service.request.synonyms import container_hint

# LIKE and its siblings as operators, because unlike the keywords these can be schema-qualified.
SQL_OPERATORS = {
    "eq": "=",
    "neq": "<>",
    "gt": ">",
    "gte": ">=",
    "lt": "<",
    "lte": "<=",
    "isdistinct": "=",
    "in": "=",
    "like": "~~",
    "ilike": "~~*",
    "match": "~",
    "imatch": "~*",
    "starts": "~~",
    "ends": "~~",
    "contains": "~~",
    "istarts": "~~*",
    "iends": "~~*",
    "icontains": "~~*",
    "cs": "@>",
    "cd": "<@",
    "ov": "&&",
    "sl": "<<",
    "sr": ">>",
    "nxr": "&<",
    "nxl": "&>",
    "adj": "-|-",
    "has_key": "?",
    "has_any": "?|",
    "has_all": "?&",
    "jsonpath": "@?",
    "jsonpath_match": "@@",
}
SEARCH_FUNCTIONS = {
    "fts": "to_tsquery",
    "plfts": "plainto_tsquery",
    "phfts": "phraseto_tsquery",
    "wfts": "websearch_to_tsquery",
}


def plan_comparison(scope: Scope, left: Expression, where: Comparison) -> Condition:
    """Plan a comparison other than an `is` test."""
    if where.column is not None:
        return _by_column(scope, left, where, scope.expression(where.column))
    if where.operand is None:
        raise TypeError(f"{where.operator} has no operand")
    plan = next((plan for names, plan in _KINDS if where.operator in names), _by_operator)
    return plan(scope, left, where, where.operand)


def compare(
    scope: Scope, left: Expression, name: str, right: Bound | Expression, type: Type | None = None
) -> Compare:
    """
    Build a comparison with the operator for the types of its sides.

    Args:
        scope: Scope of the value.
        left: The value.
        name: Name of PostgreSQL's operator.
        right: A parameter or another value.
        type: Type of `right`, or of each candidate if it is an array of candidates.
    """
    operator = scope.operator(name, left.type, type or right.type)
    if operator.schema != PG_CATALOG:  # otherwise an operator on the domain itself could fit better
        left = _without_domain(scope, left)
        right = right if isinstance(right, Bound) else _without_domain(scope, right)
    return Compare(left, operator, right)


def array_type_of(scope: Scope, type: Type) -> tuple[Type, Type | None]:
    """Return the type of an array of candidates, and the type each has to be cast to, if any."""
    found = scope.catalog.array_of(type)
    if found is not None:
        return found, None
    # PostgreSQL has no arrays of arrays: they are passed as an array of text.
    return replace(scope.builtin("_text"), oid=-type.oid, element=type.oid), type


def as_jsonb(scope: Scope, value: Expression) -> Expression:
    """Return a value cast to a type that can be compared: json, which has no equality, to jsonb."""
    other = value.type.data_type.compared_as
    return value.cast(scope.builtin(other)) if other else value


def _without_domain(scope: Scope, value: Expression) -> Expression:
    """Return a value, cast to the base type if it is a column of a domain."""
    domain = scope.catalog.type(value.column.type).kind == "domain"
    return value.cast(value.type) if domain and not (value.steps or value.applied) else value


def _by_column(scope: Scope, left: Expression, where: Comparison, right: Expression) -> Condition:
    """Plan a comparison of two values of one row."""
    if where.operator in PATTERNS:
        left, right = as_text(scope, left), as_text(scope, right)
    elif where.operator in KEYS:
        left, right = _document(scope, left, where, right.path), as_text(scope, right)
    else:
        left, right = as_jsonb(scope, left), as_jsonb(scope, right)
    test = compare(scope, left, SQL_OPERATORS[where.operator], right)
    return Not(replace(test, not_distinct=True)) if where.operator == "isdistinct" else test


def _by_operator(scope: Scope, left: Expression, where: Comparison, operand: Operand) -> Condition:
    left = as_jsonb(scope, left)
    type = left.type
    if where.element and type.kind in {"range", "multirange"}:
        type = scope.catalog.type(type.base)
    test = _compare_as(left, type, scope, where, operand)
    return Not(replace(test, not_distinct=True)) if where.operator == "isdistinct" else test


def _compare_as(
    left: Expression, type: Type, scope: Scope, where: Comparison, operand: Operand
) -> Compare:
    quantifier = "any" if where.operator == "in" else where.quantifier
    many, candidate = array_type_of(scope, type) if quantifier else (type, None)
    test = compare(scope, left, SQL_OPERATORS[where.operator], scope.bound(operand, many), type)
    return replace(test, quantifier=quantifier, candidate=candidate, nulls=where.nulls)


def _by_search(scope: Scope, left: Expression, where: Comparison, operand: Operand) -> Search:
    vector = left.type.name != "tsvector"
    # to_tsvector takes json itself, and then indexes only the strings in it.
    if vector and left.type.form != "json":
        left = as_text(scope, left)
    return Search(
        left,
        SEARCH_FUNCTIONS[where.operator],
        scope.bound(operand, scope.builtin("text")),
        scope.bound(where.config, scope.builtin("regconfig")) if where.config else None,
        vector,
    )


def _by_pattern(scope: Scope, left: Expression, where: Comparison, operand: Operand) -> Compare:
    # The ~ of ltree takes an lquery; as regular expressions, most of these do not parse.
    if where.operator == "match" and left.type.pattern:
        return _compare_as(left, scope.catalog.type(left.type.pattern), scope, where, operand)
    return _compare_as(as_text(scope, left), scope.builtin("text"), scope, where, operand)


def _by_affix(scope: Scope, left: Expression, where: Comparison, operand: Operand) -> Compare:
    if left.type.form in DOCUMENTS or left.type.kind in {"array", "range", "multirange"}:
        raise InvalidArgument(
            f'"{where.operator}" is for text; "{left.column.name}" is {left.type.sql}',
            path=operand.path,
            column=left.column.name,
            hint=container_hint(left.column.name, where.operator),
        )
    return _compare_as(as_text(scope, left), scope.builtin("text"), scope, where, operand)


def _by_path(scope: Scope, left: Expression, where: Comparison, operand: Operand) -> Compare:
    left = as_jsonb(scope, left)
    if left.type.form != "json":
        raise InvalidArgument(
            f'"{where.operator}" looks into json and jsonb; "{left.column.name}" is {left.type.sql}',
            path=operand.path,
            column=left.column.name,
        )
    right = scope.bound(operand, scope.builtin("jsonpath"))
    return compare(scope, left, SQL_OPERATORS[where.operator], right)


def _by_keys(scope: Scope, left: Expression, where: Comparison, operand: Operand) -> Compare:
    left = _document(scope, left, where, operand.path)
    text = scope.builtin("text")
    type = text if where.operator == "has_key" else scope.builtin("_text")
    right = Bound(operand.slot, type, operand.path)
    return compare(scope, left, SQL_OPERATORS[where.operator], right)


def _document(scope: Scope, left: Expression, where: Comparison, path: str) -> Expression:
    """Return a value as jsonb or hstore; raise InvalidArgument if it has no keys."""
    left = as_jsonb(scope, left)
    if left.type.form not in DOCUMENTS:
        raise InvalidArgument(
            f'"{where.operator}" asks for keys of json, jsonb and hstore;'
            f' "{left.column.name}" is {left.type.sql}',
            path=path,
            column=left.column.name,
        )
    return left


def as_text(scope: Scope, left: Expression) -> Expression:
    """Return a value cast to text, unless its type is in the string category."""
    if left.type.category == "S":
        return left
    return left.cast(scope.builtin("text"))


_KINDS: Sequence[tuple[Container[str], Callable[..., Condition]]] = (
    (SEARCH_FUNCTIONS, _by_search),
    (PATTERNS, _by_pattern),
    (AFFIXES, _by_affix),
    (PATHS, _by_path),
    (KEYS, _by_keys),
)
"""By operators that need more than a plain comparison: the function that plans them."""


Operands = tuple[tuple[Bound, ...], Operator | None]
_ARITHMETIC = {"add": "+", "multiply": "*"}


def computing(catalog: Catalog, type: Type) -> tuple[str, ...]:
    """Return the computing operators of a type, as callers write them: "$add", "$append"…"""
    type = catalog.plain(type)
    if type.form == "json":
        return tuple(COMPUTING)
    if type.kind == "array":
        compared = _is_compared(catalog, type)
        return ("$append", "$prepend", *(["$remove"] if compared else []))
    known = type.data_type
    return (*(["$add"] if known.added else []), *(["$multiply"] if known.factor else []))


def plan_computed(scope: Scope, column: Column, given: Sequence[Assignment]) -> Computed:
    """
    Plan a computed value of a column.

    Args:
        scope: Scope of the relation.
        column: The column.
        given: The call's assignments to it: one, or several of different paths.

    Raises:
        NotAuthorized: The caller's role may not read the column.
        InvalidArgument: The column's type does not have the operator.
    """
    if not column.selectable:
        raise NotAuthorized(
            f'"{column.name}" may not be read, and its new value would be computed out of it',
            path=given[0].path,
            column=column.name,
            hint="it takes the right to select the column, beside the one to update it",
        )
    type = scope.catalog.plain(scope.catalog.type(column.type))
    document, known = type.form == "json", computing(scope.catalog, type)
    plan = _plan_document if document else _plan_array if type.kind == "array" else _plan_plain
    parts = []
    for each in given:
        if each.operand is None:
            raise TypeError("a default is not computed")
        if each.steps and not document:
            raise InvalidArgument(
                f'"{column.name}" is {type.sql}: paths are set in json and jsonb',
                path=each.path,
                column=column.name,
            )
        word = f"${each.computing}"
        if each.computing and word not in known:
            raise InvalidArgument(
                f'"{column.name}" is {type.sql}, which has no "{word}"',
                path=f"{each.path}.{word}",
                column=column.name,
                hint=f"there is {', '.join(known)}" if known else "it takes a value",
            )
        steps = tuple(
            PathStep(scope.bound(step.operand, scope.builtin("text")), step.index)
            for step in each.steps
        )
        operands, operator = plan(scope, type, each, each.operand)
        parts.append(Part(each.computing, operands, operator, steps, each.path))
    return Computed(column, type, document, tuple(parts))


def _plan_document(scope: Scope, type: Type, given: Assignment, operand: Operand) -> Operands:
    if given.computing in _ARITHMETIC:
        number = scope.bound(operand, scope.builtin("numeric"))
        return (number,), Operator(_ARITHMETIC[given.computing])
    other = scope.builtin("_text" if given.computing == "remove" else "jsonb")
    return (scope.bound(operand, other),), None


def _plan_array(scope: Scope, type: Type, given: Assignment, operand: Operand) -> Operands:
    if given.computing == "remove":
        element = scope.catalog.type(type.element)
        return tuple(scope.bound(each, element) for each in given.items), None
    return (scope.bound(operand, type),), None


def _plan_plain(scope: Scope, type: Type, given: Assignment, operand: Operand) -> Operands:
    known = type.data_type
    other = scope.builtin(known.added if given.computing == "add" else known.factor)
    return (scope.bound(operand, other),), Operator(_ARITHMETIC[given.computing])


def _is_compared(catalog: Catalog, array: Type) -> bool:
    """Return whether elements of an array can be compared, which `$remove` requires."""
    element = catalog.plain(catalog.type(array.element))
    return element.comparable and not has_hidden_field(catalog, element.oid)
