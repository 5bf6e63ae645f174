"""
Who may see which columns of a tracked relation, at this moment.

The catalog that is served is a little behind the database. A caller's own statement is judged by
PostgreSQL all the same, but what is read from the log is not: it belongs to the service. So rights
are asked anew, after the changes were read and before they are shown, so that a row is never shown
by rights that ended before it was written.

They are rights on columns as these are called now, and an image has the names that they had: a
column that is called so by now may be another one. So images count only if no column has been
changed since they were written.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from service.changes.net import Change
from service.changes.ticks import Tick
from service.db.connection import PgConnection
from service.db.introspect_sql import HIDDEN
from service.db.planned import GENERIC, Planned

RIGHTS = Planned(
    f"""
SELECT t.id, n.nspname, c.relname, c.relrowsecurity, r.role, of.names, of.types,
       -- with those that were dropped, whose names others may have
       ARRAY(SELECT DISTINCT a.xmin::text::bigint FROM pg_catalog.pg_attribute a
              WHERE a.attrelid = c.oid AND a.attnum > 0),
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
              WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum)
  FROM rowcast.tracked t
  JOIN pg_catalog.pg_class c ON c.oid = t.relation
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_description d
    ON d.objoid = c.oid AND d.classoid = 'pg_catalog.pg_class'::regclass AND d.objsubid = 0
 CROSS JOIN pg_catalog.unnest(%(roles)s::text[]) AS r (role)
  JOIN pg_catalog.pg_roles u ON u.rolname = CASE r.role WHEN '' THEN current_user ELSE r.role::name END
 CROSS JOIN LATERAL (
        SELECT pg_catalog.array_agg(a.attname::text) AS names, pg_catalog.array_agg(a.atttypid::bigint) AS types
          FROM pg_catalog.pg_attribute a
          LEFT JOIN pg_catalog.pg_description e
            ON e.objoid = c.oid AND e.classoid = 'pg_catalog.pg_class'::regclass AND e.objsubid = a.attnum
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND NOT {HIDDEN.format("e")}
           AND pg_catalog.has_column_privilege(u.oid, c.oid, a.attnum, 'SELECT')) of
 WHERE t.id = ANY (%(ids)s) AND NOT {HIDDEN.format("d")} AND of.names IS NOT NULL
   AND pg_catalog.has_schema_privilege(u.oid, n.oid, 'USAGE')
""",
    ids="int[]",
    roles="text[]",
)


@dataclass(frozen=True, slots=True)
class Rights:
    """
    What of a tracked relation may be read.

    Args:
        schema: Of the relation.
        name: Of the relation.
        row_security: Whether row-level security is on, for whomever.
        shaped: The transactions that have changed its columns last, by the lower half of their numbers.
        names: Of all of its columns, in order.
        columns: Types of the columns that are not hidden, by database role and name; a role that may
            read none is not in it.
    """

    schema: str
    name: str
    row_security: bool
    shaped: tuple[int, ...]
    names: tuple[str, ...]
    columns: dict[str, Mapping[str, int]]

    def hold_in(self, tick: Tick) -> bool:
        """Return whether all images of a tick have the columns that there are now, by its snapshots."""
        return all(tick.since.sees(_whole(half, tick.snapshot.xmax)) for half in self.shaped)

    def hold_for(self, change: Change) -> bool:
        """
        Return whether the images of a change have the columns that there are now.

        Whoever wrote one kept others from changing columns until its end. So a change of a column
        that had committed before the tick was before all of its images, and one that had not by its
        end may be after. Within the tick the number of the transaction and the names tell: what is
        left is a column that is dropped and made anew in its place, with the same name, by a
        transaction that had begun before the one of the image.
        """
        tick = change.tick
        if self.hold_in(tick):
            return True
        for half in self.shaped:
            xid = _whole(half, tick.snapshot.xmax)
            if not tick.snapshot.sees(xid) or (not tick.since.sees(xid) and xid > int(change.xid)):
                return False
        images = [image for image in (change.old, change.new) if image is not None]
        return all(tuple(image) == self.names for image in images)


def _whole(xid: int, near: int) -> int:
    """Return the number of a transaction of which the lower half is known; frozen ones are old."""
    whole = (near >> 32 << 32) + xid
    return whole - 2**32 if whole > near + 2**31 else whole


def rights_txn(
    connection: PgConnection, ids: Collection[int], roles: Collection[str]
) -> dict[int, Rights]:
    """
    Return the rights on tracked relations, by their numbers in the log.

    One that is not in it is gone, hidden, or nobody's to read.

    Args:
        connection: To the database, as the service itself.
        ids: The relations.
        roles: Of the database; "" is the service's own.
    """
    found: dict[int, Rights] = {}
    with connection.cursor() as cursor:
        RIGHTS.run(cursor, {"ids": list(ids), "roles": list(roles)}, GENERIC)
        for id, schema, name, row_security, role, names, types, shaped, every in cursor.fetchall():
            made = Rights(schema, name, row_security, tuple(shaped), tuple(every), {})
            rights = found.setdefault(id, made)
            rights.columns[role] = dict(zip(names, types, strict=True))
    return found
