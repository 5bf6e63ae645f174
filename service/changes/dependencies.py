"""
What a statement reads: the tables whose changes can change its rows.

PostgreSQL says it, by EXPLAIN under the caller's role: tables under views, those that policies ask,
those in SQL functions that it inlines. Two things of a plan would hide a table. It is made for the
values of a call, by which PostgreSQL folds conditions away and leaves out partitions; so it is the
generic plan that is asked for, which knows no values (before PostgreSQL 16 there is none to ask for,
and what is found counts for these values alone). And a function that is not inlined stands in it by
its name; so the catalog says what those read whose body PostgreSQL has parsed (`BEGIN ATOMIC`), and
of others nothing is known.

What a plan leaves out for other reasons needs no look: a join that a unique key makes superfluous, a
condition that is false whatever the values, a partition that a constant of the query rules out. They
come back with DDL alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.changes.log import Tracked
from service.db.connection import PgConnection
from service.sql.statement import Statement

GENERIC_FROM = 160000
"""The first version with EXPLAIN (GENERIC_PLAN)."""

_WORD = re.compile(r'"(?:[^"]|"")+"|[^\W\d][\w$]*')
_OPERATOR = re.compile(r"[+\-*/<>=~!@#%^&|`?]+")

# Each function that can be meant by a name in the plan, whatever its schema: too many are found
# rather than too few. Aggregates, operators and casts are functions too; implicit casts stand
# nowhere. An immutable function reads nothing, by its promise.
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
    A table that is read.

    Args:
        oid: Which one.
        name: For messages.
        alias: What it is called in the plan; None where a function reads it.
        tree: The table, and those that it is a part of: one of them is tracked, if any.
    """

    oid: int
    name: str
    alias: str | None
    tree: frozenset[int]


@dataclass(frozen=True, slots=True)
class Dependencies:
    """
    What the rows of a statement come from.

    Args:
        scans: The tables.
        opaque: What is read by something that nobody can look into, by name: there may be more
            tables.
        session: Whether a condition, as of a policy, may ask for the caller's session.
    """

    scans: frozenset[Scan]
    opaque: tuple[str, ...] = ()
    session: bool = False

    @property
    def relations(self) -> frozenset[int]:
        """The oids of the tables, and of those that they are parts of."""
        return frozenset(oid for scan in self.scans for oid in scan.tree)

    def tracked(self, tracked: Iterable[Tracked]) -> frozenset[int]:
        """Return what is tracked of it, by its number in the log."""
        read = self.relations
        return frozenset(each.id for each in tracked if each.oid in read)

    def untracked(self, tracked: Iterable[Tracked]) -> tuple[str, ...]:
        """Return the names of the tables whose changes are in no log."""
        logged = {each.oid for each in tracked if each.problem is None}
        return tuple(sorted({scan.name for scan in self.scans if not scan.tree & logged}))


def dependencies_txn(
    connection: PgConnection, statement: Statement, parameters: Sequence[str | None]
) -> Dependencies:
    """
    Return what a statement reads when the role and the claims of this transaction run it.

    Args:
        connection: With them set.
        statement: That reads.
        parameters: Its parameters, as text. From PostgreSQL 16 on, the answer is the same for all.

    Raises:
        psycopg2.Error: They may not run it.
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
            nodes += _nodes(plan)
            text += _strings(plan)
        reads = [node for node in nodes if "Relation Name" in node]
        said = "\n".join(text)
        cursor.execute(
            READ,
            {
                "schemas": [node["Schema"] for node in reads],
                "names": [node["Relation Name"] for node in reads],
                "aliases": [node["Alias"] for node in reads],
                "words": list({_bare(word) for word in _WORD.findall(said)}),
                "operators": list(set(_OPERATOR.findall(said))),
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
        bool(opaque) or "rowcast.session" in said,
    )


def _hidden(nodes: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Return what of a plan reads tables that it does not name."""
    for node in nodes:
        # a foreign server joins two tables by itself; an extension scans in ways of its own
        if node["Node Type"] in {"Foreign Scan", "Custom Scan"} and "Relation Name" not in node:
            yield node["Node Type"]
        if node.get("Subplans Removed"):
            yield "partitions that were left out"


def _nodes(plan: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(plan, list):
        for each in plan:
            yield from _nodes(each)
    elif isinstance(plan, dict):
        if "Node Type" in plan:
            yield plan
        for each in plan.values():
            yield from _nodes(each)


def _strings(plan: Any) -> Iterator[str]:
    if isinstance(plan, str):
        yield plan
    elif isinstance(plan, list | dict):
        for each in plan.values() if isinstance(plan, dict) else plan:
            yield from _strings(each)


def _bare(word: str) -> str:
    return word[1:-1].replace('""', '"') if word.startswith('"') else word


def _numbered(statement: Statement) -> str:
    """Return the text of a statement as PREPARE takes it."""
    numbers = iter(range(1, len(statement.bounds) + 1))
    return re.sub("%s|%%", lambda at: f"${next(numbers)}" if at[0] == "%s" else "%", statement.text)
