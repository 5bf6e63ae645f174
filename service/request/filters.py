"""
The filter grammar: `where` dictionaries to `Filter` trees (docs/filters.md).
"""

from __future__ import annotations

import marshal
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

from service.errors import InvalidArgument, UnknownName
from service.request.arguments import Referenced, Values, mark_referenced, unwrap
from service.request.requests import (
    EVERYTHING,
    Comparison,
    Connective,
    Filter,
    Negation,
    Operand,
    Reference,
    Related,
)
from service.request.select_list import ARGS, parse_reference, with_args
from service.request.synonyms import container_hint, synonym_hint

ORDERING = frozenset({"eq", "neq", "gt", "gte", "lt", "lte", "isdistinct"})
SCALARS = frozenset([str, int, float, bool])
PATTERNS = frozenset({"like", "ilike", "match", "imatch"})
AFFIXES: Mapping[str, tuple[str, str]] = {
    "starts": ("", "%"),
    "ends": ("%", ""),
    "contains": ("%", "%"),
    "istarts": ("", "%"),
    "iends": ("%", ""),
    "icontains": ("%", "%"),
}
"""By operator: the text before and after the operand in its LIKE pattern; ILIKE for names with i."""
PATHS = frozenset({"jsonpath", "jsonpath_match"})
SEARCHES = frozenset({"fts", "plfts", "phfts", "wfts"})
CONTAINMENT = frozenset({"cs", "cd", "ov", "sl", "sr", "nxr", "nxl", "adj"})
KEYS = frozenset({"has_key", "has_any", "has_all"})
BESIDE = ORDERING | PATTERNS | CONTAINMENT | {"has_key"}
"""Operators whose operand may be another column of the row."""
QUANTIFIED = (ORDERING - {"isdistinct"}) | PATTERNS | AFFIXES.keys()
"""Operators whose operand may be {"any": […]} or {"all": […]}."""
COLUMN = "$column"
"""The key of an operand that is a column, as in {"$column": "name"}."""
OPERATORS = (
    ORDERING | PATTERNS | AFFIXES.keys() | SEARCHES | CONTAINMENT | KEYS | PATHS
    | {"in", "is", "between", "length", "not"}
)  # fmt: skip
WORDS = frozenset({"null", "not null", "true", "false", "unknown"})
MAX_TERMS = 1000
"""Conditions of one filter: a bound on the work of planning it."""

BY_SHAPE = ORDERING | PATTERNS | {"not", "length"}
"""Operators that are parsed alike for every scalar operand."""
AROUND_VALUES = ORDERING | PATTERNS
"""Those of `BY_SHAPE` whose operand is a value: a dict as operand is a document or a quantifier."""
OPAQUE = (OPERATORS | {COLUMN, ARGS}) - BY_SHAPE
"""Keys whose parsing depends on the value below them, so that a filter with one has no shape."""
MAX_SHAPES, MAX_SHAPED = 256, 128
"""Bounds of the cache of parsed filters, since callers choose the shapes: filters, and conditions of one."""

_SPECIAL = re.compile(r"[\\%_]")
"""Characters with a meaning in a LIKE pattern."""

_shapes: dict[Hashable, tuple[Filter, int]] = {}
"""Cache of parsed filters with their number of conditions, by shape, path, first slot and depth limit."""


