"""
The queries of `introspect`.

Each reads the system catalogs (PostgreSQL 13 to 18) for all relations at once, and has to run with a
`search_path` of pg_catalog only, so that PostgreSQL returns qualified names. Columns that older versions do
not have are read through `to_jsonb`, which gives null for them.
"""

from __future__ import annotations

READS_CATALOG = "SET LOCAL search_path TO pg_catalog, pg_temp; SET LOCAL jit = off;"
"""
Settings of a transaction that reads the catalogs.

pg_temp is last: if it is not in the `search_path`, PostgreSQL looks relations and types up there first. With
3,000 tables PostgreSQL 15 spent 0.75 s of 1.8 s on compiling the four longest queries.
"""

# With (?n), ^ and $ match at the ends of each line.
HIDDEN = r"coalesce({}.description ~ '(?n)^\s*@hidden\s*$', false)"
"""Whether a comment has a line `@hidden`, so that its object is not served."""

CAPTURE = """(SELECT p.oid FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
                WHERE n.nspname = 'rowcast')"""
"""Functions of the triggers that write the change log: they change neither rows nor session state."""

RELATIONS = f"""
SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relkind AS kind,
       c.relrowsecurity AS row_security, d.description AS comment,
       s.before, w.events, w.direct, r.has_rules,
       c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid) AS has_children,
       CASE WHEN c.relkind = 'v' THEN v.open ELSE NOT row_security_active(c.oid) END AS estimable,
       CASE WHEN NOT w.direct OR r.has_rules THEN 0 WHEN c.relkind = 'v' THEN 20 ELSE s.after END AS after,
       r.has_rules OR c.relkind IN ('v', 'f') OR s.stirred
         OR EXISTS (SELECT FROM pg_policy p
                      JOIN pg_depend d ON d.classid = 'pg_policy'::regclass AND d.objid = p.oid
                                      AND d.refclassid = 'pg_proc'::regclass
                      JOIN pg_proc f ON f.oid = d.refobjid AND f.provolatile = 'v'
                     WHERE p.polrelid = c.oid) AS side_effects,
       has_any_column_privilege(c.oid, 'SELECT') AS selectable,
       NOT EXISTS (SELECT FROM pg_attribute a
                    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                      AND NOT has_column_privilege(c.oid, a.attnum, 'SELECT')) AS readable,
       has_any_column_privilege(c.oid, 'INSERT') AND w.events & 8 <> 0 AS insertable,
       has_any_column_privilege(c.oid, 'UPDATE') AND w.events & 4 <> 0 AS updatable,
       has_table_privilege(c.oid, 'DELETE') AND w.events & 16 <> 0 AS deletable
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_description d
    ON d.objoid = c.oid AND d.classoid = 'pg_class'::regclass AND d.objsubid = 0,
       LATERAL (SELECT pg_relation_is_updatable(c.oid, true) AS events,
                       c.relkind <> 'v' OR pg_relation_is_updatable(c.oid, false) <> 0 AS direct) w,
       LATERAL (SELECT EXISTS (SELECT FROM pg_rewrite r
                                WHERE r.ev_class = c.oid AND r.ev_type <> '1') AS has_rules) r,
       LATERAL (WITH RECURSIVE family (oid) AS (
                    SELECT c.oid UNION SELECT i.inhrelid FROM pg_inherits i
                                         JOIN family f ON f.oid = i.inhparent)
                -- tgtype: 1 for each row, 2 before, 64 instead of, 4 on insert, 16 on update (pg_trigger.h)
                SELECT count(*) > 0 AS stirred,
                       coalesce(bit_or(CASE WHEN g.tgtype & 66 <> 0 AND g.tgtype & 1 <> 0
                                            THEN g.tgtype & 20 END), 0) AS before,
                       coalesce(bit_or(CASE WHEN g.tgtype & 66 = 0 THEN g.tgtype & 20 END), 0) AS after
                  FROM family f JOIN pg_trigger g ON g.tgrelid = f.oid
                 WHERE NOT g.tgisinternal AND g.tgenabled IN ('O', 'A')
                   AND g.tgfoid NOT IN {CAPTURE}) s,
       LATERAL (WITH RECURSIVE under AS (
                  SELECT c.oid WHERE c.relkind = 'v'
                  UNION
                  SELECT p.refobjid FROM under u
                    JOIN pg_rewrite r ON r.ev_class = u.oid
                    JOIN pg_depend p ON p.objid = r.oid AND p.classid = 'pg_rewrite'::regclass
                                    AND p.refclassid = 'pg_class'::regclass)
                SELECT NOT coalesce(bool_or(k.relrowsecurity OR b.barrier), false) AS open
                  FROM under u JOIN pg_class k ON k.oid = u.oid,
                       LATERAL (SELECT bool_or(o.option_name = 'security_barrier'
                                               AND o.option_value::bool) AS barrier
                                  FROM pg_options_to_table(k.reloptions) o) b) v
 WHERE n.nspname = ANY(%(schemas)s) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
   AND NOT c.relispartition AND NOT {HIDDEN.format("d")}
   AND has_schema_privilege(n.oid, 'USAGE')
   AND (has_any_column_privilege(c.oid, 'SELECT, INSERT, UPDATE')
        OR has_table_privilege(c.oid, 'DELETE'))
 ORDER BY array_position(%(schemas)s, n.nspname::text), c.relname
"""
"""
The served relations.

`before`, `after`: bits of `tgtype`, the writes before or after which triggers may change the written rows. An
automatically updatable view is taken to have triggers after INSERT and UPDATE, because its table may.

`estimable`: whether the planner's row estimates may be shown. They may not if policies hide rows from the
role, of the relation or of one under a view, or if a view is a security barrier.

`pg_relation_is_updatable` has the bits 1 << CMD_UPDATE (4), CMD_INSERT (8) and CMD_DELETE (16); with true,
it includes writes through INSTEAD OF triggers. Partitions and inheriting tables are in `family`, because
they have triggers of their own, which a write to their parent fires.
"""

