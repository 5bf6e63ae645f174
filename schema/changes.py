"""
Change capture: each change of a tracked table is a row of the change log, written in the same transaction.

Triggers write the log, so it has the changes of all writers, and nothing that was rolled back. A reader
queries the rows that are visible now and were not in its last snapshot (a stored `pg_snapshot`). A sequence
number as the position would lose changes, because transactions do not commit in the order in which they take
numbers.

Everything is SQL in the schema `rowcast`, created by a migration or by the command `rowcast track`. It needs
the right to create a schema, and triggers on the tables; no superuser, extension or replication.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

import psycopg2
from psycopg2 import errors, sql

from schema.database_url import reason
from schema.own import HAND_OVER
from schema.triggers import OUTDATED, PINNED, keys_function, notify, trigger_functions

LEVELS = ("full", "keys", "touch")
"""What is logged of a change: entire rows, the primary key only, or only the fact of a change."""

LEADER = 0x726F776361737403
"""Advisory lock of the leader, which makes ticks and publishes."""

TICKS = "rowcast_ticks"
"""Channel on which the leader notifies of each tick; only the leader does, so no commits wait for others."""

CATALOG = "rowcast_schema"
"""Channel on which services are notified of a changed catalog or a newly tracked table."""

INSTALLING = 0x726F776361737402
"""Advisory lock of the session that creates or replaces the objects of this module."""

LOCK_TIMEOUT = "5s"
"""Lock timeout of `track`: while it waits for a busy table, writers queue behind it."""

TABLES = r"""
DO $$ BEGIN
    -- IF NOT EXISTS would ask for the right to create one even where it exists
    IF to_regnamespace('rowcast') IS NULL THEN CREATE SCHEMA rowcast; END IF;
