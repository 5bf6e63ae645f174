"""
The arguments of one call, by name, and the caller.

Parsers put values into a list of their own, `Values`, so that a request holds only the shape of the call.

A list or dict that a batch's `$ref` resolves to is data, never syntax. It is wrapped in a type that no parser
of filters, operators or lists of names accepts; only code that takes values unwraps it. So stored data
cannot decide what a call does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from operator import is_
from typing import Any

from service.errors import InvalidArgument, UnknownName, clip
from service.request.synonyms import computing_hint, letters, synonym_hint


class Referenced:
    """
    A list or dict that a reference resolved to.

    Args:
        value: The list or dict itself.
    """

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __len__(self) -> int:
        return len(self.value)

    def __repr__(self) -> str:
        # A token of a page is bound to repr(query), in which a reference equals its value written out.
        return repr(self.value)


class DictWithReferenced(dict[str, Any]):
    """A dict with a referenced value in it, at any depth."""


class ListWithReferenced(list[Any]):
    """A list with a referenced value in it, at any depth."""


class ReferencedRow(dict[str, Any]):
    """A row that a reference resolved to: its keys are column names, its values are data."""


MARKED_TYPES = frozenset({Referenced, DictWithReferenced, ListWithReferenced})


def mark_referenced(value: Any) -> Any:
    """Return the value of a reference, wrapped if it is a list or dict and so could pass for syntax."""
    return Referenced(value) if isinstance(value, Mapping | list | tuple) else value


def mark_container(value: Any) -> Any:
    """Return a dict or list of a call, in a marked type if it contains a referenced value."""
    items = value.values() if isinstance(value, dict) else value
    if MARKED_TYPES.isdisjoint(map(type, items)):
        return value
    return DictWithReferenced(value) if isinstance(value, dict) else ListWithReferenced(value)


def unwrap(value: Any) -> Any:
    """Return an argument that is taken as a value, with all referenced values in it unwrapped."""
    kind = type(value)
    if kind not in MARKED_TYPES:
        return value
    if kind is Referenced:
        return value.value
    if kind is DictWithReferenced:
        return {name: unwrap(each) for name, each in value.items()}
    return [unwrap(each) for each in value]


def unwrap_rows(value: Any) -> Any:
    """Return a row or a list of rows, with each referenced row as a `ReferencedRow`."""
    if type(value) is Referenced:
        value = value.value
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            return [_row(each) for each in value]
        return _row(value)
    if type(value) is ListWithReferenced:
        return [_row(each.value) if type(each) is Referenced else each for each in value]
    return value


def _row(value: Any) -> Any:
    return ReferencedRow(value) if isinstance(value, Mapping) else value


OPTIONS = frozenset({"timeout"})
"""Keywords that every procedure takes."""

BARE = frozenset([str, int, float, bool, bytes, type(None)])
"""Types of scalar values, which contain no other value and are never syntax."""

UNSTORABLE = re.compile("[\0\ud800-\udfff]")
"""Characters that PostgreSQL cannot store in text: NUL, and a lone surrogate."""

IDEMPOTENCY_KEY = "idempotency_key"
"""The keyword of verbs that write: a second call with the same key does not write again."""

RECEIPT = "receipt"
"""The keyword of verbs that write: the result includes the id of the transaction."""

MAX_KEY = 255
"""Characters of an idempotency key."""

MAX_INTEGER = 2**63 - 1
MAX_LISTED = 1000
"""Items of a list that the planner walks; PostgreSQL limits a result to 1,664 columns."""


class Values:
    """The values of a call, in a list that grows; a request refers to a value by its index, the slot."""

    def __init__(self, values: Iterable[Any] = ()) -> None:
        self._values: list[Any] = list(values)

    def add(self, value: Any) -> int:
        """Append a value and return its slot."""
        self._values.append(value)
        return len(self._values) - 1

    def extend(self, values: Iterable[Any]) -> None:
        """Append several values, in order."""
        self._values.extend(values)

    def value(self, slot: int) -> Any:
        """Return the value of a slot."""
        return self._values[slot]

    def __len__(self) -> int:
        return len(self._values)

    def are(self, values: Sequence[Any], first: int = 0) -> bool:
        """Return whether the values from the slot `first` on are the given objects, and no more."""
        own = self._values[first:]
        return len(own) == len(values) and all(map(is_, own, values))

    def freeze(self) -> tuple[Any, ...]:
        """Return all values so far, unwrapped."""
        if MARKED_TYPES.isdisjoint(map(type, self._values)):  # most calls have no references
            return tuple(self._values)
        return tuple(map(unwrap, self._values))

    def marked(self) -> tuple[Any, ...]:
        """Return all values so far, still wrapped: some may turn out to be related rows."""
        return tuple(self._values)


@dataclass(frozen=True, slots=True)
class Caller:
    """
    The caller, as the router discloses it.

    `session`, `authid` and `authrole` are None if the router does not disclose callers.

    Args:
        session: WAMP session id.
        authid: WAMP authid, the identity that the session authenticated as.
        authrole: WAMP authrole, which the router assigned.
        realm: The realm of the session.
    """

    session: int | None
    authid: str | None
    authrole: str | None
    realm: str


class Arguments:
    """
    The arguments of one call, by name; unknown names are refused.

    Args:
        positional: Positional arguments of the call.
        keywords: Keyword arguments of the call.
        leading: Names of the arguments that may be positional, in order.
        known: All keywords that the verb takes.
        takes: The arguments in words, for hints; by default hints list the names.
    """

    def __init__(
        self,
        positional: Sequence[Any],
        keywords: Mapping[str, Any],
        leading: Sequence[str],
        known: Collection[str],
        takes: str | None = None,
    ) -> None:
        # With a single argument this says nothing, and would hide a better hint.
        several = f"by position: {', '.join(leading)}" if len(leading) > 1 else None
        self._takes = takes or several
        if len(positional) > len(leading):
            hint = f"by position: {', '.join(leading)}" if leading else "name the arguments"
            if not leading and "where" in known and isinstance(positional[0], Mapping):
                hint += ', as in where={"status": False}'
            raise InvalidArgument(
                f"takes {len(leading) or 'no'} positional argument{'s'[len(leading) == 1 :]},"
                f" got {len(positional)}",
                hint=takes or hint,
            )
        self._given: dict[str, Any] = dict(zip(leading, positional, strict=False))
        for name, value in keywords.items():
            if not (name in known or name in leading or name in OPTIONS):
                names = {*leading, *known, *OPTIONS}
                raise UnknownArgument(name, names, _meant(name, value, names), takes)
            if name in self._given:
                raise InvalidArgument(f'"{name}" is given twice', path=name)
            self._given[name] = value
        # Here, so that a procedure that takes no time to end refuses a wrong one as well.
        self._timeout = seconds_of(self._given.get("timeout"))

    def __contains__(self, name: str) -> bool:
        return name in self._given

    def of(self, names: AbstractSet[str]) -> bool:
        """Return whether all given arguments are among `names`."""
        return self._given.keys() <= names

    def value(self, name: str) -> Any:
        """Return an argument unparsed, or None if it is missing."""
        return self._given.get(name)

    def required(self, name: str) -> Any:
        """Return an argument unparsed; raise InvalidArgument if it is missing."""
        if name not in self._given:
            raise InvalidArgument(f'the argument "{name}" is missing', path=name, hint=self._takes)
        return self._given[name]

    def integer(self, name: str) -> int | None:
        """Return an integer of at least 0, or None if it is missing or null."""
        return integer_of(self._given.get(name), name, name)

    def flag(self, name: str, default: bool = False) -> bool:
        """Return a boolean argument, or the default if it is missing or null."""
        return flag_of(self._given.get(name), name, name, default)

    def choice(self, name: str, words: Sequence[str], default: str | None = None) -> str | None:
        """Return a string argument that must be one of `words`."""
        value = self._given.get(name)
        if value is None:
            return default
        if value not in words:
            raise unknown_word(name, value, words, name)
        return str(value)

    def timeout(self) -> float | None:
        """Return the caller's `timeout` in seconds, above 0; None without one."""
        return self._timeout


