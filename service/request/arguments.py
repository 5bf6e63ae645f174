"""
The arguments of one call: positional ones named, unknown ones refused, each read once.

Values are kept apart from the shape of the call. Who calls stands here too.

Lists and dicts that a reference of a batch brings are data, whatever they look like. They are of a type
that no parser of filters, lists of names and operators takes for one of its own; what takes values opens
them. So what somebody has stored never says what a call does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from service.errors import InvalidArgument, UnknownName, clip
from service.request.synonyms import letters, synonym_hint


class Brought:
    """
    A list or a dict that a reference has brought.

    Args:
        value: What it is.
    """

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __len__(self) -> int:
        return len(self.value)

    def __repr__(self) -> str:
        return repr(self.value)  # a page of a query is that of the same one with the value in it


class HoldingDict(dict[str, Any]):
    """A dict of a call that has, at some depth, something brought in it."""


class HoldingList(list[Any]):
    """A list of a call that has, at some depth, something brought in it."""


class BroughtRow(dict[str, Any]):
    """A row that was brought: its names are those of columns, its values are data."""


MARKED = frozenset({Brought, HoldingDict, HoldingList})


def brought(value: Any) -> Any:
    """Return a value as a reference brings it: only lists and dicts could be taken for more."""
    return Brought(value) if isinstance(value, Mapping | list | tuple) else value


def holding(value: Any) -> Any:
    """Return a dict or a list of a call, marked if there is something brought in it."""
    items = value.values() if isinstance(value, dict) else value
    if MARKED.isdisjoint(map(type, items)):
        return value
    return HoldingDict(value) if isinstance(value, dict) else HoldingList(value)


def opened(value: Any) -> Any:
    """Return what is a value where it stands, without the marks of what was brought."""
    kind = type(value)
    if kind not in MARKED:
        return value
    if kind is Brought:
        return value.value
    if kind is HoldingDict:
        return {name: opened(each) for name, each in value.items()}
    return [opened(each) for each in value]


def opened_rows(value: Any) -> Any:
    """Return a row, or a list of rows, of which those that were brought have columns alone."""
    if type(value) is Brought:
        value = value.value
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            return [_row(each) for each in value]
        return _row(value)
    if type(value) is HoldingList:
        return [_row(each.value) if type(each) is Brought else each for each in value]
    return value


def _row(value: Any) -> Any:
    return BroughtRow(value) if isinstance(value, Mapping) else value


OPTIONS = frozenset({"timeout"})
"""Keywords that every procedure takes."""

BARE = frozenset([str, int, float, bool, bytes, type(None)])
"""Types of values that hold no others and stand for nothing else."""

UNSTORABLE = re.compile("[\0\ud800-\udfff]")
"""What no string of PostgreSQL holds: NUL, and a surrogate that stands alone."""

IDEMPOTENCY_KEY = "idempotency_key"
"""The keyword of what writes, so that a second call with its value does not write again."""

RECEIPT = "receipt"
"""The keyword of what writes, so that it is answered with the id of its transaction, too."""

MAX_KEY = 255
"""Characters of an idempotency key."""

MAX_INTEGER = 2**63 - 1
MAX_LISTED = 1000
"""Items of a list that is to be planned: PostgreSQL itself takes 1,664 columns of an answer."""


class Values:
    """A growing list; requests refer to its slots."""

    def __init__(self, values: Iterable[Any] = ()) -> None:
        self._values: list[Any] = list(values)

    def add(self, value: Any) -> int:
        """Append a value and return its slot."""
        self._values.append(value)
        return len(self._values) - 1

    def extend(self, values: Iterable[Any]) -> None:
        """Append several, in order."""
        self._values.extend(values)

    def value(self, slot: int) -> Any:
        """Return the value of a slot."""
        return self._values[slot]

    def __len__(self) -> int:
        return len(self._values)

    def freeze(self) -> tuple[Any, ...]:
        """Return all values so far."""
        if MARKED.isdisjoint(map(type, self._values)):  # as most are
            return tuple(self._values)
        return tuple(map(opened, self._values))

    def marked(self) -> tuple[Any, ...]:
        """Return them with the marks of what was brought: some may turn out to be related rows."""
        return tuple(self._values)


@dataclass(frozen=True, slots=True)
class Caller:
    """
    The session a call came from, as the router discloses it.

    A router that does not disclose callers leaves `session`, `authid` and `authrole` None.

    Args:
        session: Id of the caller's WAMP session.
        authid: Who the session logged in as.
        authrole: The role the router gave it.
        realm: Where the call was made.
    """

    session: int | None
    authid: str | None
    authrole: str | None
    realm: str


class Arguments:
    """
    The arguments of one call, by name.

    Args:
        positional: As they came.
        keywords: As they came.
        leading: The names that the positional ones may stand for.
        known: All names that the verb takes.
        takes: What it takes, in words, for hints; without it they are made of the names.
    """

    def __init__(
        self,
        positional: Sequence[Any],
        keywords: Mapping[str, Any],
        leading: Sequence[str],
        known: Collection[str],
        takes: str | None = None,
    ) -> None:
        # Of a single argument this says nothing, and would hide a better hint.
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
        names = {*leading, *known, *OPTIONS}
        for name, value in keywords.items():
            if name not in names:
                raise UnknownArgument(name, names, _meant(name, value, names), takes)
            if name in self._given:
                raise InvalidArgument(f'"{name}" is given twice', path=name)
            self._given[name] = value

    def __contains__(self, name: str) -> bool:
        return name in self._given

    def of(self, names: AbstractSet[str]) -> bool:
        """Return whether nothing is given but arguments of these names."""
        return self._given.keys() <= names

    def value(self, name: str) -> Any:
        """Return an argument as it came, None if it is missing."""
        return self._given.get(name)

    def required(self, name: str) -> Any:
        """Return an argument, or refuse the call without it."""
        if name not in self._given:
            raise InvalidArgument(f'the argument "{name}" is missing', path=name, hint=self._takes)
        return self._given[name]

    def integer(self, name: str) -> int | None:
        """Return an integer of at least 0, or None if it is missing or null."""
        return integer_of(self._given.get(name), name, name)

    def flag(self, name: str, default: bool = False) -> bool:
        """Return true or false."""
        return flag_of(self._given.get(name), name, name, default)

    def choice(self, name: str, words: Sequence[str], default: str | None = None) -> str | None:
        """Return one of some strings."""
        value = self._given.get(name)
        if value is None:
            return default
        if not isinstance(value, str) or value not in words:
            refusal = UnknownName(name, str(value), words, path=name)
            refusal.details.setdefault("hint", f"one of {', '.join(words)}")
            raise refusal
        return value

    def timeout(self) -> float | None:
        """Return the caller's time limit in seconds, above 0."""
        return seconds_of(self._given.get("timeout"))