COLUMNS = f"""
SELECT a.attrelid AS relation, a.attnum AS number, a.attname AS name, a.atttypid AS type,
       a.atttypmod AS modifier, format_type(a.atttypid, a.atttypmod) AS declared,
       a.attnotnull AS required, a.attidentity AS identity,
       CASE WHEN v.direct OR pg_relation_is_updatable(c.oid, false) & 12 <> 12
            THEN a.attgenerated ELSE 'v' END AS generated,
       CASE WHEN a.attgenerated <> '' OR e.oid IS NULL THEN NULL
            -- a default names functions and sequences, which are not to be known without a privilege
            WHEN EXISTS (SELECT FROM pg_depend u LEFT JOIN pg_class s ON s.oid = u.refobjid
                          WHERE u.classid = 'pg_attrdef'::regclass AND u.objid = e.oid
                            AND CASE WHEN u.refclassid = 'pg_proc'::regclass
                                     THEN NOT has_function_privilege(u.refobjid, 'EXECUTE')
                                     WHEN s.relkind = 'S' AND u.refclassid = 'pg_class'::regclass
                                     THEN NOT has_sequence_privilege(s.oid, 'USAGE, SELECT')
                                     ELSE false END)
            THEN '(of what this role may not use)'
            ELSE pg_get_expr(e.adbin, e.adrelid) END AS expression,
       d.description AS comment,
       has_column_privilege(c.oid, a.attnum, 'SELECT') AS selectable,
       has_column_privilege(c.oid, a.attnum, 'INSERT')
         AND (v.direct OR pg_relation_is_updatable(c.oid, false) & 8 = 0) AS insertable,
       has_column_privilege(c.oid, a.attnum, 'UPDATE')
         AND (v.direct OR pg_relation_is_updatable(c.oid, false) & 4 = 0) AS updatable,
       EXISTS (SELECT FROM pg_collation k
                WHERE k.oid = a.attcollation AND NOT k.collisdeterministic) AS loose
  FROM pg_attribute a
  JOIN pg_class c ON c.oid = a.attrelid
  LEFT JOIN pg_attrdef e ON e.adrelid = a.attrelid AND e.adnum = a.attnum
  LEFT JOIN pg_description d
    ON d.objoid = a.attrelid AND d.classoid = 'pg_class'::regclass AND d.objsubid = a.attnum,
       LATERAL (SELECT c.relkind <> 'v' OR pg_column_is_updatable(c.oid, a.attnum, false)
                       -- tgtype: 64 instead (pg_trigger.h); ev_type: 1 for the view's own query
                       OR EXISTS (SELECT FROM pg_trigger g
                                   WHERE g.tgrelid = c.oid AND g.tgtype & 64 <> 0)
                       OR EXISTS (SELECT FROM pg_rewrite r WHERE r.ev_class = c.oid
                                     AND r.ev_type <> '1' AND r.is_instead) AS direct) v
 WHERE a.attrelid = ANY(%(relations)s::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
   AND NOT {HIDDEN.format("d")}
   AND has_column_privilege(c.oid, a.attnum, 'SELECT, INSERT, UPDATE')
 ORDER BY a.attrelid, a.attnum
"""
"""
The columns that are not hidden, and on which the role has any privilege.

An automatically updatable view may have columns that cannot be written: expressions, which are reported
like virtual generated columns. If a trigger or a rule handles the writes, any column can be written.
"""