END $$;
CREATE TABLE IF NOT EXISTS rowcast.tracked (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    relation regclass NOT NULL UNIQUE,
    name text NOT NULL,
    level text NOT NULL CHECK (level IN ('full', 'keys', 'touch')),
    wake boolean NOT NULL,
    since xid8 NOT NULL DEFAULT pg_current_xact_id(),
    shape text NOT NULL,
    noticed text NOT NULL,
    problem text
);
-- CACHE above 1 would give two changes of one row numbers in the wrong order
CREATE SEQUENCE IF NOT EXISTS rowcast.log_seq CACHE 1;
CREATE TABLE IF NOT EXISTS rowcast.log (
    seq bigint NOT NULL DEFAULT nextval('rowcast.log_seq'),
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    relation int NOT NULL,
    op "char" NOT NULL,
    old json,
    new json
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000);
CREATE TABLE IF NOT EXISTS rowcast.epochs (
    epoch int PRIMARY KEY,
    system bigint NOT NULL,
    timeline int NOT NULL,
    first_tick bigint NOT NULL,
    pruned_below xid8 NOT NULL
);
CREATE TABLE IF NOT EXISTS rowcast.ticks (
    tick bigint PRIMARY KEY,
    epoch int NOT NULL,
    snapshot pg_snapshot NOT NULL,
    changes int NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
DO $$ BEGIN
    -- Each would wait for whoever writes to a tracked table, and all writers for it, even where it is done.
    IF to_regclass('rowcast.log_xid_seq') IS NULL THEN
        CREATE INDEX log_xid_seq ON rowcast.log (xid, seq);
        ALTER SEQUENCE rowcast.log_seq OWNED BY rowcast.log.seq;
    END IF;
END $$;
COMMENT ON TABLE rowcast.tracked IS 'Tables whose changes are in the log';
COMMENT ON TABLE rowcast.log IS 'Changes of tracked tables';
COMMENT ON TABLE rowcast.ticks IS 'Snapshots up to which the log has been read';
COMMENT ON TABLE rowcast.epochs IS 'Times within which transaction numbers mean the same';
"""

FUNCTIONS = r"""
CREATE OR REPLACE FUNCTION rowcast.wake() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    {notify}
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION rowcast.key(relation oid) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT array_agg(a.attname::text ORDER BY array_position(i.indkey::int2[], a.attnum))
      FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
     WHERE i.indrelid = $1 AND i.indisprimary
$$;

-- Makes the function that logs the keys of a table, and returns its name. Of keys whose texts are the
-- same under any settings, it needs none of its own, which take a third of its time. No type that somebody
-- has made is one of those: it may have a cast to json, which must not run by the path of the writer.
CREATE OR REPLACE FUNCTION rowcast.write_keys(id int, relation regclass, key text[], wake boolean) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name text := 'log_keys_' || id;
    body text := {keys};
    plain boolean;
BEGIN
    SELECT bool_and(t.oid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype,
            'numeric'::regtype, 'text'::regtype, 'varchar'::regtype, 'bpchar'::regtype, 'uuid'::regtype,
            'bool'::regtype, 'date'::regtype, 'timestamp'::regtype))
      INTO plain
      FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
     WHERE a.attrelid = relation AND a.attname = ANY (key);
    SELECT format(body, id, (NOT wake)::text, string_agg(quote_ident(c), ', ' ORDER BY at),
               string_agg(format('NULL AS %I', c), ', ' ORDER BY at),
               string_agg(format('%L, o.%I', c, c), ', ' ORDER BY at),
               string_agg(format('%L, n.%I', c, c), ', ' ORDER BY at))
      INTO body FROM unnest(key) WITH ORDINALITY AS u (c, at);
    EXECUTE format('CREATE OR REPLACE FUNCTION rowcast.%I() RETURNS trigger LANGUAGE plpgsql %s AS %L', name,
                   CASE WHEN plain THEN 'SECURITY DEFINER' ELSE {pinned} END, body);
    -- with whose rights it writes, whoever makes it
    EXECUTE format('ALTER FUNCTION rowcast.%I() OWNER TO %s', name,
                   (SELECT c.relowner::regrole FROM pg_class c WHERE c.oid = 'rowcast.log'::regclass));
    EXECUTE format('REVOKE ALL ON FUNCTION rowcast.%I() FROM PUBLIC', name);
    RETURN name;
END $$;

-- Drops functions of triggers that no table has any more.
CREATE OR REPLACE FUNCTION rowcast.sweep() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found regprocedure;
BEGIN
    FOR found IN
        SELECT p.oid::regprocedure FROM pg_proc p
         WHERE p.pronamespace = 'rowcast'::regnamespace AND p.proname ~ '^log_(keys_[0-9]+|[a-z]+s_(key|id))$'
           AND NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgfoid = p.oid)
    LOOP
        EXECUTE format('DROP FUNCTION %s', found);
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION rowcast.tree(relation oid) RETURNS SETOF oid
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE tree (oid) AS (
        SELECT $1 UNION SELECT i.inhrelid FROM tree t JOIN pg_inherits i ON i.inhparent = t.oid)
    SELECT oid FROM tree
$$;

-- What changes with every DDL that changes rows without a trigger, or stops the triggers.
CREATE OR REPLACE FUNCTION rowcast.shape(relation oid) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT md5(concat_ws(' ', c.relnamespace, c.relname, (
            SELECT string_agg(i.inhparent::text, ',') FROM pg_inherits i WHERE i.inhrelid = c.oid
        ), (
            SELECT string_agg(i.indkey::text, ',') FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary
        ), (
            -- its xmin: ALTER TYPE with USING may rewrite values and leave all else as it was
            SELECT string_agg(concat_ws(' ', a.attrelid, a.attnum, a.attname, a.xmin), ',' ORDER BY a.attrelid, a.attnum)
              FROM rowcast.tree(c.oid) t JOIN pg_attribute a ON a.attrelid = t AND a.attnum > 0
        ), (
            -- its xmin: they may have been disabled meanwhile
            SELECT string_agg(concat_ws(' ', g.tgrelid, g.tgname, g.tgenabled, g.xmin), ',' ORDER BY g.tgrelid, g.tgname)
              FROM rowcast.tree(c.oid) t JOIN pg_trigger g ON g.tgrelid = t AND g.tgname ~ '^[!~]rowcast_'
        ), (
            -- a partition that came later has no trigger of its own for TRUNCATE, but gets a new file
            SELECT string_agg(concat_ws(' ', k.oid, k.relfilenode), ',' ORDER BY k.oid)
              FROM rowcast.tree(c.oid) t JOIN pg_class k ON k.oid = t AND k.relkind = 'r'
             WHERE NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = t AND g.tgname = '!rowcast_truncate')
        )))
      FROM pg_class c WHERE c.oid = shape.relation