class FilterParser:
    """
    Parser of one `where`.

    Args:
        values: Values of the call; operands are appended.
        max_depth: Maximum nesting of and, or and not.
    """

    def __init__(self, values: Values, max_depth: int) -> None:
        self._values = values
        self._max_depth = max_depth
        self._terms = 0

    def parse(self, where: Any, path: str = "where") -> Filter:
        """Parse a filter; None is the filter that is true for every row."""
        if where is None:
            return EVERYTHING
        values: list[Any] = []
        # With 50 terms, parsing took 210 of the 300 µs that a find takes of the service; by shape it takes 40.
        # Filters of one shape are then one object, too, by which its statement is found sooner.
        shape = shape_of_filter(where, values)
        if shape is None:
            return self._where(where, path, 0)
        first = len(self._values)
        key = shape, path, first, self._max_depth
        kept = _shapes.get(key)
        if kept is not None:
            found, terms = kept
            self._count(terms)
            self._values.extend(values)
            return found
        before = self._terms
        found = self._where(where, path, 0)
        terms = self._terms - before
        # A hit appends the values that belong to the shape, in place of parsing. So the parser must have
        # added exactly these: steps of a JSON path, for example, are operands that it does not include.
        if self._values.are(values, first) and terms <= MAX_SHAPED:
            if len(_shapes) >= MAX_SHAPES:
                _shapes.clear()
            _shapes[key] = found, terms
        return found

    def _count(self, terms: int) -> None:
        self._terms += terms
        if self._terms > MAX_TERMS:
            raise InvalidArgument(f"a filter has at most {MAX_TERMS} conditions", path="where")

    def _where(self, where: Any, path: str, depth: int) -> Filter:
        if depth > self._max_depth:
            raise InvalidArgument(f"a filter may be nested {self._max_depth} deep", path=path[:200])
        if type(where) is not dict and not isinstance(where, Mapping):
            raise InvalidArgument(
                "a filter is a dict of columns and conditions",
                path=path,
                hint='as in {"status": false, "id": {"gt": 5}}',
            )
        return _conjunction(
            [self._term(key, value, f"{path}.{key}", depth) for key, value in where.items()]
        )

    def _term(self, key: Any, value: Any, path: str, depth: int) -> Filter:
        self._count(1)
        if not isinstance(key, str):
            raise InvalidArgument("the keys of a filter are column names", path=path[:200])
        if key in {"and", "or"}:
            if not _is_list(value):
                raise InvalidArgument(f'"{key}" takes a list of filters', path=path)
            terms = [self._where(each, f"{path}.{at}", depth + 1) for at, each in enumerate(value)]
            return Connective(any=key == "or", terms=tuple(terms))
        if key == "not":
            return Negation(self._where(value, path, depth + 1))
        reference = parse_reference(key, path, self._values)
        if not reference.owners:
            return self._condition(reference, value, path, depth)
        found = self._condition(replace(reference, owners=()), value, path, depth)
        for owner in reversed(reference.owners):
            found = Related(owner, path, found)
        return found

    def _condition(self, reference: Reference, value: Any, path: str, depth: int) -> Filter:
        # Fast path: most terms have one of these two forms; the checks below take twice as long.
        if type(value) in SCALARS:
            return Comparison(reference, "eq", self._operand(value, path))
        if type(value) is dict and len(value) == 1:
            ((name, operand),) = value.items()
            if name in ORDERING and type(operand) in SCALARS:
                self._terms += 1
                return Comparison(reference, name, self._operand(operand, f"{path}.{name}"))
        if value is None:
            return Comparison(reference, "is", word="null")
        if isinstance(value, Mapping):
            if _has_args(value):
                reference = with_args(reference, value[ARGS], f"{path}.{ARGS}", self._values)
                value = {name: value[name] for name in value if name != ARGS}
            if not value and reference.is_value:
                raise InvalidArgument("a condition names an operator", path=path)
            unknown_key = None if reference.is_value else _unknown_key(value, path)
            if unknown_key is not None:
                term = self._where(value, path, depth + 1)
                return Related(reference.name, path, term, unknown_key)
            return _conjunction(
                [
                    self._operation(reference, name, operand, f"{path}.{name}", depth)
                    for name, operand in value.items()
                ]
            )
        if _is_list(value):
            return self._candidates(Comparison(reference, "in"), value, path)
        return Comparison(reference, "eq", self._operand(value, path))

    def _operation(
        self, reference: Reference, name: Any, operand: Any, path: str, depth: int
    ) -> Filter:
        self._terms += 1
        if name not in OPERATORS:
            raise unknown_operator(str(name), path)
        if depth > self._max_depth:
            raise InvalidArgument(f"a filter may be nested {self._max_depth} deep", path=path[:200])
        if name == "not":
            return Negation(self._condition(reference, operand, path, depth + 1))
        if name == "length":
            if reference.length:
                raise InvalidArgument("a length has none of its own", path=path)
            return self._condition(replace(reference, length=True), operand, path, depth + 1)
        if name == "is":
            return Comparison(reference, "is", word=_word(operand, path))
        if name == "between":
            return self._between(reference, operand, path)
        if name in SEARCHES:
            return self._search(reference, name, operand, path)
        return self._comparison(reference, name, operand, path)

    def _comparison(self, reference: Reference, name: str, operand: Any, path: str) -> Filter:
        if name in {"in", "has_any", "has_all"}:
            operand = unwrap(operand)
            if not _is_list(operand):
                raise InvalidArgument(f'"{name}" takes a list', path=path)
            return self._candidates(Comparison(reference, name), operand, path)
        quantifier, operand, path = _quantified(name, operand, path)
        if name in AFFIXES:
            operand = _patterns(reference, name, operand, path, bool(quantifier))
        if name in PATHS and not isinstance(operand, str):
            hint = 'as in {"jsonpath": "$.items[*] ? (@.price > 5)"}'
            raise InvalidArgument(f'"{name}" takes a path of SQL/JSON', path=path, hint=hint)
        if quantifier:
            found = Comparison(reference, name, quantifier=quantifier)
            return self._candidates(found, operand, path)
        if operand is None and name in {"eq", "neq"}:
            return Comparison(reference, "is", word="null" if name == "eq" else "not null")
        if operand is None and name != "isdistinct":
            raise InvalidArgument(
                f'"{name}" with null holds for no row', path=path, hint='use {"is": null}'
            )
        if name in BESIDE and _is_column(operand):
            return Comparison(reference, name, column=self._column(operand, path))
        element = name == "cs" and _is_element(unwrap(operand))
        return Comparison(reference, name, self._operand(operand, path), element=element)

    def _candidates(self, found: Comparison, values: Sequence[Any], path: str) -> Filter:
        """Build a comparison with a list of values; a null in the list becomes a separate IS test."""
        name, operand = found.operator, self._operand(values, path)
        if None not in values:
            return replace(found, operand=operand)
        if name not in {"in", "eq", "neq"}:
            at = list(values).index(None)
            raise InvalidArgument(f'"{name}" takes no null in its list', path=f"{path}.{at}")
        # In SQL, NULL IN (…, NULL) is never true, and x NOT IN (…, NULL) is true for no row.
        word = "not null" if name == "neq" else "null"
        test = Comparison(found.reference, "is", word=word)
        others = replace(found, operand=operand, nulls=True)
        return Connective(any=found.quantifier != "all", terms=(others, test))

    def _between(self, reference: Reference, operand: Any, path: str) -> Filter:
        if type(operand) is Referenced and _is_list(operand.value):
            operand = list(map(mark_referenced, operand.value))
        if not _is_list(operand) or len(operand) != 2 or None in operand:
            raise InvalidArgument('"between" takes a list of the lowest and highest', path=path)
        return _conjunction(
            [
                self._comparison(reference, name, each, f"{path}.{at}")
                for at, (name, each) in enumerate(zip(("gte", "lte"), operand, strict=True))
            ]
        )

    def _search(self, reference: Reference, name: str, operand: Any, path: str) -> Filter:
        config = None
        if isinstance(operand, Mapping):
            unknown = operand.keys() - {"query", "config"}
            if unknown or not isinstance(operand.get("config", ""), str):
                raise InvalidArgument(
                    f'"{name}" takes "query" and, as a string, "config"', path=path
                )
            if "config" in operand:
                config = self._operand(operand["config"], f"{path}.config")
            operand, path = operand.get("query"), f"{path}.query"
        if not isinstance(operand, str):
            raise InvalidArgument(f'"{name}" takes a string to search for', path=path)
        return Comparison(reference, name, self._operand(operand, path), config=config)

    def _operand(self, value: Any, path: str) -> Operand:
        return Operand(self._values.add(value), path)

    def _column(self, operand: Mapping[str, str], path: str) -> Reference:
        found = parse_reference(operand[COLUMN], f"{path}.{COLUMN}", self._values)
        if found.owners:
            raise InvalidArgument(
                "a column is compared with one of the same row",
                path=found.path,
                hint="a filter of one related row compares two columns of that row",
            )
        return found


