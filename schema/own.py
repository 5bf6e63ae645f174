"""
The service's own tables in the database that it serves, in the schema `rowcast`.

They are not part of the declared models: Alembic compares only the schema `public`, so autogenerate ignores
them. A migration creates them; in databases without this project's migrations, `python -m service init` does.
The statement can be run again, when later versions add tables to it.
"""

from __future__ import annotations

import psycopg2

from schema.database_url import reason

# Default privileges may grant others rights on each new table. The table has the answers of all callers, so
# these rights are revoked once; later grants stay. The schema has to belong to the role, because its owner
# could replace the table by another.
MAKE = """
DO $$
DECLARE
    grantee text;
BEGIN
    IF to_regnamespace('rowcast') IS NULL THEN
        CREATE SCHEMA rowcast;
    ELSIF NOT EXISTS (SELECT FROM pg_namespace
                       WHERE nspname = 'rowcast' AND nspowner = current_user::regrole) THEN
        RAISE insufficient_privilege USING MESSAGE = 'rowcast is another role''s schema';
    END IF;
    IF to_regclass('rowcast.idempotency_keys') IS NULL THEN
        CREATE TABLE rowcast.idempotency_keys (
            id bytea PRIMARY KEY,
            call bytea NOT NULL,
            result bytea,
            kept_at timestamptz NOT NULL DEFAULT pg_catalog.now()
        ) WITH (fillfactor = 70);
        CREATE INDEX ON rowcast.idempotency_keys (kept_at);
        COMMENT ON TABLE rowcast.idempotency_keys IS 'Results of calls with an idempotency key';
        COMMENT ON COLUMN rowcast.idempotency_keys.id IS 'SHA-256 of realm, authid and key';
        COMMENT ON COLUMN rowcast.idempotency_keys.call IS 'SHA-256 of role, procedure and arguments';
        COMMENT ON COLUMN rowcast.idempotency_keys.result IS 'as CBOR, or a row as text; null while its call is under way';
        FOR grantee IN
            SELECT DISTINCT CASE WHEN acl.grantee = 0 THEN 'PUBLIC' ELSE acl.grantee::regrole::text END
              FROM pg_class c, aclexplode(c.relacl) acl
             WHERE c.oid = 'rowcast.idempotency_keys'::regclass AND acl.grantee <> c.relowner
        LOOP
            EXECUTE 'REVOKE ALL ON rowcast.idempotency_keys FROM ' || grantee;
        END LOOP;
    END IF;
END $$
"""

# The service, whose role owns the schema, could not read a log of a superuser who tracks the first table.
HAND_OVER = """
DO $$
DECLARE
    made record;
BEGIN
    FOR made IN
        SELECT c.oid::regclass AS name, n.nspowner::regrole AS owner
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = 'rowcast' AND c.relname IN ('tracked', 'log', 'epochs', 'ticks')
           AND c.relowner = current_user::regrole AND c.relowner <> n.nspowner
    LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO %s', made.name, made.owner);
    END LOOP;
END $$;
"""
"""Gives the tables of the log to the owner of the schema, if they are those of the role that runs this."""

DROP = "DROP TABLE rowcast.idempotency_keys"


class NotMade(Exception):
    """The tables could not be created; the message says why."""


def make(dsn: str) -> None:
    """
    Create the tables that do not exist yet.

    Raises:
        NotMade: The database cannot be reached, or the role may not create them.
    """
    try:
        connection = psycopg2.connect(dsn)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(MAKE)
        finally:
            connection.close()
    except psycopg2.OperationalError as error:
        raise NotMade(reason(error)) from error
    except psycopg2.ProgrammingError as error:
        said = str(error).splitlines()[0]
        raise NotMade(f"{said} → run this as a role that may CREATE in the database") from error