KEYS = """
SELECT i.indrelid AS relation, coalesce(k.conname, c.relname) AS name,
       (i.indkey::int2[])[:i.indnkeyatts - 1] AS columns,
       i.indisprimary AS primary, i.indimmediate AND NOT i.indisexclusion AS arbiter,
       coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::bool, false) AS nulls,
       NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = i.indrelid AND NOT a.attnotnull
                      AND a.attnum = ANY((i.indkey::int2[])[:i.indnkeyatts - 1])) AS required,
       t.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits h WHERE h.inhparent = t.oid) AS repeated
  FROM pg_index i
  JOIN pg_class c ON c.oid = i.indexrelid
  JOIN pg_class t ON t.oid = i.indrelid
  LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid
                           AND k.contype IN ('p', 'u')
 WHERE i.indrelid = ANY(%(relations)s::oid[]) AND i.indisunique AND i.indisvalid
   AND i.indpred IS NULL AND i.indexprs IS NULL
 ORDER BY i.indrelid, i.indisprimary DESC, k.oid IS NULL, i.indnkeyatts, 2
"""
"""
Unique constraints, and unique indexes that are neither partial nor over expressions; the primary key first.

`indkey` counts from 0; columns from `indnkeyatts` on are INCLUDE columns. `repeated`: other tables inherit
from the table, and their rows, which are also its rows, may have the same key.
"""

INDEXES = r"""
SELECT i.indrelid AS relation, coalesce(k.conname, c.relname) AS name,
       (i.indkey::int2[])[:i.indnkeyatts - 1] AS columns,
       ARRAY(SELECT DISTINCT v[1]::int2 FROM regexp_matches(i.indexprs::text, ':varattno (\d+)', 'g') v
              ) AS inner_columns,
       ARRAY(SELECT v[1]::int2 FROM regexp_matches(i.indpred::text, ':varattno (\d+)', 'g') v
              ) AS part_columns,
       i.indpred IS NOT NULL AS partial,
       i.indexprs IS NOT NULL OR coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::bool, false) AS nulls,
       i.indisexclusion AS skips,
       CASE WHEN NOT (i.indisvalid AND i.indisready AND i.indislive)
              THEN 'is not usable: it is being built, or its building has failed'
            WHEN NOT i.indimmediate THEN 'is deferrable'
            ELSE '' END AS fault,
       CASE WHEN i.indisexclusion THEN 'ON CONSTRAINT ' || quote_ident(k.conname)
            ELSE '(' || (SELECT string_agg(pg_get_indexdef(i.indexrelid, n, false), ', ' ORDER BY n)
                           FROM generate_series(1, i.indnkeyatts) n) || ')'
                 || coalesce(' WHERE ' || pg_get_expr(i.indpred, i.indrelid), '') END AS target
  FROM pg_index i
  JOIN pg_class c ON c.oid = i.indexrelid
  LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid
                           AND k.contype IN ('u', 'x')
 WHERE i.indrelid = ANY(%(relations)s::oid[]) AND (i.indisunique OR i.indisexclusion)
   AND NOT (i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL)
 ORDER BY i.indrelid, 2
"""
"""
Other unique indexes and exclusion constraints, with the `target` by which ON CONFLICT names them.

In `indkey`, 0 stands for an expression. The columns of expressions and predicates are read from their
stored node trees (nodes/primnodes.h, Var).
"""

