"""
What a statement reads: the tables whose changes can change its rows.

EXPLAIN under the caller's role shows them: tables under views, tables in row-level security policies, tables
in SQL functions that PostgreSQL inlines. Two things would hide a table in a plan:

- A plan for given values, from which PostgreSQL removes conditions and partitions that the values rule out.
  So the generic plan is used. (Before PostgreSQL 16, EXPLAIN cannot show it, and the result holds only for
  these values.)
- A function that is not inlined appears only by its name. For functions whose body PostgreSQL has parsed
  (`BEGIN ATOMIC`), pg_depend has the tables; other functions count as opaque.

Tables that a plan omits for other reasons cannot change the rows: a join removed because of a unique key, a
condition that is false for all values, a partition that a constant in the query rules out. Only DDL can bring
them back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.changes.log import TrackedTable
from service.db.connection import PgConnection
from service.sql.statement import Statement

GENERIC_FROM = 160000
"""The first version with EXPLAIN (GENERIC_PLAN)."""

_WORD = re.compile(r'"(?:[^"]|"")+"|[^\W\d][\w$]*')
_OPERATOR = re.compile(r"[+\-*/<>=~!@#%^&|`?]+")

# Every function that a name in the plan can mean, whatever its schema: better too many than too few.
# Aggregates, operators and casts run functions too; the plan does not show implicit casts. An immutable
# function is trusted to read nothing.
READ = r"""
WITH RECURSIVE reached (class, oid) AS (
    SELECT 'pg_proc'::regclass::oid, p.oid FROM pg_proc p
     WHERE p.proname = ANY (%(words)s)
       AND (p.pronamespace <> 'pg_catalog'::regnamespace
            OR p.proname ~ '^(query|table|schema|database|cursor)_to_xml|^ts_stat$|^ts_rewrite$')
    UNION SELECT 'pg_operator'::regclass, o.oid FROM pg_operator o
     WHERE o.oprname = ANY (%(operators)s) AND o.oprnamespace <> 'pg_catalog'::regnamespace
    UNION SELECT 'pg_proc'::regclass, c.castfunc FROM pg_cast c JOIN pg_type t ON t.oid = c.casttarget
     WHERE c.castfunc <> 0 AND (c.castcontext <> 'e' OR t.typname = ANY (%(words)s))
       AND NOT EXISTS (SELECT FROM pg_proc p WHERE p.oid = c.castfunc AND p.pronamespace = 'pg_catalog'::regnamespace)
    UNION SELECT found.* FROM reached r CROSS JOIN LATERAL (
        SELECT d.refclassid, d.refobjid FROM pg_depend d
         WHERE r.class = 'pg_proc'::regclass AND d.classid = r.class AND d.objid = r.oid
           AND d.refclassid IN ('pg_class'::regclass, 'pg_proc'::regclass, 'pg_operator'::regclass)
        UNION ALL SELECT 'pg_proc'::regclass, o.oprcode FROM pg_operator o
         WHERE r.class = 'pg_operator'::regclass AND o.oid = r.oid
        UNION ALL SELECT 'pg_proc'::regclass, part FROM pg_aggregate a, unnest(ARRAY[a.aggtransfn,
            a.aggfinalfn, a.aggcombinefn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn]) part
         WHERE r.class = 'pg_proc'::regclass AND a.aggfnoid = r.oid
        UNION ALL SELECT d.refclassid, d.refobjid
          FROM pg_rewrite w JOIN pg_class c ON c.oid = w.ev_class AND c.relkind = 'v'
          JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
         WHERE r.class = 'pg_class'::regclass AND w.ev_class = r.oid
        UNION ALL SELECT d.refclassid, d.refobjid
          FROM pg_policy p JOIN pg_depend d ON d.classid = 'pg_policy'::regclass AND d.objid = p.oid
         WHERE r.class = 'pg_class'::regclass AND p.polrelid = r.oid AND p.polcmd IN ('r', '*')
    ) found
), scans (oid, alias) AS (
    SELECT c.oid, s.alias
      FROM unnest(%(schemas)s::text[], %(names)s::text[], %(aliases)s::text[]) s (schema, name, alias)
      JOIN pg_namespace n ON n.nspname = s.schema
      JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = s.name
    UNION SELECT r.oid, NULL FROM reached r JOIN pg_class c ON c.oid = r.oid
     WHERE r.class = 'pg_class'::regclass AND c.relkind IN ('r', 'p', 'f', 'm')
)
SELECT s.oid::bigint, s.oid::regclass::text, s.alias, (
        WITH RECURSIVE above (oid) AS (
            SELECT s.oid UNION SELECT i.inhparent FROM above a JOIN pg_inherits i ON i.inhrelid = a.oid)
        SELECT array_agg(a.oid::bigint) FROM above a)
  FROM scans s
