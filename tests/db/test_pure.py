"""Relations whose reads or writes are certain to have no side effects on the session."""

from __future__ import annotations

import pytest_twisted

from service.catalog import Relation
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller
from tests.deferreds import until

SCHEMA = """
CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$BEGIN RETURN 1; END$$;
CREATE FUNCTION imm(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION trg() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NEW; END$$;

-- nothing but PostgreSQL's own functions, and none that does something
CREATE TABLE numbered (id serial PRIMARY KEY, a text CHECK (a <> ''), at timestamptz DEFAULT now(),
  twice int GENERATED ALWAYS AS (length(a) * 2) STORED);
CREATE TABLE identified (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  key uuid DEFAULT gen_random_uuid(), r float DEFAULT random(), numbered int REFERENCES numbered);
CREATE TABLE virtual (id int PRIMARY KEY, a text, b text GENERATED ALWAYS AS (upper(a)) VIRTUAL);
CREATE TYPE mood AS ENUM ('glad'); CREATE TABLE moods (mood mood, moods mood[]);
CREATE DOMAIN filled AS text CHECK (VALUE <> ''); CREATE TABLE of_filled (f filled);
CREATE TABLE guarded (id int, tenant text); ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON guarded USING (tenant = current_setting('app.tenant', true));
CREATE VIEW upper_view AS SELECT upper(a) AS a, id FROM numbered WHERE at < clock_timestamp();
CREATE VIEW system_view AS SELECT relname FROM pg_class;
CREATE TABLE halves (id int, a text) PARTITION BY RANGE (id);
CREATE TABLE half PARTITION OF halves FOR VALUES FROM (1) TO (10);
CREATE TABLE indexed (a text); CREATE INDEX ON indexed (lower(a)) WHERE a <> '';
CREATE TABLE up (id int PRIMARY KEY); CREATE TABLE down (up int REFERENCES up ON DELETE CASCADE);

-- to be read, not to be written
CREATE TABLE triggered (id int PRIMARY KEY);
CREATE TRIGGER t BEFORE INSERT ON triggered FOR EACH ROW EXECUTE FUNCTION trg();
CREATE TABLE switched_off (id int PRIMARY KEY);
CREATE TRIGGER t BEFORE INSERT ON switched_off FOR EACH ROW EXECUTE FUNCTION trg();
ALTER TABLE switched_off DISABLE TRIGGER t;
CREATE TABLE defaulted (id int DEFAULT f());
CREATE TABLE default_sets (id text DEFAULT set_config('app.tenant', 'x', false));
CREATE TABLE ruled (id int); CREATE RULE r AS ON INSERT TO ruled DO ALSO SELECT f();
CREATE TABLE stored (a text, b text GENERATED ALWAYS AS (imm(a)) STORED);
CREATE TABLE parted (id int) PARTITION BY RANGE (id);
CREATE TABLE part PARTITION OF parted FOR VALUES FROM (1) TO (10);
CREATE TRIGGER t BEFORE INSERT ON part FOR EACH ROW EXECUTE FUNCTION trg();
CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (id int PRIMARY KEY,
  parent int REFERENCES parent ON DELETE CASCADE);
CREATE TABLE grandchild (child int REFERENCES child ON DELETE SET NULL);
CREATE TRIGGER t BEFORE UPDATE ON grandchild FOR EACH ROW EXECUTE FUNCTION trg();
CREATE VIEW over_triggered AS SELECT * FROM triggered;
CREATE VIEW over_view AS SELECT * FROM over_triggered;
CREATE MATERIALIZED VIEW stored_view AS SELECT f() AS f;

-- neither
CREATE VIEW calls AS SELECT f() AS f, id FROM identified;
CREATE VIEW sets AS SELECT set_config('app.tenant', 'x', false) AS x, id FROM identified;
CREATE VIEW sets_below AS SELECT id FROM sets;
CREATE VIEW sets_aside AS SELECT id FROM identified WHERE EXISTS (SELECT FROM sets);
CREATE VIEW counts AS SELECT nextval('numbered_id_seq') AS n;
CREATE VIEW locks AS SELECT pg_try_advisory_lock(1) AS l;
CREATE VIEW writes_xml AS SELECT length(table_to_xml('sets', false, false, '')::text) AS n;
CREATE TABLE policed (id int); ALTER TABLE policed ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON policed USING (id = f());
CREATE TABLE policed_by_view (id int); ALTER TABLE policed_by_view ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON policed_by_view USING (id IN (SELECT id FROM sets));
CREATE TABLE policed_write (id int); ALTER TABLE policed_write ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON policed_write FOR INSERT WITH CHECK (set_config('app.tenant', 'x', false) <> '');
CREATE DOMAIN checked AS text CHECK (imm(VALUE) <> '');
CREATE TABLE of_checked (a checked); CREATE TABLE of_many (a checked[]);
CREATE DOMAIN rechecked AS checked; CREATE TABLE of_rechecked (a rechecked);
CREATE TYPE pair AS (a text, b checked); CREATE TABLE of_pair (p pair);
CREATE TABLE checks (a text CHECK (imm(a) = ''));
CREATE TABLE own_index (a text); CREATE INDEX ON own_index (imm(a));
CREATE TYPE taste AS ENUM ('sweet'); CREATE TABLE tastes (taste taste);
CREATE FUNCTION like_taste(taste, taste) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT true';
CREATE OPERATOR === (LEFTARG = taste, RIGHTARG = taste, FUNCTION = like_taste);
"""

CAST = """
CREATE TYPE sour AS ENUM ('sour'); CREATE TABLE sours (sour sour);
CREATE FUNCTION sour_of(text) RETURNS sour IMMUTABLE LANGUAGE sql AS $$SELECT 'sour'::sour$$;
CREATE CAST (text AS sour) WITH FUNCTION sour_of(text);
"""

PURE = """numbered identified virtual moods of_filled guarded upper_view system_view halves indexed
up down stored_view"""
READABLE = """triggered switched_off defaulted default_sets ruled stored parted parent child
grandchild over_triggered over_view"""


def relations(db: DirectCaller) -> dict[str, Relation]:
    """Return the served relations by name."""
    return {name: each for (_, name), each in db.dispatcher.served.catalog.relations.items()}


@pytest_twisted.ensureDeferred
async def test_relations_that_use_only_harmless_functions_are_pure(db: DirectCaller) -> None:
    """Only built-in functions that are known to be harmless are certain."""
    found = relations(db)
    pure = {name for name, each in found.items() if each.pure_reads and each.pure_writes}
    readable = {name for name, each in found.items() if each.pure_reads} - pure
    writable = {name for name, each in found.items() if each.pure_writes} - pure
    assert pure == set(PURE.split())
    assert readable == set(READABLE.split())
    assert writable == set()


@pytest_twisted.ensureDeferred
async def test_relation_of_text_with_a_cast_that_runs_code_is_not_pure(
    db: DirectCaller, dsn: str
) -> None:
    """User-defined casts or operators of text may be used with any text column."""
    execute(dsn, CAST)
    old = db.dispatcher.served
    db.catalogs.reload()
    await until(lambda: db.dispatcher.served is not old)
    found = relations(db)
    assert not found["numbered"].pure_reads
    assert found["down"].pure_reads