def unknown_word(
    kind: str, value: Any, words: Sequence[str], path: str, hint: str | None = None
) -> InvalidArgument:
    """
    Return the refusal of a value that is none of the words that an argument or option may be.

    Args:
        kind: The kind of word, as in "unit".
        value: As the caller gave it.
        words: The words.
        path: The place of the value in the call.
        hint: A better hint than a similar word, if there is one.
    """
    listed = ", ".join(words)
    if not isinstance(value, str):
        return InvalidArgument(f"the {kind} is one of {listed}, as a string", path=path)
    refusal = UnknownName(kind, value, words, path=path, hint=hint)
    refusal.details.setdefault("hint", f"one of {listed}")
    return refusal


class UnknownArgument(UnknownName):
    """
    The refusal of an argument that a verb does not take.

    Args:
        name: As the caller wrote it.
        names: All arguments that the verb takes.
        hint: A better hint than a similar name, if there is one.
        takes: The arguments of the verb in words.

    Attributes:
        name: As the caller wrote it.
        container: The argument that a column of this name belongs into; None if there is another hint.
    """

    def __init__(
        self, name: str, names: Collection[str], hint: str | None, takes: str | None
    ) -> None:
        super().__init__("argument", name, sorted(names), path=name, hint=hint)
        self.name = name
        containers = (each for each in ("changes", "values", "where", "key") if each in names)
        self.container = None if "hint" in self.details or takes else next(containers, None)
        self.details.setdefault("hint", takes or f"arguments: {', '.join(sorted(names))}")

    def of_column(self) -> None:
        """Set the hint for a name that is a column, given as a keyword in place of inside an argument."""
        if self.container is not None:
            where = f'{self.container}={{"{self.name}": …}}'
            self.details["hint"] = f'a column goes into "{self.container}", as in {where}'