$$;

-- Returns why changes are no longer logged, if so.
CREATE OR REPLACE FUNCTION rowcast.problem(relation oid, level text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE
        WHEN NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = $1) THEN 'it is gone'
        WHEN EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = $1)
         AND EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = $1 AND g.tgname ~ '^!rowcast_'
                        AND (g.tgnewtable IS NOT NULL OR g.tgoldtable IS NOT NULL))
            THEN 'it has become a part of another table'
        WHEN EXISTS (SELECT FROM rowcast.tree($1) t JOIN pg_trigger g ON g.tgrelid = t
                      WHERE g.tgname ~ '^!rowcast_' AND g.tgenabled NOT IN ('O', 'A'))
          OR (SELECT count(*) FROM pg_trigger g WHERE g.tgrelid = $1 AND g.tgname ~ '^!rowcast_')
             <> CASE level WHEN 'touch' THEN 2 ELSE 4 END
            THEN 'its triggers are disabled'
    END
$$;

CREATE OR REPLACE FUNCTION rowcast.reset(id int) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO rowcast.log (relation, op) VALUES (id, 'R')
$$;

-- Returns the tracked relations that are no longer what they were, and logs that they are to be
-- read again; what keeps the changes since then out of the log is their problem. A reader asks in the snapshot in which it reads the log.
CREATE OR REPLACE FUNCTION rowcast.notice() RETURNS SETOF int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found record;
BEGIN
    FOR found IN
        SELECT t.id, t.relation, t.wake, coalesce(rowcast.shape(t.relation), 'gone') AS shape,
               rowcast.key(t.relation) AS key
          FROM rowcast.tracked t WHERE t.noticed <> coalesce(rowcast.shape(t.relation), 'gone')
    LOOP
        UPDATE rowcast.tracked t
           SET noticed = found.shape,
               problem = rowcast.problem(t.relation, t.level),
               name = CASE found.shape WHEN 'gone' THEN t.name ELSE found.relation::text END
         WHERE t.id = found.id;
        PERFORM rowcast.reset(found.id);
        IF found.key IS NOT NULL AND to_regprocedure(format('rowcast.log_keys_%s()', found.id)) IS NOT NULL THEN
            PERFORM rowcast.write_keys(found.id, found.relation, found.key, found.wake);
        END IF;
        RETURN NEXT found.id;
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION rowcast.untie(relation regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found record;
BEGIN
    FOR found IN
        SELECT g.tgname, g.tgrelid::regclass AS home FROM rowcast.tree(relation) t
          JOIN pg_trigger g ON g.tgrelid = t AND g.tgname ~ '^[!~]rowcast_' AND g.tgparentid = 0
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', found.tgname, found.home);
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION rowcast.track(
    relation regclass, level text DEFAULT 'full', wake boolean DEFAULT true
) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    class record;
    known record;
    root int;
    key text[];
    args text;
    part regclass;
    op text;
    rows text;
    each_row boolean;
    outdated boolean;
    same boolean;
BEGIN
    SELECT c.*, n.nspname INTO class
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = relation;
    IF class IS NULL THEN
        RAISE undefined_table USING MESSAGE = format('there is no relation %s', relation);
    ELSIF level NOT IN ('full', 'keys', 'touch') THEN
        RAISE invalid_parameter_value USING
            MESSAGE = format('there is no level "%s"', level), HINT = 'full, keys or touch';
    ELSIF class.relkind NOT IN ('r', 'p') THEN
        RAISE wrong_object_type USING
            MESSAGE = format('%s is no table, and has no changes of its own', relation),
            HINT = 'track the tables under it';
    ELSIF class.nspname IN ('pg_catalog', 'information_schema', 'rowcast') THEN
        RAISE wrong_object_type USING MESSAGE = format('tables of the schema %s cannot be tracked', class.nspname);
    ELSIF class.relpersistence <> 'p' THEN
        RAISE wrong_object_type USING
            MESSAGE = format('%s is %s: it loses its rows without a change', relation,
                             CASE class.relpersistence WHEN 't' THEN 'temporary' ELSE 'unlogged' END);
    ELSIF class.relispartition THEN
        RAISE wrong_object_type USING
            MESSAGE = format('%s is a partition', relation),
            HINT = format('track %s', pg_partition_root(relation)::regclass);
    ELSIF class.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = relation) THEN
        RAISE wrong_object_type USING
            MESSAGE = format('%s has children by inheritance, whose rows fire no trigger of it', relation),
            HINT = 'track the children';
    END IF;
    each_row := class.relkind = 'p' OR EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = relation);
    IF level = 'keys' THEN
        key := rowcast.key(relation);
        IF key IS NULL THEN
            RAISE wrong_object_type USING
                MESSAGE = format('%s has no primary key', relation), HINT = 'level full or touch';
        END IF;
    END IF;
    SELECT * INTO known FROM rowcast.tracked t WHERE t.relation = track.relation;
    outdated := {outdated};
    IF outdated THEN
        -- so that nothing is written between the look at its shape and the new triggers
        EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', relation);
    END IF;
    same := coalesce(
        known.level = level AND known.wake = wake AND known.shape = rowcast.shape(relation), false);
    IF same AND NOT outdated THEN
        RETURN format('%s is tracked already (%s)', relation, level);
    END IF;
    IF known IS NULL THEN
        -- made anew, a table goes on as the one that it was
        SELECT * INTO known FROM rowcast.tracked t
         WHERE t.name = track.relation::text AND NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = t.relation)
         ORDER BY t.id DESC LIMIT 1;
    END IF;
    PERFORM rowcast.untie(relation);
    -- parts that were tracked before they became that are now logged as the whole
    DELETE FROM rowcast.tracked t
     WHERE t.relation IN (SELECT rowcast.tree(track.relation)) AND t.relation <> track.relation;
    IF known IS NULL THEN
        INSERT INTO rowcast.tracked (relation, name, level, wake, shape, noticed)
        VALUES (relation, relation::text, level, wake, '', '') RETURNING id INTO root;
    ELSE
        root := known.id;
        UPDATE rowcast.tracked t
           SET relation = track.relation, level = track.level, wake = track.wake,
               name = track.relation::text, problem = NULL,
               since = CASE WHEN same THEN t.since ELSE pg_current_xact_id() END
         WHERE t.id = root;
    END IF;
    -- One that is new may have been tracked before, under another number, and what was written since is in
    -- no log. Where there is no tick, there is no position either that it could be missed after.
    IF NOT same AND (known.id = root OR EXISTS (SELECT FROM rowcast.ticks)) THEN
        PERFORM rowcast.reset(root);
    END IF;
    -- "!" sorts before the names of other triggers, so the log is mostly in their order too
    args := quote_literal(root);
    IF level = 'keys' AND each_row THEN
        SELECT args || string_agg(', ' || quote_literal(c), '' ORDER BY at) INTO args
          FROM unnest(key) WITH ORDINALITY AS u (c, at);
    ELSIF wake AND NOT each_row THEN
        args := args || ', true';
    END IF;
    IF level <> 'touch' THEN
        FOR op, rows IN VALUES ('insert', 'NEW TABLE AS new_rows'), ('delete', 'OLD TABLE AS old_rows'),
                               ('update', 'OLD TABLE AS old_rows NEW TABLE AS new_rows') LOOP
            EXECUTE format(
                'CREATE TRIGGER %I AFTER %s ON %s %s EXECUTE FUNCTION rowcast.%I(%s)',
                '!rowcast_' || op, op, relation,
                CASE WHEN each_row THEN 'FOR EACH ROW' ELSE 'REFERENCING ' || rows || ' FOR EACH STATEMENT' END,
                CASE WHEN level = 'full' THEN 'log_' || op || CASE WHEN each_row THEN '' ELSE 's' END
                     WHEN each_row THEN 'log_' || op || '_key'
                     ELSE rowcast.write_keys(root, relation, key, wake) END,
                args);
        END LOOP;
    END IF;
    -- of statements, which partitions do not take over from their root
    FOR part IN SELECT t::regclass FROM rowcast.tree(relation) t JOIN pg_class c ON c.oid = t
                 WHERE c.relkind IN ('r', 'p') LOOP
        EXECUTE format(
            'CREATE TRIGGER "!rowcast_truncate" AFTER TRUNCATE ON %s FOR EACH STATEMENT'
            ' EXECUTE FUNCTION rowcast.log_statement(%L, %L%s)',
            part, root, CASE part WHEN relation THEN 'T' ELSE 'R' END, CASE WHEN wake THEN ', true' END);
        IF level = 'touch' THEN
            EXECUTE format(
                'CREATE TRIGGER "!rowcast_touch" AFTER INSERT OR UPDATE OR DELETE ON %s'
                ' FOR EACH STATEMENT EXECUTE FUNCTION rowcast.log_statement(%L, ''C''%s)',
                part, root, CASE WHEN wake THEN ', true' END);
        ELSIF wake AND each_row THEN
            EXECUTE format(
                'CREATE TRIGGER "~rowcast_wake" AFTER INSERT OR UPDATE OR DELETE ON %s'
                ' FOR EACH STATEMENT EXECUTE FUNCTION rowcast.wake()', part);
        END IF;
    END LOOP;
    UPDATE rowcast.tracked t SET (shape, noticed) = (SELECT s, s FROM rowcast.shape(t.relation) s)
     WHERE t.id = root;
    PERFORM rowcast.sweep();
    NOTIFY {catalog};
    RETURN format('%s is tracked (%s)', relation, level);
