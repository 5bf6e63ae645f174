"""
The procedure `why`: diagnose why no events arrive for a table.

A change becomes an event by way of the table's triggers, the change log, the feed, the router and the
rights of the subscriber. Each of these can drop the change silently, so each has a check here, and a
failed check names the remedy.
"""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from schema.triggers import OUTDATED
from service.api.dispatcher import Dispatcher, Procedure
from service.api.roles import SERVICE
from service.catalog import Catalog, Relation, RelationKind
from service.changes.leader import leader_txn
from service.changes.log import installed_txn, unreadable_log_owner_txn
from service.db.connection import PgConnection
from service.db.database import Database
from service.db.introspect import RELATION_KINDS
from service.db.session_settings import OWN_IDENTITY
from service.describe.relations import served_name
from service.errors import InvalidArgument, UnknownName
from service.request.arguments import Arguments, Caller
from service.request.names import encode
from service.sql.statement import TRANSACTION, quoted

RECENT = 100_000
"""Number of newest log rows that are searched for the last change of the table."""

TABLE = """
SELECT c.oid::bigint, c.relkind, c.relpersistence,
       pg_catalog.format('%%I.%%I', n.nspname, c.relname),
       CASE WHEN c.relispartition THEN pg_catalog.pg_partition_root(c.oid)::regclass::text END,
       c.relkind = 'r' AND EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhparent = c.oid),
       EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary),
       ARRAY(SELECT s.srsubid::text FROM pg_catalog.pg_subscription_rel s WHERE s.srrelid = c.oid),
       pg_catalog.has_any_column_privilege(r.oid, c.oid, 'SELECT'),
       c.relrowsecurity AND NOT (r.rolsuper OR r.rolbypassrls)
           AND (c.relforcerowsecurity OR NOT pg_catalog.pg_has_role(r.oid, c.relowner, 'USAGE')),
       r.rolname
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_roles r ON r.rolname = coalesce(%(role)s, current_user)
 WHERE n.nspname = %(schema)s AND c.relname = %(name)s
"""

OWNER = """
SELECT rolsuper, current_user::text FROM pg_catalog.pg_roles WHERE rolname = %(owner)s
"""

TRACKED = f"""
SELECT t.id, t.level, t.wake, {OUTDATED.format("t.relation")},
       CASE WHEN pg_catalog.has_function_privilege('rowcast.problem(oid, text)', 'EXECUTE')
            THEN rowcast.problem(t.relation, t.level) ELSE t.problem END
  FROM rowcast.tracked t WHERE t.relation = %(oid)s
"""

# With session_replication_role = replica a session silently fires no trigger but those ENABLE ALWAYS.
# The setting can come from the server, a role or a database.
REPLICA = """
SELECT pg_catalog.current_setting('session_replication_role') = 'replica',
       ARRAY(SELECT coalesce('role ' || r.rolname, 'database ' || d.datname)
               FROM pg_catalog.pg_db_role_setting s
               LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole
               LEFT JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase
              WHERE 'session_replication_role=replica' = ANY (s.setconfig)
                AND (s.setdatabase = 0 OR d.datname = current_database())),
       pg_catalog.pg_is_in_recovery()
"""

# Not by the relation's own newest row: the log has no index by relation, which every write would have to maintain.
LAST = """
SELECT extract(epoch FROM clock_timestamp() - at)::float8 FROM (
    SELECT relation, at FROM rowcast.log ORDER BY xid DESC, seq DESC LIMIT %(recent)s) AS newest
 WHERE relation = %(id)s LIMIT 1
"""

# The newest tick, its age, and the age of the oldest log row that was written after it.
READ = """
SELECT t.tick, extract(epoch FROM clock_timestamp() - t.at)::float8,
       (SELECT extract(epoch FROM clock_timestamp() - min(l.at))::float8 FROM (
            SELECT at FROM rowcast.log WHERE xid >= pg_catalog.pg_snapshot_xmax(t.snapshot)
             LIMIT 1000) AS l)
  FROM rowcast.ticks t ORDER BY t.tick DESC LIMIT 1
"""

PATIENCE, STEP = 10.0, 0.01
"""Seconds to wait until the log was read up to the write, and between two polls."""

Wait = Callable[[float], None]

COLUMN = """
SELECT a.attname FROM pg_catalog.pg_attribute a
  JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %(schema)s AND c.relname = %(name)s AND a.attnum > 0 AND NOT a.attisdropped
   AND a.attgenerated = '' AND a.attidentity <> 'a' ORDER BY a.attnum LIMIT 1
"""

SEEN = """
SELECT pg_catalog.pg_visible_in_snapshot(%(tx)s::xid8, snapshot)
  FROM rowcast.ticks ORDER BY tick DESC LIMIT 1
"""

