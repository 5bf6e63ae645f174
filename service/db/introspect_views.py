"""
The table columns that columns of views show, and the keys and foreign keys that views have because of them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice, product
from typing import Any

from service.catalog import ForeignKey, QualifiedName, UniqueKey

Origins = Mapping[int, tuple[int, int]]
"""By column number of a view, the oid of the relation and the number of the column that it shows."""
Shown = Mapping[int, Sequence[str]]
"""By column number of a table, its names in a view; a self-join shows a column several times."""
Views = Mapping[int, Sequence[tuple[QualifiedName, Shown]]]
"""By table oid, the served views that show the table, with their names for its columns."""

MOST = 16
"""Maximum combinations of names of one key; each is a relationship of its own."""

RULES = """
SELECT r.ev_class AS relation, r.ev_action::text AS action
  FROM pg_rewrite r
 WHERE r.rulename = '_RETURN' AND r.ev_class = ANY(%(relations)s::oid[])
"""

_KEY = re.compile(r"^\s*@key[ \t]+(.+?)\s*$", re.MULTILINE)

# In a name, a brace is escaped by a backslash (outfuncs.c, outToken).
_TOKEN = re.compile(
    r"\\.|(?P<open>\{)|(?P<close>\})|:(?P<field>resno|resorigtbl|resorigcol) (?P<number>-?\d+)"
)


def origins_of(action: str) -> Origins:
    """
    Return which columns a view shows, given the node tree of its rule.

    The tree is text with nested braces: the query at depth 1, the entries of its target list at depth 2,
    subqueries deeper. Each entry has the table and column that it shows unchanged, or table 0
    (nodes/primnodes.h, TargetEntry).
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
            # resorigcol is the last of the three fields.
            if token["field"] == "resorigcol":
                if entry.get("resorigtbl"):
                    found[entry["resno"]] = entry["resorigtbl"], entry["resorigcol"]
                entry = {}
    return found


def base_origins(
    views: Iterable[int], read: Callable[[Sequence[int]], Sequence[Any]]
) -> Mapping[int, Origins]:
    """
    Return the table columns that views show, also through views that are not served.

    Args:
        views: Oids of the views.
        read: Returns rows of `RULES` for oids.
    """
    direct: dict[int, Origins] = {}
    wanted = set(views)
    while wanted:
        rules = {row.relation: origins_of(row.action) for row in read(sorted(wanted))}
        direct |= {oid: rules.get(oid, {}) for oid in wanted}
        below = {table for shown in rules.values() for table, _ in shown.values()}
        wanted = below - direct.keys()
    # A table has no rule, and so shows nothing.
    return {oid: _to_tables(shown, direct) for oid, shown in direct.items() if shown}


def _to_tables(shown: Origins, direct: Mapping[int, Origins]) -> Origins:
    """Follow columns of views to columns of tables."""
    found = {}
    for number, origin in shown.items():
        table, column = origin
        passed = {origin}
        # Views can be redefined to form a cycle; PostgreSQL only refuses to read them.
        while column in direct.get(table, {}) and direct[table][column] not in passed:
            table, column = direct[table][column]
            passed.add((table, column))
        if not direct.get(table):
            found[number] = table, column
    return found


def views_by_table(
    origins: Mapping[int, Origins],
    names: Mapping[int, Mapping[int, str]],
    homes: Mapping[int, QualifiedName],
) -> Views:
    """
    Return the served views that show tables.

    Args:
        origins: By view, the columns that it shows.
        names: Names of served columns, by relation and number.
        homes: Schema and name of served relations.
    """
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