# Foreign keys with PERIOD (PostgreSQL 18) match by overlap; older servers do not have `conperiod`.
FOREIGN_KEYS = """
SELECT c.conrelid AS relation, c.conname AS name, c.conkey AS columns,
       c.confrelid AS target, c.confkey AS target_columns
  FROM pg_constraint c
 WHERE c.conrelid = ANY(%(relations)s::oid[]) AND c.contype = 'f' AND c.conparentid = 0
   AND to_jsonb(c) ->> 'conperiod' IS DISTINCT FROM 'true'
 ORDER BY c.conrelid, c.conname
"""
"""
Foreign keys that match by equality.

Constraints with a parent are left out: PostgreSQL has created them for partitions.
"""

CASCADES = """
SELECT c.confrelid AS relation, unnest(c.confkey) AS number
  FROM pg_constraint c
 WHERE c.confrelid = ANY(%(relations)s::oid[]) AND c.contype = 'f'
   AND c.confupdtype IN ('c', 'n', 'd')
"""
"""Referenced columns whose updates cascade, also to relations that are not served."""

CONSTRAINTS = """
SELECT c.conrelid AS relation, c.conname AS name, coalesce(c.conkey, '{}') AS columns
  FROM pg_constraint c
 WHERE c.conrelid = ANY(%(relations)s::oid[])
 UNION ALL
SELECT i.indrelid, c.relname,
       ARRAY(SELECT d.refobjsubid::int2 FROM pg_depend d
              WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
                AND d.refclassid = 'pg_class'::regclass AND d.refobjid = i.indrelid
                AND d.refobjsubid > 0)
  FROM pg_index i
  JOIN pg_class c ON c.oid = i.indexrelid
 WHERE i.indrelid = ANY(%(relations)s::oid[]) AND i.indisunique
   AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid
                      AND k.conrelid = i.indrelid AND k.contype IN ('p', 'u', 'x'))
 ORDER BY 1, 2
"""
"""All constraints and unique indexes that a violation may name, with their columns, also in expressions."""

PARTITIONS = """
WITH RECURSIVE family AS (
    SELECT c.oid AS root, c.oid FROM pg_class c
     WHERE c.oid = ANY(%(relations)s::oid[]) AND c.relkind = 'p'
     UNION ALL
    SELECT f.root, i.inhrelid FROM family f JOIN pg_inherits i ON i.inhparent = f.oid)
SELECT f.root AS relation, n.nspname AS schema, c.relname AS name
  FROM family f JOIN pg_class c ON c.oid = f.oid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE f.oid <> f.root
"""
"""Partitions at every level, each with the root table, which is served."""

COPIES = """
WITH RECURSIVE keys AS (
    SELECT k.oid, k.conname AS declared, k.conname AS name, k.conrelid AS relation
      FROM pg_constraint k
     WHERE k.conrelid = ANY(%(relations)s::oid[]) AND k.contype = 'f' AND k.conparentid = 0
       AND EXISTS (SELECT FROM pg_constraint h WHERE h.conparentid = k.oid)
     UNION ALL
    SELECT h.oid, k.declared, h.conname, h.conrelid
      FROM keys k JOIN pg_constraint h ON h.conparentid = k.oid),
indexes AS (
    SELECT i.indexrelid AS oid, x.relname AS declared, x.relname AS name, i.indrelid AS relation
      FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid AND x.relkind = 'I'
     WHERE i.indrelid = ANY(%(relations)s::oid[]) AND (i.indisunique OR i.indisexclusion)
     UNION ALL
    SELECT h.inhrelid, k.declared, x.relname, i.indrelid
      FROM indexes k JOIN pg_inherits h ON h.inhparent = k.oid
      JOIN pg_class x ON x.oid = h.inhrelid JOIN pg_index i ON i.indexrelid = h.inhrelid)
SELECT n.nspname AS schema, c.relname AS table, k.name, k.declared
  FROM (SELECT * FROM keys UNION ALL SELECT * FROM indexes) k
  JOIN pg_class c ON c.oid = k.relation JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE k.name <> k.declared
"""
"""
Foreign keys and indexes that PostgreSQL has created for partitions under other names than declared.

The error of a violation has these names, and that of the partition.
"""

