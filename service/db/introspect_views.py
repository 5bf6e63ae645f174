"""
Views' columns back to the columns of tables, and the foreign keys that views have by that.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice, product
from typing import Any

from service.catalog import ForeignKey, QualifiedName, UniqueKey

Origins = Mapping[int, tuple[int, int]]
"""Column number of a view to the oid and column number that it shows."""
Shown = Mapping[int, Sequence[str]]
"""Column number of a table to what a view calls it: a join to itself shows it several times."""

MOST = 16
"""Spellings of one key: each is a relationship of its own, and columns multiply."""

RULES = """
SELECT r.ev_class AS relation, r.ev_action::text AS action
  FROM pg_rewrite r
 WHERE r.rulename = '_RETURN' AND r.ev_class = ANY(%(relations)s::oid[])
"""

_KEY = re.compile(r"^\s*@key[ \t]+(.+?)\s*$", re.MULTILINE)

# A brace in a name has a backslash before it, and nests nothing (outfuncs.c, outToken).
_TOKEN = re.compile(
    r"\\.|(?P<open>\{)|(?P<close>\})|:(?P<field>resno|resorigtbl|resorigcol) (?P<number>-?\d+)"
)


def origins_of(action: str) -> Origins:
    """
    Read which columns a view shows, off its rule as PostgreSQL stores it.

    A rule is nested braces: the query at depth 1, the entries of its target list at depth
    2, everything inside of subqueries deeper. Each entry tells of the table and the column
    that it shows as it is, or of table 0 (nodes/primnodes.h, TargetEntry).
    """
    found: dict[int, tuple[int, int]] = {}
    entry: dict[str, int] = {}
    depth = 0
    for token in _TOKEN.finditer(action):
        if token["open"]:
            depth += 1
        elif token["close"]:
            depth -= 1
        elif depth == 2 and token["field"]:
            entry[token["field"]] = int(token["number"])
            # It comes last of the three.
            if token["field"] == "resorigcol":
                if entry.get("resorigtbl"):
                    found[entry["resno"]] = entry["resorigtbl"], entry["resorigcol"]
                entry = {}
    return found


def base_origins(
    views: Iterable[int], read: Callable[[Sequence[int]], Sequence[Any]]
) -> Mapping[int, Origins]:
    """
    Follow views to the tables under them, through views that are not served, too.

    Args:
        views: Oids.
        read: Returns the rules of views.
    """
    direct: dict[int, Origins] = {}
    wanted = set(views)
    while wanted:
        rules = {row.relation: origins_of(row.action) for row in read(sorted(wanted))}
        direct |= {oid: rules.get(oid, {}) for oid in wanted}
        below = {table for shown in rules.values() for table, _ in shown.values()}
        wanted = below - direct.keys()
    # a table has no rule, so what it is said to show is nothing
    return {oid: _followed(shown, direct) for oid, shown in direct.items() if shown}


def _followed(shown: Origins, direct: Mapping[int, Origins]) -> Origins:
    found = {}
    for number, origin in shown.items():
        table, column = origin
        passed = {origin}
        # PostgreSQL lets views be redefined in a circle, and refuses only to read them
        while column in direct.get(table, {}) and direct[table][column] not in passed:
            table, column = direct[table][column]
            passed.add((table, column))
        if not direct.get(table):
            found[number] = table, column
    return found


def derived_keys(
    foreign_keys: Iterable[Any],
    unique_keys: Iterable[Any],
    origins: Mapping[int, Origins],
    names: Mapping[int, Mapping[int, str]],
    homes: Mapping[int, QualifiedName],
) -> Mapping[QualifiedName, tuple[ForeignKey, ...]]:
    """
    Return the foreign keys that relations have because views show the columns of real ones.

    Args:
        foreign_keys: Rows of the real ones, of served relations and of those under views.
        unique_keys: Rows of their unique keys.
        origins: What views show.
        names: Of served columns, by relation and number.
        homes: Of served relations.
    """
    shows = _shows(origins, names, homes)
    unique: dict[int, list[set[int]]] = defaultdict(list)
    for row in unique_keys:
        unique[row.relation].append(set(row.columns))
    found: dict[QualifiedName, list[ForeignKey]] = defaultdict(list)
    for row in foreign_keys:
        single = any(key <= set(row.columns) for key in unique[row.relation])
        for here, mine in _exposures(row.relation, shows, names, homes):
            for there, theirs in _exposures(row.target, shows, names, homes):
                if here == homes.get(row.relation) and there == homes.get(row.target):
                    continue  # the real one
                called = _called(row, here, there, homes)
                found[here] += (
                    ForeignKey(
                        row.name, columns, there, targets, unique=single, names_embeds=called
                    )
                    for columns in _spelled(row.columns, mine)
                    for targets in _spelled(row.target_columns, theirs)
                )
    return {name: tuple(keys) for name, keys in found.items()}


def shown_keys(
    unique_keys: Iterable[Any],
    origins: Mapping[int, Origins],
    names: Mapping[int, Mapping[int, str]],
    homes: Mapping[int, QualifiedName],
) -> Mapping[QualifiedName, tuple[tuple[str, ...], ...]]:
    """
    Return the unique keys of tables that views show all of, by the views' names of the columns.

    Args:
        unique_keys: Rows, of tables under views.
        origins: What views show.
        names: Of served columns, by relation and number.
        homes: Of served relations.
    """
    shows = _shows(origins, names, homes)
    found: dict[QualifiedName, list[tuple[str, ...]]] = defaultdict(list)
    for row in unique_keys:
        for view, columns in shows.get(row.relation, ()):
            found[view] += _spelled(row.columns, columns)
    return {name: tuple(keys) for name, keys in found.items()}


def shown_row_keys(
    unique_keys: Iterable[Any],
    origins: Mapping[int, Origins],
    names: Mapping[int, Mapping[int, str]],
    homes: Mapping[int, QualifiedName],
) -> Mapping[QualifiedName, list[tuple[bool, UniqueKey]]]:
    """
    Return the keys of the one table that a view shows, each with whether it is primary.

    The arguments are those of `shown_keys`. Whether a view shows each row once is not said here.
    """
    shows = _shows(origins, names, homes)
    alone = {homes[view] for view, shown in origins.items() if view in homes
             and len({table for table, _ in shown.values()}) == 1}  # fmt: skip
    found: dict[QualifiedName, list[tuple[bool, UniqueKey]]] = defaultdict(list)
    for row in unique_keys:
        for view, columns in shows.get(row.relation, ()):
            spelled = next(_spelled(row.columns, columns), None)
            if view in alone and spelled:
                key = UniqueKey(row.name, spelled, row.arbiter, row.nulls, row.required)
                found[view].append((row.primary, key))
    return found


def claimed_key(comment: str | None) -> tuple[str, ...]:
    """Return the columns that a line `@key a, b` of a comment names; nothing without one."""
    line = _KEY.search(comment or "")
    names = (each.strip() for each in line[1].split(",")) if line else ()
    return tuple(
        name[1:-1].replace('""', '"') if name[:1] == name[-1:] == '"' else name
        for name in names
        if name
    )


def _called(
    row: Any, here: QualifiedName, there: QualifiedName, homes: Mapping[int, QualifiedName]
) -> bool:
    """Return whether an embed may go by the name of a key: to its table, or what stands for it."""
    if row.target in homes:
        return there == homes[row.target]
    # a row refers to one of its own kind, whatever else shows the table
    return here == there or row.target != row.relation


def _spelled(numbers: Sequence[int], shown: Shown) -> Iterator[tuple[str, ...]]:
    return islice(product(*(shown.get(number, ()) for number in numbers)), MOST)


def _shows(
    origins: Mapping[int, Origins],
    names: Mapping[int, Mapping[int, str]],
    homes: Mapping[int, QualifiedName],
) -> Mapping[int, list[tuple[QualifiedName, Shown]]]:
    """Return, by table, the views that show it and their names for its columns."""
    found: dict[int, list[tuple[QualifiedName, Shown]]] = defaultdict(list)
    for view, shown in origins.items():
        if view not in homes:
            continue
        by_table: dict[int, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
        for number, (table, column) in shown.items():
            if number in names.get(view, {}):
                by_table[table][column].append(names[view][number])
        for table, columns in by_table.items():
            found[table].append((homes[view], dict(columns)))
    return found


def _exposures(
    table: int,
    shows: Mapping[int, list[tuple[QualifiedName, Shown]]],
    names: Mapping[int, Mapping[int, str]],
    homes: Mapping[int, QualifiedName],
) -> list[tuple[QualifiedName, Shown]]:
    own: list[tuple[QualifiedName, Shown]] = []
    if table in homes:
        own.append((homes[table], {number: [name] for number, name in names[table].items()}))
    return own + list(shows.get(table, ()))