UNION ALL
SELECT NULL, p.oid::regprocedure::text, NULL, NULL
  FROM reached r JOIN pg_proc p ON p.oid = r.oid JOIN pg_language l ON l.oid = p.prolang
 WHERE r.class = 'pg_proc'::regclass AND p.prokind <> 'a' AND p.provolatile <> 'i'
   -- before PostgreSQL 14 there is no such column, and no such body
   AND (to_jsonb(p) ->> 'prosqlbody' IS NULL
        OR pg_get_functiondef(p.oid) ~ '(query|table|schema|database|cursor)_to_xml|ts_stat|ts_rewrite|rowcast[.]session')
   AND (p.pronamespace <> 'pg_catalog'::regnamespace OR p.proname ~ '_to_xml|^ts_')
"""


@dataclass(frozen=True, slots=True)
class Scan:
    """
    A table that a statement reads.

    Args:
        oid: OID of the table.
        name: Name of the table, for messages.
        alias: Its alias in the plan; None if a function reads it.
        tree: OIDs of the table and of its parents (partitioning, inheritance), any of which may be
            the one that is tracked.
    """

    oid: int
    name: str
    alias: str | None
    tree: frozenset[int]


@dataclass(frozen=True, slots=True)
class Dependencies:
    """
    What the rows of a statement depend on.

    Args:
        scans: The tables that it reads.
        opaque: Names of functions and scans that may read further tables, which cannot be found out.
        session: Whether a condition, such as that of a policy, may depend on the caller's session id.
    """

    scans: frozenset[Scan]
    opaque: tuple[str, ...] = ()
    session: bool = False

    @property
    def relations(self) -> frozenset[int]:
        """The OIDs of the tables and of their parents."""
        return frozenset(oid for scan in self.scans for oid in scan.tree)

    def tracked(self, tracked: Iterable[TrackedTable]) -> frozenset[int]:
        """Return the numbers of those of its tables that are tracked."""
        read = self.relations
        return frozenset(each.id for each in tracked if each.oid in read)

    def untracked(self, tracked: Iterable[TrackedTable]) -> tuple[str, ...]:
        """Return the names of its tables whose changes are not logged."""
        logged = {each.oid for each in tracked if each.problem is None}
        return tuple(sorted({scan.name for scan in self.scans if not scan.tree & logged}))


def dependencies_txn(
    connection: PgConnection, statement: Statement, parameters: Sequence[str | None]
) -> Dependencies:
    """
    Return what a statement reads under the role and the claims of this transaction.

    Args:
        connection: Connection with role and claims set.
        statement: The statement.
        parameters: Its parameters, as text. From PostgreSQL 16 on, the result does not depend on them.

    Raises:
        psycopg2.Error: The role may not run the statement.
    """
    nodes: list[Mapping[str, Any]] = []
    text: list[str] = []
    with connection.cursor() as cursor:
        at = 0
        for part in statement.parts():
            bound = parameters[at : at + len(part.bounds)]
            at += len(part.bounds)
            if connection.server_version >= GENERIC_FROM:
                cursor.execute(f"EXPLAIN (VERBOSE, GENERIC_PLAN, FORMAT JSON) {_numbered(part)}")
            else:
                cursor.execute(f"EXPLAIN (VERBOSE, FORMAT JSON) {part.text}", bound)
            ((plan,),) = cursor.fetchall()
            plan = json.loads(plan) if isinstance(plan, str) else plan
            for each in _values_of(plan):
                if isinstance(each, dict) and "Node Type" in each:
                    nodes.append(each)
                elif isinstance(each, str):
                    text.append(each)
        reads = [node for node in nodes if "Relation Name" in node]
        expressions = "\n".join(text)
        cursor.execute(
            READ,
            {
                "schemas": [node["Schema"] for node in reads],
                "names": [node["Relation Name"] for node in reads],
                "aliases": [node["Alias"] for node in reads],
                "words": list({_bare(word) for word in _WORD.findall(expressions)}),
                "operators": list(set(_OPERATOR.findall(expressions))),
            },
            clean=True,
        )
        found = cursor.fetchall()
    opaque = (*sorted(name for oid, name, _, _ in found if not oid), *_hidden(nodes))
    return Dependencies(
        frozenset(
            Scan(oid, name, alias, frozenset(tree)) for oid, name, alias, tree in found if oid
        ),
        opaque,
        bool(opaque) or "rowcast.session" in expressions,
    )


def _hidden(nodes: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield descriptions of the parts of a plan that read tables without naming them."""
    for node in nodes:
        # A foreign server may join several tables in one scan; extensions define custom scans.
        if node["Node Type"] in {"Foreign Scan", "Custom Scan"} and "Relation Name" not in node:
            yield node["Node Type"]
        if node.get("Subplans Removed"):
            yield "partitions that were left out"


def _values_of(plan: Any) -> Iterator[Any]:
    """Yield a value of EXPLAIN's JSON, and all values inside it."""
    yield plan
    if isinstance(plan, list | dict):
        for each in plan.values() if isinstance(plan, dict) else plan:
            yield from _values_of(each)


def _bare(word: str) -> str:
    return word[1:-1].replace('""', '"') if word.startswith('"') else word


def _numbered(statement: Statement) -> str:
    """Return the text of a statement with numbered parameters ($1), as GENERIC_PLAN needs it."""
    numbers = iter(range(1, len(statement.bounds) + 1))
    return re.sub("%s|%%", lambda at: f"${next(numbers)}" if at[0] == "%s" else "%", statement.text)