def unknown_operator(name: str, path: str) -> UnknownName:
    """Build the refusal of an operator that does not exist."""
    hint = synonym_hint("operator", name, OPERATORS)
    if name in {"any", "all"}:
        hint = f'"{name}" is an operand, as in {{"eq": {{"{name}": […]}}}}; "in" takes a list'
    if name == ARGS:
        hint = f'what a computed column is given stands beside an operator, as in {{"{ARGS}": {{…}}, "eq": 1}}'
    if name == COLUMN:
        hint = f'a column is an operand, as in {{"eq": {{"{COLUMN}": "name"}}}}'
    return UnknownName("operator", name, sorted(OPERATORS), path=path, hint=hint)


def shape_of_filter(where: Any, values: list[Any]) -> tuple[str | int | None, ...] | None:
    """
    Return the shape of a filter, and append its scalars to `values`.

    The shape is all but the scalars: names of columns and relationships, operators, and the nesting.
    Filters of equal shape are parsed alike.

    Returns:
        None if parsing depends on a value in it, or it is not a filter.
    """
    shape: list[str | int | None] = []
    return tuple(shape) if _add_shape(where, shape, values, MAX_SHAPED) else None


def _add_shape(where: Any, shape: list[str | int | None], values: list[Any], most: int) -> bool:
    """
    Append the shape of a filter, or of a part of one below a key, to `shape`; return False if it has none.

    A dict is its length, its keys and, behind each key, what is below it; a scalar is None, and a list its
    negative length and its items. A flat list takes less time than nested tuples.

    Args:
        where: A filter, or a part of one below a key.
        shape: List to which the shape is appended.
        values: List to which the scalars are appended.
        most: Maximum depth of nested dicts.
    """
    if type(where) is not dict or not where or not most:
        return False
    shape.append(len(where))
    for key, value in where.items():
        if type(key) is not str or key in OPAQUE:
            return False
        shape.append(key)
        if type(value) in SCALARS:
            values.append(value)
            shape.append(None)
        elif key in {"and", "or"}:
            if type(value) is not list or len(value) > MAX_SHAPED:
                return False
            shape.append(-len(value))
            for each in value:
                if not _add_shape(each, shape, values, most - 1):
                    return False
        elif key in AROUND_VALUES or not _add_shape(value, shape, values, most - 1):
            # If a document were part of a shape, its keys would be syntax, and a later call would be compared
            # with the values in the document of the first.
            return False
    return True