TYPES = f"""
WITH sorted AS (
  SELECT o.opcintype AS oid FROM pg_opclass o JOIN pg_am m ON m.oid = o.opcmethod
   WHERE m.amname = 'btree' AND o.opcdefault)
SELECT t.oid, n.nspname AS schema, t.typname AS name, format_type(t.oid, -1) AS sql,
       t.typtype AS kind, t.typcategory AS category, t.typdelim AS delimiter,
       coalesce(e.oid, 0) AS element, t.typnotnull AS required, t.typtypmod AS modifier,
       t.typdefault AS expression,
       CASE t.typtype
         WHEN 'd' THEN t.typbasetype
         WHEN 'r' THEN (SELECT r.rngsubtype FROM pg_range r WHERE r.rngtypid = t.oid)
         WHEN 'm' THEN (SELECT r.rngsubtype FROM pg_range r
                         WHERE to_jsonb(r) ->> 'rngmultitypid' = t.oid::text)
         ELSE 0
       END AS base,
       CASE t.typtype WHEN 'e' THEN
         ARRAY(SELECT l.enumlabel FROM pg_enum l WHERE l.enumtypid = t.oid
                ORDER BY l.enumsortorder)
       ELSE '{{}}' END AS labels,
       f.names, f.types, f.hiding, f.allowed,
       {HIDDEN.format("p")} AS hidden,
       EXISTS (SELECT FROM pg_class c WHERE c.oid = t.typrelid AND c.relkind <> 'c') AS row,
       -- uncorrelated, so that both subselects run once and not for each of some 200 types
       t.oid IN (SELECT oid FROM sorted
                  UNION ALL
                 SELECT b.castsource FROM pg_cast b JOIN sorted ON sorted.oid = b.casttarget
                  WHERE b.castmethod = 'b' AND b.castcontext = 'i') AS ordered,
       -- a type's own operator ~, as that of ltree with lquery, rather than a regular expression on its text
       coalesce((SELECT min(o.oprright::int8) FROM pg_operator o
                  WHERE o.oprname = '~' AND o.oprleft = t.oid AND o.oprresult = 'bool'::regtype
                    AND (o.oprowner = t.typowner
                         OR EXISTS (SELECT FROM pg_roles r WHERE r.oid = o.oprowner AND r.rolsuper))
                    AND t.typcategory <> 'S' AND t.typnamespace <> 'pg_catalog'::regnamespace
                ), 0) AS pattern
  FROM pg_type t
  JOIN pg_namespace n ON n.oid = t.typnamespace
  LEFT JOIN pg_type e ON e.typarray = t.oid
  LEFT JOIN pg_description p ON p.objoid = t.typrelid AND p.classoid = 'pg_class'::regclass
                            AND p.objsubid = 0
  LEFT JOIN LATERAL (  -- one pass over the fields, not one for each array
       SELECT array_agg(a.attname::text ORDER BY a.attnum) AS names,
              array_agg(a.atttypid::int8 ORDER BY a.attnum) AS types,
              array_agg({HIDDEN.format("p")} OR {HIDDEN.format("d")} ORDER BY a.attnum) AS hiding,
              array_agg(c.relkind = 'c'
                        OR coalesce(has_column_privilege(c.oid, a.attnum,
                                                         'SELECT, INSERT, UPDATE'), false)
                        ORDER BY a.attnum) AS allowed
         FROM pg_attribute a
         JOIN pg_class c ON c.oid = a.attrelid
         LEFT JOIN pg_description d ON d.objoid = a.attrelid AND d.objsubid = a.attnum
                                   AND d.classoid = 'pg_class'::regclass
        WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) f
    ON t.typtype = 'c'
 WHERE t.typisdefined AND n.nspname !~ '^pg_(toast|temp)'
   AND NOT ('c' IN (t.typtype, coalesce(e.typtype, t.typtype))
            AND n.nspname IN ('pg_catalog', 'information_schema'))
"""
"""All types except the row types of system catalogs, with the hidden fields of the others."""

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