END $$;

CREATE OR REPLACE FUNCTION rowcast.untrack(relation regclass) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known text;
BEGIN
    DELETE FROM rowcast.tracked t WHERE t.relation = untrack.relation RETURNING t.name INTO known;
    IF known IS NULL THEN
        RETURN relation::text || ' is not tracked';
    END IF;
    PERFORM rowcast.untie(relation);
    PERFORM rowcast.sweep();
    NOTIFY {catalog};
    RETURN format('%s is no longer tracked', known);
END $$;

DO $$
DECLARE
    owner oid := (SELECT c.relowner FROM pg_class c WHERE c.oid = 'rowcast.log'::regclass);
    each regprocedure;
BEGIN
    -- who could name a function that writes the log could fill it by a table of theirs
    FOR each IN SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'rowcast'::regnamespace LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', each);
    END LOOP;
    -- of a superuser or a member, whose rights they should not have, and the owner could not replace them
    FOR each IN SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'rowcast'::regnamespace
                   AND proowner = current_user::regrole AND proowner <> owner LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO %s', each, owner::regrole);
    END LOOP;
END $$;
"""

REMOVE = r"""
DO $$
DECLARE
    found record;
BEGIN
    FOR found IN SELECT relation FROM rowcast.tracked LOOP
        PERFORM rowcast.untrack(found.relation);
    END LOOP;