LATE = 5.0
"""Seconds that a change may wait to be read; a takeover by another leader takes less."""


@dataclass(frozen=True, slots=True)
class Check:
    """
    The result of checking one condition.

    Args:
        ok: Whether the condition holds; None for a remark, which does not stop events.
        text: What was found.
        mend: The remedy, as a command if there is one.
    """

    ok: bool | None
    text: str
    mend: str | None = None

    def line(self) -> str:
        """Return the check as a line for a terminal."""
        mark = {True: "+", False: "-", None: " "}[self.ok]
        return f"[{mark}] {self.text}" + (f" → {self.mend}" if self.mend else "")

    def wire(self) -> dict[str, Any]:
        """Return the check as an item of the answer of `why`."""
        return {"ok": self.ok, "text": self.text, "mend": self.mend}


def table_checks_txn(
    connection: PgConnection, schema: str, name: str, role: str | None
) -> list[Check]:
    """
    Return the checks of everything in the database that events of a table depend on.

    Args:
        connection: Connection with the service's own role, in a transaction or in autocommit.
        schema: Schema of the table.
        name: Name of the table.
        role: Role of the subscriber, whose rights are checked; None for the service's own.
    """
    shown = f"{schema}.{name}"
    found = connection.ask(TABLE, schema=schema, name=name, role=role)
    if found is None:
        return [Check(False, f"there is no {shown}, or no role {role}")]
    oid, kind, persistence, sql, root, parent, has_key, subscriptions, readable, filtered, role = (
        found
    )
    rights = list(_rights(_uri(schema, name), sql, role, readable, filtered))
    untrackable = UNTRACKABLE.get(RELATION_KINDS.get(kind, "table"))
    if untrackable:
        what, mend = untrackable
        table = Check(False, f"{shown} is {what}", mend)
    else:
        table = _table(shown, sql, persistence, root, parent)
    if not table.ok:
        return [table, *rights]
    track = track_command(schema, name)
    checks = [table, *_key(sql, has_key)]
    if not installed_txn(connection):
        checks.append(_no_log(connection, track))
    else:
        tracked = connection.ask(TRACKED, oid=oid)
        checks += _tracked(track, tracked)
        checks += _replica(connection, sql, subscriptions)
        if tracked is not None:
            last = connection.ask(LAST, id=tracked[0], recent=RECENT)
            checks.append(_last(last))
            checks += _read(connection.ask(READ))
            checks += _leader(leader_txn(connection))
    return [*checks, *rights]


def track_command(schema: str, name: str) -> str:
    """Return the command that tracks a table, quoted for a shell."""
    return f"rowcast track {shlex.quote(_uri(schema, name))}"


def _uri(schema: str, name: str) -> str:
    return f"{encode(schema)}.{encode(name)}"


def _no_log(connection: PgConnection, track: str) -> Check:
    owner = unreadable_log_owner_txn(connection)
    if owner is None:
        return Check(False, "there is no log of changes", track)
    found = connection.ask(OWNER, owner=owner)
    superuser, us = found
    grant = f"GRANT {quoted(owner)} TO {quoted(us)}"
    # A member of a superuser's role may SET ROLE to it.
    risk = " (which may then do what a superuser may)" if superuser else ""
    anew = f"DROP SCHEMA rowcast CASCADE, then {track} as {us}"
    return Check(
        False,
        f"the log of changes is {owner}'s, and the service, which is {us}, may not read it",
        f"{grant}{risk}; or, without the changes and idempotency keys so far, {anew}",
    )


UNTRACKABLE: Mapping[RelationKind, tuple[str, str]] = {
    "view": ("a view, and has no changes of its own", "track the tables under it"),
    "materialized view": (
        "a materialized view, and REFRESH fires no trigger",
        "watch a view of the same query, and track the tables under that",
    ),
    "foreign table": (
        "a foreign table, and what its own server writes fires no trigger here",
        "serve the database that has it, and track it there",
    ),
}
"""What can be served but not tracked: what it is, and what to do."""


def track_hint(relation: Relation, name: str) -> str:
    """Return what to do so that the changes of a relation, of a name, are logged."""
    untrackable = UNTRACKABLE.get(relation.kind)
    return untrackable[1] if untrackable else f"rowcast track {shlex.quote(name)}"


def _table(shown: str, sql: str, persistence: str, root: str | None, parent: bool) -> Check:
    if root is not None:
        return Check(
            False, f"{shown} is a partition: its changes are those of {root}", f"rowcast why {root}"
        )
    if parent:
        return Check(
            False,
            f"{shown} has children by inheritance, whose rows fire no trigger of it",
            "track the children",
        )
    if persistence != "p":
        return Check(False, f"{shown} is unlogged", f"ALTER TABLE {sql} SET LOGGED")
    return Check(True, f"{shown} is a table, and served")


