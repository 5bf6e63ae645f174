"""
Which relations can be read, and written, without anything of a session being changed by it.

What a statement can change of a session, it changes through a function. So a relation is pure
unless something in it, or in what it reads, runs a function that could: one in a language of
programs, or a volatile one.
"""

from __future__ import annotations

HARMLESS = (
    "clock_timestamp",
    "timeofday",
    "random",
    "random_normal",
    "gen_random_uuid",
    "uuidv4",
    "uuidv7",
)
"""Built-in functions that are volatile for what they give, not for what they do."""

IMPURE = rf"""
WITH RECURSIVE
impure_function AS MATERIALIZED (
  SELECT oid, proname FROM pg_proc
   WHERE CASE WHEN oid < 16384  -- FirstNormalObjectId
              THEN provolatile = 'v' AND proname NOT IN ('{"', '".join(HARMLESS)}')
                   OR proname ~ '^(table|schema|database)_to_xml'
              WHEN prolang IN (12, 13)  -- internal, c; of `internal` PostgreSQL alone can call
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
   UNION ALL
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
   UNION ALL  -- of built-in types pg_depend knows nothing
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
), stirred AS (  -- what no one can write without risk
  SELECT i.oid FROM impure i WHERE i.class = 'pg_class'::regclass
   UNION
  SELECT tgrelid FROM pg_trigger WHERE NOT tgisinternal
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
The relations that cannot be read, or written, and the types that cannot be used, for certain.

Uncertainty follows what PostgreSQL notes of dependencies: from a function to the operators,
types, policies, rules and expressions that use it, and from those to relations, and on to what
reads them. It notes none of what it is born with: the built-in functions that do something are
looked for in the expressions themselves. Whatever a write sets off is a write to where it
leads: cascades of foreign keys, partitions, tables under views.
"""