END $$;
DO $$
DECLARE
    each regprocedure;
BEGIN
    FOR each IN SELECT oid::regprocedure FROM pg_proc
                 WHERE pronamespace = 'rowcast'::regnamespace AND (proname ~ '^log_' OR proname IN ({functions})) LOOP
        EXECUTE format('DROP FUNCTION %s', each);
    END LOOP;
END $$;
DROP TABLE rowcast.log, rowcast.ticks, rowcast.epochs, rowcast.tracked;
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_depend WHERE refclassid = 'pg_namespace'::regclass
                      AND refobjid = 'rowcast'::regnamespace) THEN
        DROP SCHEMA rowcast;
    END IF;
END $$;
"""


def install() -> str:
    """Return the SQL that creates the log and its functions, or updates them."""
    written = "".join(
        f"CREATE OR REPLACE FUNCTION rowcast.{name}() RETURNS trigger LANGUAGE plpgsql {PINNED}"
        f" AS $$\n#variable_conflict use_variable\nBEGIN\n    {body}\n    RETURN NULL;\nEND $$;\n"
        for name, body in trigger_functions()
    )
    functions = FUNCTIONS
    fixed = {
        "catalog": CATALOG,
        "keys": f"$keys${keys_function()}$keys$",
        "notify": notify("false"),
        "outdated": OUTDATED.format("track.relation"),
        "pinned": f"$pinned${PINNED}$pinned$",
    }
    for name, value in fixed.items():
        functions = functions.replace(f"{{{name}}}", value)
    return TABLES + HAND_OVER + written + functions


TRACK_AGAIN = f"""
DO $$
DECLARE
    found record;