GROUPED = 'aggregate groups rows, as in vehicles.aggregate({"n": {"count": "*"}}, group=["model"])'
_GROUPING = frozenset(["group", "groupby", "groups", "having", "measures", "aggregate"])
"""Names of arguments of other verbs and tools that ask for `aggregate`."""


def _meant(name: str, value: Any, names: Collection[str]) -> str | None:
    """Return the hint for an argument that another tool or another verb has."""
    text = isinstance(value, Mapping) or (isinstance(value, str) and not value.isdigit())
    found = synonym_hint("argument", name, {*names} - {"limit", "offset"} if text else names)
    if found is None and "having" in names and text:
        found = (
            f'a measure goes into "measures", as in measures={{"{clip(name)}": {{"count": "*"}}}}'
        )
    if found is None and "changes" in names and isinstance(value, Mapping):
        found = computing_hint(name)
    if found is None and "where" in names and "having" not in names:
        found = GROUPED if letters(name) in _GROUPING else None
    return found


def idempotency_key_of(value: Any) -> str | None:
    """
    Return a checked idempotency key; None for None.

    Raises:
        InvalidArgument: It is not a string of 1 to 255 characters without NUL and lone surrogates.
    """
    if value is None:
        return None
    if not (isinstance(value, str) and 0 < len(value) <= MAX_KEY) or UNSTORABLE.search(value):
        raise InvalidArgument(
            f"an idempotency key is a string of 1 to {MAX_KEY} characters", path=IDEMPOTENCY_KEY
        )
    return value


def integer_of(value: Any, name: str, path: str) -> int | None:
    """Return a checked integer from 0 to 2^63 - 1; None for None."""
    if value is None:
        return None
    # Some JavaScript clients send integers as floats; wampy does so beyond 32 bits.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidArgument(f'"{name}" is a whole number', path=path)
    if not 0 <= value <= MAX_INTEGER:
        raise InvalidArgument(f'"{name}" is not negative and below 2^63', path=path)
    return value


def flag_of(value: Any, name: str, path: str, default: bool = False) -> bool:
    """Return a checked boolean; the default for None."""
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InvalidArgument(f'"{name}" is true or false', path=path)
    return value


def seconds_of(value: Any, name: str = "timeout") -> float | None:
    """Return a checked number of seconds; None for None."""
    if value is None:
        return None
    # A chained comparison also refuses NaN, which compares false to everything. bool is a subclass of int.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise InvalidArgument(f'"{name}" is a number of seconds, above 0 and below 10^9', path=name)
    return float(value)


def list_of(value: Any, name: str, most: int = MAX_LISTED) -> list[Any]:
    """
    Return a list argument; a string or dict is a list of one, None an empty list.

    Raises:
        InvalidArgument: It is not a list, or has more than `most` items.
    """
    if value is None:
        return []
    if isinstance(value, str | Mapping):
        return [value]
    if not isinstance(value, list | tuple):
        raise InvalidArgument(f'"{name}" is a list', path=name)
    if len(value) > most:
        raise InvalidArgument(f"a list of at most {most} items", path=name)
    return list(value)


def items_with_paths(value: Any, path: str, most: int = MAX_LISTED) -> list[tuple[Any, str]]:
    """Return the items of a list argument with their paths; the path of a single item is `path` itself."""
    items = list_of(value, path, most)
    if isinstance(value, str | Mapping):
        return [(each, path) for each in items]
    return [(each, f"{path}.{at}") for at, each in enumerate(items)]


def row_of(value: Any, name: str) -> Mapping[str, Any]:
    """Return an argument that is one row; raise InvalidArgument for a list."""
    rows, many = rows_of(value, name)
    if many:
        raise InvalidArgument(f'"{name}" is one dict of columns and values', path=name)
    return rows[0]


def rows_of(value: Any, name: str) -> tuple[list[Mapping[str, Any]], bool]:
    """Return the rows of an argument, and whether the caller gave a list."""
    value = unwrap_rows(value)
    many = isinstance(value, list | tuple)
    rows = list(value) if many else [value]
    for at, row in enumerate(rows):
        path = f"{name}.{at}" if many else name
        if not isinstance(row, Mapping):
            raise InvalidArgument("a row is a dict of columns and values", path=path)
        if not all(isinstance(key, str) for key in row):
            raise InvalidArgument("the keys of a row are column names", path=path)
    return rows, many