Left out are functions of extensions, and those that only PostgreSQL can call: trigger functions, handlers,
and functions with an argument or result of type `internal` or `cstring`.
"""

_TRUSTED = """
   AND n.nspname <> 'pg_catalog'
   AND (o.owner = t.typowner OR EXISTS (SELECT FROM pg_roles r WHERE r.oid = o.owner AND r.rolsuper))
"""
"""
Only operators and functions of the type's owner or of a superuser are used; those of extensions are.

Another role could create matching ones, which would run with the privileges of every caller.
"""

OPERATORS = f"""
SELECT o.name, o.left, o.right, n.nspname AS schema
  FROM (SELECT oprname AS name, oprleft AS left, oprright AS right, oprnamespace AS home,
               oprowner AS owner
          FROM pg_operator
         WHERE oprkind = 'b' AND (oprresult = 'bool'::regtype OR oprname = '<->')) o
  JOIN pg_namespace n ON n.oid = o.home
  JOIN pg_type t ON t.oid = o.left
 WHERE has_schema_privilege(n.oid, 'USAGE') {_TRUSTED}
 ORDER BY n.oid = t.typnamespace, n.nspname
"""
"""Operators of types of extensions and of user-defined types."""

AGGREGATES = f"""
SELECT o.name, o.type, n.nspname AS schema
  FROM (SELECT proname AS name, proargtypes[0] AS type, pronamespace AS home, proowner AS owner
          FROM pg_proc WHERE prokind = 'a' AND pronargs = 1) o
  JOIN pg_namespace n ON n.oid = o.home
  JOIN pg_type t ON t.oid = o.type
 WHERE has_schema_privilege(n.oid, 'USAGE') {_TRUSTED}
 ORDER BY n.oid = t.typnamespace, n.nspname