def _key(sql: str, has_key: bool) -> Iterator[Check]:
    if has_key:
        yield Check(True, "it has a primary key")
    else:
        yield Check(
            None,
            "it has no primary key: its events have no key",
            f"ALTER TABLE {sql} ADD PRIMARY KEY (…)",
        )


def _tracked(track: str, tracked: Sequence[Any] | None) -> Iterator[Check]:
    if tracked is None:
        yield Check(False, "it is not tracked", track)
        return
    _, level, wake, outdated, problem = tracked
    if outdated:
        yield Check(
            None,
            "its triggers are of an older version, which costs its writers more",
            f"{track} --level {level}" + ("" if wake else " --no-wake"),
        )
    if problem is not None:
        yield Check(False, f"it is tracked, but {problem}", track)
    elif level == "full":
        yield Check(True, "it is tracked, whole rows; its triggers are there and enabled")
    else:
        less = {
            "keys": "its events have keys and no rows",
            "touch": "its events say no more than that",
        }
        yield Check(
            None,
            f"it is tracked at the level {level}: {less[level]}",
            f"{track} --level full",
        )


def _replica(connection: PgConnection, sql: str, subscriptions: Sequence[str]) -> Iterator[Check]:
    found = connection.ask(REPLICA)
    everywhere, some, standby = found
    if standby:
        yield Check(False, "this is a standby, where nothing is logged", "connect to the primary")
    who = "every session" if everywhere else ", ".join(some)
    if who:
        yield Check(
            False,
            f"session_replication_role is replica for {who}: its writes fire no trigger",
            "reset it (ALTER ROLE, ALTER DATABASE or ALTER SYSTEM … RESET session_replication_role)",
        )
    if subscriptions:
        yield Check(
            False,
            "a subscription writes to it, which fires no trigger",
            f"track it where it is published, or ALTER TABLE {sql} ENABLE ALWAYS TRIGGER …",
        )
    if not (standby or who or subscriptions):
        yield Check(True, "its triggers are not bypassed (session_replication_role)")


def _last(found: Sequence[Any] | None) -> Check:
    if found is None:
        return Check(None, "nothing was written to it lately: see it with an UPDATE in psql")
    return Check(True, f"its last change was logged {_ago(found[0])} ago")


def _read(found: Sequence[Any] | None) -> Iterator[Check]:
    if found is None:
        yield Check(False, "nobody has read the log yet", "start a service (make run)")
        return
    tick, since, waiting = found
    if waiting is not None and waiting > LATE:
        yield Check(
            False,
            f"the log is not read: changes wait for {_ago(waiting)} (position {tick})",
            "is a service up? rowcast call health; its log says why not",
        )
    else:
        yield Check(True, f"the log is read up to its end (tick {tick}, {_ago(since)} ago)")


def _leader(found: tuple[str | None, int] | None) -> Iterator[Check]:
    if found is not None:
        process, backend = found
        leader = f"process {process or 'of an older version'}"
        yield Check(None, f"{leader} publishes changes (backend {backend} of pg_stat_activity)")


def _rights(uri: str, sql: str, role: str, readable: bool, filtered: bool) -> Iterator[Check]:
    if not readable:
        yield Check(False, f"the role {role} may not read it", f'GRANT SELECT ON {sql} TO "{role}"')
        return
    yield Check(True, f"the role {role} may read it")
    if filtered:
        yield Check(
            None,
            f"row-level security holds for {role}: topics say only that it was touched",
            f"watch it ({uri.removeprefix('public.')}.watch), which shows the rows that it may see",
        )


def _ago(seconds: float) -> str:
    if seconds < 120:
        return f"{max(seconds, 0):.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def service_checks(
    reads: bool,
    polls: bool,
    refused: int,
    leads: bool,
    leader: str | None,
    reached: bool | None,
) -> Iterator[Check]:
    """
    Yield the checks of the service that answers the call.

    Args:
        reads: Whether this service reads the log, or follows one that does.
        polls: Whether it polls the log instead of being notified.
        refused: Number of events that the router refused.
        leads: Whether it publishes, and no other service does.
        leader: The process that publishes, if that is known.
        reached: Whether the service's router serves the leader, too; None if that is not known.
    """
    if reads:
        yield Check(True, "the service reads the log, or waits to take over from another one")
    else:
        yield Check(False, "the service does not read the log", "its own log says why not")
    if polls:
        yield Check(
            None,
            "it polls the log, because it is not notified of writes: events are some 20 ms late",
            "ROWCAST_DIRECT_URL, past a transaction pooler; track without --no-wake",
        )
    if refused:
        yield Check(
            False,
            f"the router did not take {refused} of its events",
            "allow the role of the service to publish; its log names the first",
        )
    else:
        yield Check(True, "the router takes its events")
    if leads:
        yield Check(True, "this service leads: its router is the one at which events are published")
    elif reached:
        yield Check(True, f"process {leader} leads, at this router or one that is linked with it")
    elif reached is None:
        yield Check(
            None,
            "another service leads, or none: events are published at the router of the one that leads",
            "let all services have one router; `changes.part` in `stats` says which leads",
        )
    else:
        yield Check(
            False,
            f"process {leader} leads, at another router: no event is published at this one",
            "let all services have one router, or link the routers; or watch, at any service",
        )


