"""
Fingerprints of PostgreSQL's catalog: whether it has changed, at a fraction of the cost of reading it.

Each change leaves a row with a new `xmin`, or one row less, so the number of rows and the sum of the
hashes of every `xmin` show it. The highest `xmin` would not: transactions do not end in the order in
which they began. While the snapshot is equal to the last one, nothing has changed at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.db.connection import PgConnection

_FIRST = 16384
"""The lowest oid that is not PostgreSQL's own (FirstNormalObjectId)."""

_TEMPORARY = "(SELECT oid FROM pg_catalog.pg_class WHERE relpersistence = 't')"
_OF_SESSIONS = "nspname ~ '^pg_(toast_)?temp_'"
_THEIR_SCHEMAS = f"(SELECT oid FROM pg_catalog.pg_namespace WHERE {_OF_SESSIONS})"

WATCHED: Mapping[str, str] = {
    "pg_aggregate": f"aggfnoid >= {_FIRST}",
    "pg_amproc": f"oid >= {_FIRST}",
    "pg_attrdef": f"adrelid NOT IN {_TEMPORARY}",
    "pg_attribute": f"attrelid >= {_FIRST} AND attnum > 0 AND attrelid NOT IN {_TEMPORARY}",
    "pg_auth_members": "true",
    "pg_cast": f"oid >= {_FIRST}",
    "pg_collation": f"oid >= {_FIRST}",
    "pg_constraint": f"conrelid NOT IN {_TEMPORARY}",
    "pg_db_role_setting": "true",
    "pg_depend": f"classid = 'pg_catalog.pg_proc'::regclass AND objid >= {_FIRST}"
    " AND deptype = 'e'",
    "pg_description": f"objoid >= {_FIRST}",
    "pg_enum": "true",
    "pg_extension": "true",
    "pg_index": f"indexrelid >= {_FIRST} AND indrelid NOT IN {_TEMPORARY}",
    "pg_inherits": f"inhrelid NOT IN {_TEMPORARY}",
    "pg_language": "true",
    "pg_namespace": f"NOT {_OF_SESSIONS}",
    "pg_opclass": f"oid >= {_FIRST}",
    "pg_operator": f"oid >= {_FIRST}",
    "pg_partitioned_table": "true",
    "pg_policy": "true",
    "pg_proc": f"oid >= {_FIRST} AND pronamespace NOT IN {_THEIR_SCHEMAS}",
    "pg_range": f"rngtypid >= {_FIRST}",
    "pg_rewrite": f"oid >= {_FIRST} AND ev_class NOT IN {_TEMPORARY}",
    "pg_statistic_ext": f"stxrelid NOT IN {_TEMPORARY}",
    "pg_trigger": f"tgrelid NOT IN {_TEMPORARY}",
    "pg_type": f"oid >= {_FIRST} AND typnamespace NOT IN {_THEIR_SCHEMAS}",
}
"""The catalogs that describe what is served, and which of their rows; temporary objects are left out."""

_READ: Mapping[str, str] = {
    # TRUNCATE, REFRESH and REINDEX also write to pg_class, but do not change these columns.
    "pg_class": "SELECT oid, relname, relnamespace, reltype, relkind, relowner, relrowsecurity,"
    " relispartition, relacl, reloptions FROM pg_catalog.pg_class"
    f" WHERE oid >= {_FIRST} AND relpersistence <> 't' AND relkind NOT IN ('t', 'S')",
    "pg_roles": "SELECT oid, rolname, rolsuper, rolinherit, rolbypassrls FROM pg_catalog.pg_roles",
}
"""The catalogs that are compared by columns, because their rows also get a new `xmin` for other reasons."""


def _sum(of: str, source: str) -> str:
    return f"(SELECT count(*) || '.' || coalesce(sum(hashtext({of})), 0) FROM {source})"


_PARTS = ", ".join(
    [
        *(
            _sum("xmin::text", f"pg_catalog.{part} WHERE {which}")
            for part, which in WATCHED.items()
        ),
        *(_sum("r::text", f"({rows}) r") for rows in _READ.values()),
    ]
)

# pg_temp is last: if it is not in the search_path, PostgreSQL looks relations and types up there first.
FINGERPRINT = f"""
SET LOCAL search_path TO pg_catalog, pg_temp;
SELECT s.snapshot, CASE WHEN s.snapshot = %s AND NOT pg_is_in_recovery() THEN NULL
                        ELSE concat_ws(' ', {_PARTS}) END
  FROM (SELECT pg_current_snapshot()::text AS snapshot) s
"""
"""A standby's snapshot does not list running transactions, so an equal one does not prove anything."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """
    The fingerprint of the catalog in a snapshot.

    Args:
        snapshot: The snapshot, as `pg_current_snapshot` gives it.
        value: Equal to that of another fingerprint if the catalog is the same.
    """

    snapshot: str
    value: str


def fingerprint_txn(connection: PgConnection, last: Fingerprint | None) -> Fingerprint:
    """Return the current fingerprint of the catalog: the last one if the snapshot is the same."""
    with connection.cursor() as cursor:
        cursor.execute(FINGERPRINT, [last.snapshot if last else ""], clean=True)
        ((snapshot, value),) = cursor.fetchall()
    return last if last and value is None else Fingerprint(snapshot, value)