def _conjunction(terms: Sequence[Filter]) -> Filter:
    return terms[0] if len(terms) == 1 else Connective(any=False, terms=tuple(terms))


def _unknown_key(value: Any, path: str) -> tuple[str, str] | None:
    """
    Return the first key of a dict that is not an operator, and its path; None if all are operators.

    A dict of operators is a condition on a column; any other dict, also below `not`, filters related rows.
    """
    if not isinstance(value, Mapping):
        return None
    if not value:
        return "", path
    for name, operand in value.items():
        if name not in OPERATORS:
            return str(name), f"{path}.{name}"
        found = _unknown_key(operand, f"{path}.not") if name == "not" else None
        if found is not None:
            return found
    return None


def _has_args(value: Mapping[Any, Any]) -> bool:
    """Return whether a dict of operators also has the arguments of a computed column."""
    return (
        len(value) > 1
        and isinstance(value.get(ARGS), Mapping)
        and all(name in OPERATORS or name == ARGS for name in value)
    )


def _word(operand: Any, path: str) -> str:
    """Parse the operand of `is`, case-insensitively as SQL; also `not_null`, PostgREST's spelling."""
    if operand is None:
        return "null"
    # Not by looking it up in a dict, in which 0 and 1 equal false and true.
    word = str(operand).lower().replace("_", " ") if isinstance(operand, bool | str) else ""
    if word not in WORDS:
        raise InvalidArgument('"is" takes null, "not null", true, false or "unknown"', path=path)
    return word