def derived_keys(
    foreign_keys: Iterable[Any],
    unique_keys: Iterable[Any],
    views: Views,
    names: Mapping[int, Mapping[int, str]],
    homes: Mapping[int, QualifiedName],
) -> Mapping[QualifiedName, tuple[ForeignKey, ...]]:
    """
    Return the foreign keys from or to views that show the columns of real foreign keys.

    Args:
        foreign_keys: Rows of the real foreign keys, of served relations and of tables under views.
        unique_keys: Rows of the unique keys of these relations.
        views: The views that show tables.
        names: Names of served columns, by relation and number.
        homes: Schema and name of served relations.
    """
    unique: dict[int, list[set[int]]] = defaultdict(list)
    for row in unique_keys:
        unique[row.relation].append(set(row.columns))
    found: dict[QualifiedName, list[ForeignKey]] = defaultdict(list)
    for row in foreign_keys:
        single = any(key <= set(row.columns) for key in unique[row.relation])
        for here, mine in _exposures(row.relation, views, names, homes):
            for there, theirs in _exposures(row.target, views, names, homes):
                if here == homes.get(row.relation) and there == homes.get(row.target):
                    continue  # the real foreign key
                named = _names_embeds(row, here, there, homes)
                found[here] += (
                    ForeignKey(row.name, columns, there, targets, unique=single, names_embeds=named)
                    for columns in _combinations(row.columns, mine)
                    for targets in _combinations(row.target_columns, theirs)
                )
    return {name: tuple(keys) for name, keys in found.items()}


def shown_keys(
    unique_keys: Iterable[Any], views: Views
) -> Mapping[QualifiedName, tuple[tuple[str, ...], ...]]:
    """
    Return, by view, the unique keys of tables all of whose columns it shows, by the view's names.

    Args:
        unique_keys: Rows of unique keys of tables under views.
        views: The views that show tables.
    """
    found: dict[QualifiedName, list[tuple[str, ...]]] = defaultdict(list)
    for row in unique_keys:
        for view, columns in views.get(row.relation, ()):
            found[view] += _combinations(row.columns, columns)
    return {name: tuple(keys) for name, keys in found.items()}


def shown_row_keys(
    unique_keys: Iterable[Any],
    views: Views,
    origins: Mapping[int, Origins],
    homes: Mapping[int, QualifiedName],
) -> Mapping[QualifiedName, list[tuple[bool, UniqueKey]]]:
    """
    Return, by view that shows one table only, the keys of that table, each with whether it is primary.

    The view may show a row more than once.

    Args:
        unique_keys: Rows of unique keys of tables under views.
        views: The views that show tables.
        origins: By view, the columns that it shows.
        homes: Schema and name of served relations.
    """
    alone = {homes[view] for view, shown in origins.items() if view in homes
             and len({table for table, _ in shown.values()}) == 1}  # fmt: skip
    found: dict[QualifiedName, list[tuple[bool, UniqueKey]]] = defaultdict(list)
    for row in unique_keys:
        for view, columns in views.get(row.relation, ()):
            named = next(_combinations(row.columns, columns), None)
            if view in alone and named:
                key = UniqueKey(row.name, named, row.arbiter, row.nulls, row.required)
                found[view].append((row.primary, key))
    return found


def claimed_key(comment: str | None) -> tuple[str, ...]:
    """Return the columns of a line `@key a, b` in a comment; an empty tuple without one."""
    line = _KEY.search(comment or "")
    names = (each.strip() for each in line[1].split(",")) if line else ()
    return tuple(
        name[1:-1].replace('""', '"') if name[:1] == name[-1:] == '"' else name
        for name in names
        if name
    )


def _names_embeds(
    row: Any, here: QualifiedName, there: QualifiedName, homes: Mapping[int, QualifiedName]
) -> bool:
    """Return whether an embed may have the name of a key: to its target, or to views if that is hidden."""
    if row.target in homes:
        return there == homes[row.target]
    # A self-referencing key refers to rows of the same view, whatever other views show the table.
    return here == there or row.target != row.relation


def _combinations(numbers: Sequence[int], shown: Shown) -> Iterator[tuple[str, ...]]:
    """Yield the names of a key's columns in a view, in all combinations."""
    return islice(product(*(shown.get(number, ()) for number in numbers)), MOST)


def _exposures(
    table: int,
    views: Views,
    names: Mapping[int, Mapping[int, str]],
    homes: Mapping[int, QualifiedName],
) -> list[tuple[QualifiedName, Shown]]:
    """Return the served relations that show a table: itself, if it is served, and views."""
    own: list[tuple[QualifiedName, Shown]] = []
    if table in homes:
        own.append((homes[table], {number: [name] for number, name in names[table].items()}))
    return own + list(views.get(table, ()))