BEGIN
    SET LOCAL lock_timeout = '{LOCK_TIMEOUT}';
    FOR found IN
        SELECT t.* FROM rowcast.tracked t JOIN pg_class k ON k.oid = t.relation
         WHERE pg_has_role(k.relowner, 'USAGE') AND {OUTDATED.format("t.relation")}
    LOOP
        BEGIN
            PERFORM rowcast.track(found.relation, found.level, found.wake);
        EXCEPTION WHEN wrong_object_type OR lock_not_available THEN
            RAISE WARNING '% keeps its triggers: %', found.relation, SQLERRM;
        END;
    END LOOP;
END $$;
"""
"""
Replaces the triggers of tracked tables that are of an older version, if the role owns the table.

Tables that cannot be tracked any more (level `keys`, and the key was dropped), or are busy, keep theirs.
"""


def remove() -> str:
    """Return the SQL that untracks all tables and drops the log, and the schema if it is then empty."""
    names = re.findall(r"FUNCTION rowcast\.(\w+)\(", FUNCTIONS)
    return REMOVE.replace("{functions}", ", ".join(f"'{name}'" for name in dict.fromkeys(names)))


def track(table: str, level: str = "full", *, schema: str | None = None, wake: bool = True) -> None:
    """
    Track a table, in a migration: log its changes from now on.

    Args:
        table: Name of the table.
        level: One of `LEVELS`.
        schema: Schema of the table; by default the one in which the migration creates tables.
        wake: Whether writers notify a sleeping leader. Use False if transactions are prepared, because
            PostgreSQL refuses `PREPARE TRANSACTION` after NOTIFY; the leader then polls.
    """
    from alembic import op  # here, because the service imports this module without Alembic

    op.execute(f"SELECT rowcast.track({_literal(table, schema)}, '{level}', {str(wake).lower()})")


def untrack(table: str, *, schema: str | None = None) -> None:
    """Untrack a table, in a migration: stop logging its changes."""
    from alembic import op

    op.execute(f"SELECT rowcast.untrack({_literal(table, schema)})")


def _literal(table: str, schema: str | None) -> str:
    parts = [part.replace('"', '""') for part in (schema, table) if part]
    name = ".".join(f'"{part}"' for part in parts).replace("'", "''")
    return f"'{name}'"


class TrackingRefused(Exception):
    """A table cannot be tracked, or not by this role; the message says why, with the remedy."""


def track_table(dsn: str, table: str, level: str, wake: bool, schemas: tuple[str, ...] = ()) -> str:
    """
    Track a table: log its changes from now on; create the log if there is none.

    Args:
        dsn: Connection string of the database.
        table: Name of the table, as in URIs (`Orders`, `app.Orders`) or as in SQL (`"Orders"`).
        level: One of `LEVELS`.
        wake: As in `track`.
        schemas: Search path for names without a schema.

    Returns:
        A sentence about what was done.

    Raises:
        TrackingRefused: The table could not be tracked.
    """
    tracked = f"rowcast.track(coalesce({EXACT}, %(table)s::text::regclass), %(level)s, %(wake)s)"
    return _run(dsn, table, schemas, f"SELECT {tracked}", level=level, wake=wake)


def untrack_table(dsn: str, table: str, schemas: tuple[str, ...] = ()) -> str:
    """Untrack a table, even if it was dropped; arguments and errors as in `track_table`."""
    found = f"{EXACT}, to_regclass(%(table)s), (SELECT relation FROM rowcast.tracked WHERE name = %(table)s)"
    done = f"coalesce(rowcast.untrack(coalesce({found})), %(table)s || ' is not tracked')"
    return _run(dsn, table, schemas, f"SELECT {done}")


EXACT = """(SELECT c.oid::regclass FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relname = %(name)s::text AND coalesce(n.nspname = %(schema)s::text, pg_table_is_visible(c.oid)))"""

OURS = """
SELECT to_regnamespace('rowcast') IS NULL OR coalesce(
    (SELECT pg_has_role(nspowner, 'USAGE') FROM pg_namespace WHERE nspname = 'rowcast'), false)