def _quantified(name: str, operand: Any, path: str) -> tuple[Literal["", "any", "all"], Any, str]:
    if isinstance(operand, Mapping) and len(operand) == 1:
        word, candidates = next(iter(operand.items()))
        if word in {"any", "all"} and name in QUANTIFIED:
            candidates = unwrap(candidates)
            if not _is_list(candidates):
                raise InvalidArgument(f'"{word}" takes a list', path=f"{path}.{word}")
            return cast(Literal["any", "all"], word), candidates, f"{path}.{word}"
    return "", operand, path


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _patterns(reference: Reference, name: str, text: Any, path: str, several: bool) -> Any:
    """Return the LIKE pattern that matches a text literally, or a list of patterns if `several`."""
    if several:
        found = enumerate(text)
        return [_patterns(reference, name, each, f"{path}.{at}", False) for at, each in found]
    if not isinstance(text, str):
        inside = text is not None and not isinstance(text, bool | int | float)
        hint = container_hint(reference.name, name) if inside else None
        raise InvalidArgument(f'"{name}" takes a string', path=path, hint=hint)
    before, behind = AFFIXES[name]
    return before + _SPECIAL.sub(r"\\\g<0>", text) + behind


def _is_column(value: Any) -> bool:
    """Return whether an operand is a column; a document of the same form must be given in a list."""
    return isinstance(value, Mapping) and len(value) == 1 and isinstance(value.get(COLUMN), str)


def _is_element(value: Any) -> bool:
    """Return whether the operand of `cs` on a range is an element; ranges are strings like "[1,5)"."""
    if isinstance(value, str):
        return not (value.strip().lower() == "empty" or value.lstrip()[:1] in {"[", "(", "{"})
    return not _is_list(value)


MAX_VARIABLES = 10
"""Variables of a truth table; terms beyond them are assumed to depend on the row."""