class NoTestRow(Exception):
    """The table has no row that could be written as a test; the message says why."""


def try_txn(connection: PgConnection, schema: str, name: str, wait: Wait) -> Check:
    """
    Update a row to its present values, and measure how long it takes until the log was read up to it.

    The triggers fire, but no event is published, because the net change is empty.

    Args:
        connection: In autocommit.
        schema: Schema of the table.
        name: Name of the table.
        wait: Blocks for a number of seconds.

    Raises:
        NoTestRow: The table has no row, or no column, that can be written.
    """
    column = connection.ask(COLUMN, schema=schema, name=name)
    if column is None:
        raise NoTestRow(f"{schema}.{name} has no column that can be written")
    table, set = f"{quoted(schema)}.{quoted(name)}", quoted(column[0])
    row = f"(SELECT ctid FROM {table} LIMIT 1 FOR UPDATE SKIP LOCKED)"
    write = f"UPDATE {table} SET {set} = {set} WHERE ctid = {row} RETURNING {TRANSACTION.string}"
    # Executed without parameters, so psycopg2 takes a percent sign in a name literally.
    with connection.cursor() as cursor:
        cursor.execute(write)
        written = cursor.fetchone()
    if written is None:
        raise NoTestRow(f"{schema}.{name} has no row that could be written")
    for at in range(round(PATIENCE / STEP)):
        found = connection.ask(SEEN, tx=written[0])
        if found is not None and found[0]:
            return Check(True, f"a write was read from the log within {at * STEP:.2f} s")
        wait(STEP)
    return Check(False, f"a write was not read from the log within {PATIENCE:g} s")


class WhyProcedure:
    """
    The procedure `why`.

    Args:
        dispatcher: Knows the database role of a caller, and which relations are served to it.
        database: The database to be checked.
        parts: Returns the checks of the service itself; called with the process that leads, if known.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        database: Database,
        parts: Callable[[str | None], Awaitable[Iterable[Check]]],
    ) -> None:
        self._dispatcher = dispatcher
        self._database = database
        self._parts = parts

    def procedures(self) -> dict[str, Procedure]:
        """Return the procedure by name."""
        return {"why": self._why}

    async def _why(self, caller: Caller, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """
        Answer `why`: the conditions under which the caller receives changes, and whether they hold.

        Raises:
            UnknownName: No relation of that name is served to the caller.
        """
        given = Arguments(args, kwargs, ["relation"], [])
        relation = find_relation(
            self._dispatcher.served_to(caller).catalog, given.required("relation")
        )
        role = self._dispatcher.role_of(caller)
        # With the service's own role: callers have no right on the log.
        with self._database.identity(OWN_IDENTITY):
            checks, leader = await self._database.run(
                _checks_txn,
                relation.schema,
                relation.name,
                role if role != SERVICE else None,
                retry=True,
                timeout=given.timeout(),
            )
        checks += await self._parts(leader)
        return {
            "ok": all(check.ok is not False for check in checks),
            "checks": [check.wire() for check in checks],
        }


def _checks_txn(connection: PgConnection, *args: Any) -> tuple[list[Check], str | None]:
    """Return what `table_checks_txn` does, and the process that leads, if that is known."""
    found = leader_txn(connection)
    return table_checks_txn(connection, *args), None if found is None else found[0]


def find_relation(catalog: Catalog, name: Any) -> Relation:
    """
    Return the relation with a name as used in URIs: "actions", "app.sessions".

    Raises:
        InvalidArgument: The name is not a string.
        UnknownName: There is no such relation; `hint` names the nearest.
    """
    if not isinstance(name, str):
        raise InvalidArgument("a relation is named by a string, as in URIs", path="relation")
    known = {served_name(catalog, each): each for each in catalog.relations.values()}
    found = known.get(name)
    if found is None:
        found = next((r for r in known.values() if f"{r.schema}.{r.name}" == name), None)
    if found is None:
        raise UnknownName("relation", name, known, path="relation")
    return found