"""
"""Aggregate functions of such types."""

POLICIES = "SELECT EXISTS (SELECT FROM pg_class WHERE relrowsecurity AND row_security_active(oid))"
"""Whether policies hide rows of any relation from the role."""

HARMLESS = (
    "clock_timestamp",
    "timeofday",
    "random",
    "random_normal",
    "gen_random_uuid",
    "uuidv4",
    "uuidv7",
)
"""Built-in functions that are volatile because of their results, and have no effects."""

IMPURE = rf"""
WITH RECURSIVE
impure_function AS MATERIALIZED (
  SELECT oid, proname FROM pg_proc
   WHERE CASE WHEN oid < 16384  -- FirstNormalObjectId
              THEN provolatile = 'v' AND proname NOT IN ('{"', '".join(HARMLESS)}')
                   OR proname ~ '^(table|schema|database)_to_xml'  -- stable, but run queries of their own
              WHEN prolang IN (12, 13)  -- internal, c; only PostgreSQL calls those that take `internal`
              THEN provolatile = 'v' AND 2281 <> ALL(proargtypes)
              ELSE true END
), written AS (
  SELECT string_agg(oid::text, '|') AS oids,
         string_agg(oid::text, '|') FILTER (WHERE proname <> 'nextval') AS but_nextval
    FROM impure_function WHERE oid < 16384
), tree AS (
  SELECT 'pg_rewrite'::regclass::oid AS class, oid, concat(ev_qual, ev_action) AS text
    FROM pg_rewrite WHERE oid >= 16384
   UNION ALL
  SELECT 'pg_policy'::regclass, oid, concat(polqual, polwithcheck) FROM pg_policy
   UNION ALL
  SELECT 'pg_constraint'::regclass, oid, conbin::text
    FROM pg_constraint WHERE contype = 'c' AND oid >= 16384
   UNION ALL
  SELECT 'pg_class'::regclass, indexrelid, concat(indexprs, indpred)
    FROM pg_index WHERE coalesce(indexprs, indpred) IS NOT NULL
   UNION ALL
  SELECT 'pg_class'::regclass, partrelid, partexprs::text FROM pg_partitioned_table
   UNION ALL
  SELECT 'pg_type'::regclass, oid, typdefaultbin::text FROM pg_type WHERE oid >= 16384
), seed AS (
  SELECT 'pg_proc'::regclass::oid AS class, oid FROM impure_function WHERE oid >= 16384
   UNION ALL
  SELECT class, oid FROM tree, written
   WHERE text ~ (':(funcid|opfuncid|aggfnoid|winfnoid) (' || oids || ')\M')
   UNION ALL  -- but nextval in a default: `PgConnection.counted` has lastval discarded
  SELECT 'pg_attrdef'::regclass, oid FROM pg_attrdef, written
   WHERE adbin::text ~ (':(funcid|opfuncid|aggfnoid|winfnoid) (' || but_nextval || ')\M')
   UNION ALL
  SELECT 'pg_class'::regclass, oid FROM pg_class WHERE relkind = 'f'
), edge (class, oid, to_class, to_oid) AS MATERIALIZED (
  SELECT d.refclassid, d.refobjid, d.classid, d.objid
    FROM pg_depend d
   WHERE d.refobjid >= 16384
     AND d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass, 'pg_class'::regclass,
                          'pg_type'::regclass, 'pg_opclass'::regclass, 'pg_opfamily'::regclass)
     AND d.classid IN ('pg_proc'::regclass, 'pg_operator'::regclass, 'pg_class'::regclass,
                       'pg_type'::regclass, 'pg_opclass'::regclass, 'pg_opfamily'::regclass,
                       'pg_amproc'::regclass, 'pg_amop'::regclass, 'pg_cast'::regclass,
                       'pg_rewrite'::regclass, 'pg_policy'::regclass, 'pg_attrdef'::regclass,
                       'pg_constraint'::regclass, 'pg_statistic_ext'::regclass)
     AND (d.classid, d.objid) NOT IN (SELECT 'pg_constraint'::regclass::oid, k.oid
                                        FROM pg_constraint k WHERE k.contype <> 'c')
   UNION ALL
  SELECT 'pg_rewrite'::regclass, r.oid, 'pg_class'::regclass, r.ev_class
    FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class
   WHERE r.oid >= 16384 AND r.ev_type = '1' AND c.relkind = 'v'
   UNION ALL
  SELECT 'pg_policy'::regclass, oid, 'pg_class'::regclass, polrelid FROM pg_policy
   UNION ALL
  SELECT 'pg_attrdef'::regclass, e.oid, 'pg_class'::regclass, e.adrelid
    FROM pg_attrdef e JOIN pg_attribute a ON a.attrelid = e.adrelid AND a.attnum = e.adnum
   WHERE a.attgenerated = 'v'
   UNION ALL
  SELECT 'pg_constraint'::regclass, oid, 'pg_class'::regclass, conrelid
    FROM pg_constraint WHERE contype = 'c' AND conrelid <> 0
   UNION ALL
  SELECT 'pg_constraint'::regclass, oid, 'pg_type'::regclass, contypid
    FROM pg_constraint WHERE contype = 'c' AND contypid <> 0
   UNION ALL
  SELECT 'pg_class'::regclass, indexrelid, 'pg_class'::regclass, indrelid
    FROM pg_index WHERE indexrelid >= 16384
   UNION ALL
  SELECT 'pg_statistic_ext'::regclass, oid, 'pg_class'::regclass, stxrelid FROM pg_statistic_ext
   UNION ALL
  SELECT 'pg_class'::regclass, inhrelid, 'pg_class'::regclass, inhparent FROM pg_inherits
   UNION ALL
  SELECT 'pg_operator'::regclass, oid, 'pg_type'::regclass, unnest(ARRAY[oprleft, oprright])
    FROM pg_operator WHERE oid >= 16384
   UNION ALL
  SELECT 'pg_cast'::regclass, oid, 'pg_type'::regclass, unnest(ARRAY[castsource, casttarget])
    FROM pg_cast WHERE oid >= 16384
   UNION ALL
  SELECT 'pg_amproc'::regclass, oid, 'pg_type'::regclass,
         unnest(ARRAY[amproclefttype, amprocrighttype])
    FROM pg_amproc WHERE oid >= 16384
   UNION ALL
  SELECT 'pg_proc'::regclass, a.aggfnoid, 'pg_type'::regclass, unnest(p.proargtypes)
    FROM pg_aggregate a JOIN pg_proc p ON p.oid = a.aggfnoid WHERE p.oid >= 16384
   UNION ALL  -- pg_depend has no rows for built-in types
  SELECT 'pg_type'::regclass, unnest(ARRAY[t.typelem, t.typbasetype]), 'pg_type'::regclass, t.oid
    FROM pg_type t
   UNION ALL
  SELECT 'pg_type'::regclass, rngsubtype, 'pg_type'::regclass, rngtypid FROM pg_range
   UNION ALL
  SELECT 'pg_type'::regclass, atttypid, 'pg_class'::regclass, attrelid
    FROM pg_attribute WHERE attrelid >= 16384 AND attnum > 0 AND NOT attisdropped
   UNION ALL
  SELECT 'pg_class'::regclass, typrelid, 'pg_type'::regclass, oid
    FROM pg_type WHERE typrelid >= 16384
), impure AS (
  SELECT class, oid FROM seed
   UNION
  SELECT edge.to_class, edge.to_oid FROM impure JOIN edge USING (class, oid)
), stirred AS (  -- relations whose own writes may run impure functions
  SELECT i.oid FROM impure i WHERE i.class = 'pg_class'::regclass
   UNION
  SELECT tgrelid FROM pg_trigger WHERE NOT tgisinternal AND tgfoid NOT IN {CAPTURE}
   UNION
  SELECT ev_class FROM pg_rewrite WHERE ev_type <> '1'
   UNION
  SELECT e.adrelid FROM impure i JOIN pg_attrdef e ON e.oid = i.oid
   WHERE i.class = 'pg_attrdef'::regclass
), reach (oid, to_oid) AS MATERIALIZED (
  SELECT inhrelid, inhparent FROM pg_inherits
   UNION ALL
  SELECT conrelid, confrelid FROM pg_constraint
   WHERE contype = 'f' AND (confdeltype IN ('c', 'n', 'd') OR confupdtype IN ('c', 'n', 'd'))
   UNION ALL
  SELECT d.refobjid, r.ev_class
    FROM pg_rewrite r
    JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
   WHERE d.refclassid = 'pg_class'::regclass AND r.oid >= 16384
), unwritable AS (
  SELECT oid FROM stirred
   UNION
  SELECT k.conrelid FROM pg_constraint k JOIN impure i ON i.oid = k.confrelid
   WHERE k.contype = 'f' AND i.class = 'pg_class'::regclass
   UNION
  SELECT reach.to_oid FROM unwritable JOIN reach USING (oid)
)
SELECT ARRAY(SELECT oid::int8 FROM impure WHERE class = 'pg_class'::regclass) AS reads,
       ARRAY(SELECT oid::int8 FROM unwritable) AS writes,
       ARRAY(SELECT oid::int8 FROM impure WHERE class = 'pg_type'::regclass) AS types
"""
"""
The relations that are impure to read or to write, and the impure types: using them may change the session's
state.

A statement can change the state of its session only through a function. A relation is impure if it, or a
relation that it reads, runs a function that could do so: one in a procedural language or SQL, or a
volatile one in C.

Impurity is propagated along pg_depend: from a function to the operators, types, policies, rules and
expressions that use it, from these to their relations, and further to relations that read those. pg_depend
has no rows for built-in functions, so these are searched for in the stored expressions. Writes are propagated
to the relations that they write to as well: by cascading foreign keys, to partitions, to tables under views.
"""