"""


def _run(dsn: str, table: str, schemas: tuple[str, ...], statement: str, **values: object) -> str:
    schema, _, name = table.rpartition(".")
    values |= {"table": table, "schema": unquote(schema) or None, "name": unquote(name)}
    try:
        connection = psycopg2.connect(dsn)
    except psycopg2.OperationalError as error:
        raise TrackingRefused(reason(error)) from error
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [INSTALLING])
            cursor.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
            cursor.execute(OURS)
            if cursor.fetchone() == (True,):
                cursor.execute("SET LOCAL search_path = pg_catalog, pg_temp")
                cursor.execute(install())
            path = sql.SQL(", ").join(map(sql.Identifier, schemas or ("public",)))
            cursor.execute(sql.SQL("SET LOCAL search_path = {}").format(path))
            cursor.execute(statement, values)
            ((done,),) = cursor.fetchall()
            return str(done)
    except psycopg2.Error as error:
        raise TrackingRefused(_refusal(error, connection.info.user)) from error
    finally:
        connection.close()


def _refusal(error: psycopg2.Error, role: str) -> str:
    said = error.diag.message_primary or str(error).strip()
    if isinstance(error, errors.LockNotAvailable):
        return f"the table is busy: {LOCK_TIMEOUT} were not enough → try again"
    if isinstance(error, errors.InsufficientPrivilege):
        if found := re.search(r"for database (.+)$", said):
            return f'{said} → GRANT CREATE ON DATABASE {found[1]} TO "{role}"'
        if found := re.search(r"for table (.+)$", said):
            return f'{said} → GRANT TRIGGER ON {found[1]} TO "{role}", or track it as its owner'
        if said.startswith("must be owner"):
            return f"{said} → track it as who owns it and the schema rowcast, or as a superuser"
        return f"{said} → track it as the owner of the schema rowcast"
    return f"{said} → {error.diag.message_hint}" if error.diag.message_hint else said