class UnknownArgument(UnknownName):
    """
    An argument that a verb does not take.

    Args:
        name: As the caller wrote it.
        names: What the verb takes.
        hint: What is known to be meant.
        takes: What the verb takes, in words.

    Attributes:
        name: As the caller wrote it.
        container: The argument that such a column goes into, if nothing else is meant.
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
        """Set the hint for a column of this name, which stands beside its argument."""
        if self.container is not None:
            where = f'{self.container}={{"{self.name}": …}}'
            self.details["hint"] = f'a column goes into "{self.container}", as in {where}'


GROUPED = 'aggregate groups rows, as in vehicles.aggregate({"n": {"count": "*"}}, group=["model"])'
_GROUPING = frozenset(["group", "groupby", "groups", "having", "measures", "aggregate"])
"""What a verb on rows is asked for that is aggregate's."""


def _meant(name: str, value: Any, names: Collection[str]) -> str | None:
    """Return the hint for an argument that other tools, or other verbs, have."""
    text = isinstance(value, Mapping) or (isinstance(value, str) and not value.isdigit())
    found = synonym_hint("argument", name, {*names} - {"limit", "offset"} if text else names)
    if found is None and "having" in names and text:
        found = (
            f'a measure goes into "measures", as in measures={{"{clip(name)}": {{"count": "*"}}}}'
        )
    if found is None and "where" in names and "having" not in names:
        found = GROUPED if letters(name) in _GROUPING else None
    return found


def idempotency_key_of(value: Any) -> str | None:
    """
    Return an idempotency key; None is none.

    Raises:
        InvalidArgument: It is no string, has not from 1 to 255 characters, or one of them is
            NUL or half a surrogate pair.
    """
    if value is None:
        return None
    if not (isinstance(value, str) and 0 < len(value) <= MAX_KEY) or UNSTORABLE.search(value):
        raise InvalidArgument(
            f"an idempotency key is a string of 1 to {MAX_KEY} characters", path=IDEMPOTENCY_KEY
        )
    return value


def integer_of(value: Any, name: str, path: str) -> int | None:
    """Return an integer of at least 0; None is none."""
    if value is None:
        return None
    # Some clients of JavaScript send whole numbers as floats, wampy those beyond 32 bits.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidArgument(f'"{name}" is a whole number', path=path)
    if not 0 <= value <= MAX_INTEGER:
        raise InvalidArgument(f'"{name}" is not negative and below 2^63', path=path)
    return value


def flag_of(value: Any, name: str, path: str, default: bool = False) -> bool:
    """Return true or false; None is the default."""
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InvalidArgument(f'"{name}" is true or false', path=path)
    return value


def seconds_of(value: Any, name: str = "timeout") -> float | None:
    """Return a time limit in seconds; None is none."""
    if value is None:
        return None
    # As one chain, since NaN is neither above nor below anything; True is an int to Python.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise InvalidArgument(f'"{name}" is a number of seconds, above 0 and below 10^9', path=name)
    return float(value)


def listed(value: Any, name: str, most: int = MAX_LISTED) -> list[Any]:
    """
    Return a list argument; one string stands for a list of it, None for an empty one.

    Raises:
        InvalidArgument: It is no list, or too long to be planned in a moment.
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


def placed(value: Any, path: str, most: int = MAX_LISTED) -> list[tuple[Any, str]]:
    """
    Return the items of a list argument, each with where it stands: one by itself stands at `path`.
    """
    items = listed(value, path, most)
    if isinstance(value, str | Mapping):
        return [(each, path) for each in items]
    return [(each, f"{path}.{at}") for at, each in enumerate(items)]


def row_of(value: Any, name: str) -> Mapping[str, Any]:
    """Return the one row of an argument."""
    rows, many = rows_of(value, name)
    if many:
        raise InvalidArgument(f'"{name}" is one dict of columns and values', path=name)
    return rows[0]


def rows_of(value: Any, name: str) -> tuple[list[Mapping[str, Any]], bool]:
    """Return the rows of a write, and whether the caller gave a list of them."""
    value = opened_rows(value)
    many = isinstance(value, list | tuple)
    rows = list(value) if many else [value]
    for at, row in enumerate(rows):
        path = f"{name}.{at}" if many else name
        if not isinstance(row, Mapping):
            raise InvalidArgument("a row is a dict of columns and values", path=path)
        if not all(isinstance(key, str) for key in row):
            raise InvalidArgument("the keys of a row are column names", path=path)
    return rows, many