ALL = (1 << (1 << MAX_VARIABLES)) - 1
# The columns of a truth table: alternating runs of 2**at ones and 2**at zeros.
VARIABLES = [ALL // ((1 << (1 << at)) + 1) for at in range(MAX_VARIABLES)]
OPPOSITES = {"neq": "eq", "gte": "lt", "gt": "lte"}
"""Operators that are the negation of another one, for values that are not null."""

Truth = tuple[int, int]
"""Two bit sets over the assignments of the variables: those for which a term is true, and false."""

ALWAYS: Truth = (ALL, 0)
NEVER: Truth = (0, ALL)
DEPENDS: Truth = (0, 0)


def holds_always(where: Filter, values: Sequence[Any]) -> bool:
    """Return whether a filter is true for every row, whatever its values."""
    # Not only empty filters are: an update by the negation of an empty list, or by "a or not a", changed
    # all rows.
    return _TruthTable(values).truth(where) == ALWAYS


class _TruthTable:
    """
    Truth table of a filter, in SQL's three-valued logic, over all conceivable rows.

    Its variables are whether a column is null, and whether a condition is true for a value that is not.
    A bit set has one bit for each assignment of the variables, so AND and OR are bitwise operations.

    Args:
        values: Values of the call.
    """

    def __init__(self, values: Sequence[Any]) -> None:
        self._values = values
        self._known: list[tuple[Any, list[Any]]] = []

    def truth(self, where: Filter) -> Truth:
        """Return for which assignments of the variables a filter is true, and for which false."""
        if isinstance(where, Connective):
            truths = [self.truth(term) for term in where.terms]
            return _or(truths) if where.any else _not(_or(map(_not, truths)))
        if isinstance(where, Negation):
            return _not(self.truth(where.term))
        if isinstance(where, Comparison):
            return self._compared(where)
        if _TruthTable(self._values).truth(where.term) == NEVER:
            return NEVER  # EXISTS of no row
        return self._either(where)

    def _compared(self, where: Comparison) -> Truth:
        null = self._either(Comparison(where.reference, "is", word="null"))
        if where.word in {"null", "unknown"}:
            return null
        if where.word == "not null":
            return _not(null)
        if where.word:  # IS TRUE is never null
            holds = self._either(replace(where, word="true"))
            return _not(_or([null, holds if where.word == "false" else _not(holds)]))
        if where.column is not None:
            return self._of_columns(where, where.column, null)
        if where.operator == "isdistinct":
            if self._operand(where) is None:
                return _not(null)
            return _or([null, _not(self._either(replace(where, operator="eq")))])
        quantifier = "any" if where.operator == "in" else where.quantifier
        if quantifier and all(each is None for each in self._operand(where)):
            return ALWAYS if quantifier == "all" else NEVER
        found = self._either(_normal(where))
        true, false = _not(found) if where.operator in OPPOSITES else found
        # A comparison with null is neither true nor false.
        return true & null[1], false & null[1]

    def _of_columns(self, where: Comparison, column: Reference, null: Truth) -> Truth:
        other_null = self._either(Comparison(column, "is", word="null"))
        normal = _normal(where)
        found = self._either(normal)
        if null == other_null != DEPENDS and normal.operator in {"eq", "isdistinct", "lt", "lte"}:
            # a column compared with itself
            found = ALWAYS if normal.operator in {"eq", "lte"} else NEVER
        if where.operator == "isdistinct":
            return found
        true, false = _not(found) if where.operator in OPPOSITES else found
        return true & null[1] & other_null[1], false & null[1] & other_null[1]

    def _operand(self, where: Comparison) -> Any:
        """Return the value that a column is compared with."""
        return self._values[where.operand.slot] if where.operand else None

    def _either(self, where: Filter) -> Truth:
        """Return the truth of a filter as a variable of its own, shared by equal filters."""
        values: list[Any] = []
        shape = self._shape(where, values)
        for variable, (known, others) in zip(VARIABLES, self._known, strict=False):
            if known == shape and _identical(others, values):
                return variable, ALL ^ variable
        if len(self._known) == MAX_VARIABLES:
            return DEPENDS
        variable = VARIABLES[len(self._known)]
        self._known.append((shape, values))
        return variable, ALL ^ variable

    def _shape(self, where: Filter, values: list[Any]) -> Any:
        """Return the shape of a filter, and append its values to `values`."""
        if isinstance(where, Connective):
            return where.any, *(self._shape(term, values) for term in where.terms)
        if isinstance(where, Negation):
            return "not", self._shape(where.term, values)
        if isinstance(where, Related):
            return where.name, self._shape(where.term, values)
        names = [self._shape_of(each, values) for each in (where.reference, where.column) if each]
        if where.config is not None:
            values.append(self._values[where.config.slot])
        value, quantifier = self._operand(where), where.quantifier
        if where.nulls:
            value = [each for each in value if each is not None]
        # ANY or ALL of one value is the same condition as the value itself.
        if quantifier and len(value) == 1:
            quantifier, (value,) = "", value
        values.append(value)
        return (
            (*names, where.operator, quantifier),
            (where.word, where.element, where.config is None),
        )

    def _shape_of(self, reference: Reference, values: list[Any]) -> Any:
        """Return the shape of a reference, and append its values to `values`."""
        operands = [step.operand for step in reference.steps]
        operands += [operand for _, operand in reference.args]
        values += [self._values[operand.slot] for operand in operands]
        steps = tuple((step.key, step.text) for step in reference.steps)
        args = tuple(name for name, _ in reference.args)
        return reference.name, steps, reference.cast, reference.length, args


def _normal(where: Comparison) -> Comparison:
    """Return the negated comparison of an operator in `OPPOSITES`, and `in` as `eq` any."""
    turned: Mapping[str, Literal["", "any", "all"]] = {"any": "all", "all": "any"}
    if where.operator in OPPOSITES:
        quantifier = turned.get(where.quantifier, "")
        return replace(where, operator=OPPOSITES[where.operator], quantifier=quantifier)
    if where.operator == "in":
        return replace(where, operator="eq", quantifier="any")
    return where


def _identical(values: list[Any], others: list[Any]) -> bool:
    """Return whether values are equal and of equal types: in JSON, true is not 1."""
    try:
        # Compared as bytes, because 1 == True; repr took 20 ms for two lists of 100,000 items.
        return marshal.dumps(values, 2) == marshal.dumps(others, 2)  # 2: without references
    except ValueError:  # a type that marshal does not know, or nested too deep
        return False


def _not(truth: Truth) -> Truth:
    return truth[1], truth[0]


def _or(truths: Iterable[Truth]) -> Truth:
    true, false = NEVER
    for each in truths:
        true, false = true | each[0], false & each[1]
    return true, false
