"""
Rows of `pg_proc` to the functions of the catalog.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from service.catalog import Type
from service.db.introspect_sql import HIDDEN
from service.db.introspect_types import shown
from service.functions import Argument, Function, Mode, Volatility

FUNCTIONS = f"""
SELECT n.nspname AS schema, p.proname AS name,
       coalesce(p.proallargtypes, p.proargtypes::oid[])::int8[] AS types,
       p.proargmodes::text[] AS modes, p.proargnames AS names, p.pronargs AS inputs,
       p.pronargdefaults AS defaults, p.prorettype::int8 AS result, p.proretset AS many,
       p.prorows = 1 AS single, p.provolatile AS volatility, p.prokind = 'p' AS procedure,
       p.prosecdef AS definer,
       d.description AS comment
  FROM pg_proc p
  JOIN pg_namespace n ON n.oid = p.pronamespace
  LEFT JOIN pg_description d
    ON d.objoid = p.oid AND d.classoid = 'pg_proc'::regclass AND d.objsubid = 0
 WHERE n.nspname = ANY(%(schemas)s) AND p.prokind IN ('f', 'p')
   AND NOT {HIDDEN.format("d")}
   AND NOT EXISTS (SELECT FROM pg_type t
                    WHERE t.oid = ANY(p.prorettype || p.proargtypes::oid[]) AND t.typtype = 'p'
                      AND t.typname !~ '^(any|void$|record$)')
   AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_proc'::regclass
                      AND e.objid = p.oid AND e.deptype = 'e')
   AND has_schema_privilege(n.oid, 'USAGE') AND has_function_privilege(p.oid, 'EXECUTE')
 ORDER BY array_position(%(schemas)s, n.nspname::text), p.proname, p.pronargs, p.oid
"""
"""
The served functions and procedures.

Those of extensions are left out, and those that only PostgreSQL itself can call: triggers,
handlers, and whatever takes or gives `internal` or `cstring`.
"""

MODES: Mapping[str, Mode] = {"i": "in", "o": "out", "b": "inout", "v": "variadic", "t": "table"}
VOLATILITIES: Mapping[str, Volatility] = {"i": "immutable", "s": "stable", "v": "volatile"}


def types_of(rows: Iterable[Any]) -> set[int]:
    """Give the oids of all types that functions speak of."""
    return {oid for row in rows for oid in (row.result, *row.types)}


def functions(
    rows: Iterable[Any], types: Mapping[int, Type]
) -> dict[tuple[str, str], tuple[Function, ...]]:
    """Make the functions of rows of `FUNCTIONS`, by schema and name, less those of hidden rows."""
    found: dict[tuple[str, str], tuple[Function, ...]] = {}
    for row in rows:
        if any(_is_hidden(types, oid) for oid in (row.result, *row.types)):
            continue
        home = (row.schema, row.name)
        found[home] = (*found.get(home, ()), _function(row))
    return found


def _is_hidden(types: Mapping[int, Type], oid: int) -> bool:
    """Return whether a type is made of the row of a relation of which nothing is served."""
    type = types.get(oid)
    while type is not None and (type.element or type.base):
        type = types.get(type.element or type.base)
    if type is None or type.kind != "composite" or not type.fields:
        return False
    return not any(name for name, _ in type.fields)


def _function(row: Any) -> Function:
    return Function(
        schema=row.schema,
        name=row.name,
        arguments=_arguments(row),
        result=row.result,
        many=row.many,
        single=row.single,
        volatility=VOLATILITIES[row.volatility],
        procedure=row.procedure,
        definer=row.definer,
        comment=shown(row.comment),
    )


def _arguments(row: Any) -> tuple[Argument, ...]:
    modes = row.modes or ["i"] * len(row.types)
    names = row.names or [""] * len(row.types)
    found: list[Argument] = []
    given = 0
    for name, oid, mode in zip(names, row.types, modes, strict=True):
        given += mode in "ibv"
        default = mode in "ibv" and given > row.inputs - row.defaults
        found.append(Argument(name, oid, MODES[mode], default))
    return tuple(found)
