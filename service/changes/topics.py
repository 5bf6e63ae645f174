"""
Changes as events on topics: what is published, and to whom.

A topic is `<relation>.changed.<op>.<key>`, so that subscribers choose the granularity by WAMP's patterns. All
subscribers of a topic receive the same event, so they all have to be allowed to read all of it: the router's
configuration decides who may subscribe, and each event names the eligible roles as well. With row-level
security, rights depend on the row; events of such a relation say only that something has changed, since even
a key reveals that a row exists.

The served catalog lags behind the database. PostgreSQL checks a caller's own statements, but not what the
service reads from the log with its own role. So rights are looked up again after the changes were read and
before they are published: a row is never shown by a right that was revoked before the row was written.

Rights are on columns by their present names, but an image has the names of its time, and another column may
have taken a name since. So an image is used only if no column was changed since it was written.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from json import JSONEncoder
from typing import Any

from twisted.internet.task import deferLater
from twisted.logger import Logger

from service.api.dispatcher import Dispatcher
from service.api.roles import SERVICE, Roles
from service.catalog import Catalog
from service.changes.images import ImageReader, UnconvertibleValue, event_packer, image_reader
from service.changes.log import LogRow, Tick
from service.changes.net import Change, Image
from service.changes.positions import TickPosition
from service.db.connection import PgConnection
from service.db.database import Database
from service.db.introspect_sql import HIDDEN
from service.db.planned import GENERIC, PreparedStatement
from service.errors import TooLarge, Unavailable
from service.payload import LEVELS, Audience, Publication, Unserializable, fit
from service.request.names import RESERVED, encode

RIGHTS = PreparedStatement(
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
    The rights on a tracked relation.

    Args:
        schema: Schema of the relation.
        name: Name of the relation.
        row_security: Whether row-level security is enabled, even if some roles bypass it.
        shaped: Transactions that changed its columns last, by the lower 32 bits of their ids (xmin).
        names: Names of all of its columns, in order.
        columns: For each database role, the types of the columns that it may read, by name, without
            hidden columns. Roles that may read none are missing.
    """

    schema: str
    name: str
    row_security: bool
    shaped: tuple[int, ...]
    names: tuple[str, ...]
    columns: dict[str, Mapping[str, int]]

    def hold_in(self, tick: Tick) -> bool:
        """Return whether the columns have not changed since before a tick, by the tick's snapshots."""
        return all(tick.since.sees(_full_xid(half, tick.snapshot.xmax)) for half in self.shaped)

    def hold_for(self, change: Change) -> bool:
        """
        Return whether the images of a change have the present columns.

        A writer's lock keeps others from altering the table until the writer ends. So DDL that had committed
        before the tick came before all images of the tick, and DDL that had not committed by its end may
        have come after. For DDL within the tick, transaction ids and column names decide. Not detected: a
        column that is dropped and added again at its place with the same name, by a transaction that began
        before that of the image.
        """
        tick = change.tick
        if self.hold_in(tick):
            return True
        for half in self.shaped:
            xid = _full_xid(half, tick.snapshot.xmax)
            if not tick.snapshot.sees(xid) or (not tick.since.sees(xid) and xid > int(change.xid)):
                return False
        images = [image for image in (change.old, change.new) if image is not None]
        return all(tuple(image) == self.names for image in images)


AllRights = Mapping[int, Rights]
"""Rights on relations, by their numbers in the log."""


def _full_xid(xid: int, near: int) -> int:
    """Return the 64-bit id of a transaction from its lower 32 bits, given an id near to it."""
    full = (near >> 32 << 32) + xid
    return full - 2**32 if full > near + 2**31 else full


def rights_txn(
    connection: PgConnection, ids: Collection[int], roles: Collection[str]
) -> dict[int, Rights]:
    """
    Return the rights on tracked relations, by their numbers in the log.

    Relations that were dropped, are hidden, or that no role may read are missing.

    Args:
        connection: Connection with the service's own role.
        ids: Numbers of the relations.
        roles: Database roles; "" stands for the service's own.
    """
    found: dict[int, Rights] = {}
    with connection.cursor() as cursor:
        RIGHTS.run(cursor, {"ids": list(ids), "roles": list(roles)}, GENERIC)
        for id, schema, name, row_security, role, names, types, shaped, every in cursor.fetchall():
            made = Rights(schema, name, row_security, tuple(shaped), tuple(every), {})
            rights = found.setdefault(id, made)
            rights.columns[role] = dict(zip(names, types, strict=True))
    return found


@dataclass(frozen=True, slots=True)
class SubscribedRelations:
    """
    The relations that are likely to have subscribers, for which the feed looks up rights in advance.

    Args:
        relations: Numbers of the relations in the log.
        roles: Database roles, as `rights_txn` takes them.
    """

    relations: Collection[int]
    roles: Collection[str]

    def rights_txn(self, connection: PgConnection, rows: Collection[LogRow]) -> AllRights:
        """Return the rights on those of these relations that log rows belong to."""
        ids = {row.relation for row in rows}.intersection(self.relations)
        return rights_txn(connection, ids, self.roles) if ids else {}


NO_SUBSCRIBERS = SubscribedRelations((), ())
"""For a feed without topics: no rights are looked up in advance."""


log = Logger()

CHANGED, TOUCHED = "changed", "touched"
NO_KEY = "-"
"""Stands for the key in a topic if a change has none."""
ENVELOPE = 1024
"""Allowance in bytes for a message besides its topic and event."""
LONGER = 9
"""
Maximum number of bytes of an event per character of its rows in the log.

A character takes up to 4 bytes in UTF-8, "1," in an array of floats 9; the key is in the event twice.
"""
CHUNK = 200
"""Number of events that are made without returning to the reactor."""
PAUSE = 0.1
"""Seconds until rights are looked up again when no connection was free."""


def topic_head(prefix: str, first: str, schema: str, name: str) -> str:
    """
    Return the beginning of a relation's topics, such as "rowcast.actions".

    Args:
        prefix: Prefix of all URIs.
        first: The first served schema, which is omitted in URIs.
        schema: Schema of the relation.
        name: Name of the relation.
    """
    bare = schema == first and name not in RESERVED
    return ".".join([prefix, *([] if bare else [encode(schema)]), encode(name)])


def encode_key(values: Iterable[Any]) -> str:
    """Return the values of a key as one component of a URI: never empty, and never "-" (`NO_KEY`)."""
    text = ",".join(encode(_text(value)).replace(",", "%2C") for value in values)
    # WAMP allows no empty component. "%00" is unambiguous, as PostgreSQL's texts contain no NUL.
    return {"": "%00", NO_KEY: "%2D"}.get(text, text)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return value if isinstance(value, str) else _JSON.encode(value)


_JSON = JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_text)
"""Encodes arrays and composites in keys."""


@dataclass(frozen=True, slots=True)
class Shown:
    """
    How the changes of a relation are shown to certain roles.

    Args:
        schema: Schema of the relation.
        name: Name of the relation.
        key: Columns of its primary key; empty if one of them may not be read.
        reader: Reader of its images; None if only the fact of a change may be shown.
    """

    schema: str
    name: str
    key: tuple[str, ...]
    reader: ImageReader | None

    def only_touched(self, change: Change) -> bool:
        """Return whether only the fact of a change may be shown."""
        return self.reader is None or change.op == "touch"

    def packer(self, max_bytes: int) -> Callable[[Change, bool], str | None] | None:
        """
        Return a function that encodes changes as `event` does, but as CBOR (one character per byte).

        The function takes a change, and whether it is the last one of its transaction. It returns None for
        a change that has to be made by `event`: its images are not complete, or it is too large.

        Args:
            max_bytes: Maximum size of an event in bytes.

        Returns:
            The function; None if no rows may be shown, or values may be nested too deep for a message.
        """
        reader = self.reader
        if reader is None or self._levels > LEVELS - 2:
            return None
        columns = tuple(reader.columns.items())
        make = event_packer(self.schema, self.name, self.key, columns)

        def packer(change: Change, last: bool) -> str | None:
            try:
                found = make(change, last)
            except (KeyError, UnconvertibleValue):
                return None
            return found if len(found) + 2 * ENVELOPE <= max_bytes else None

        return packer

    def event(self, change: Change, max_bytes: int) -> dict[str, Any]:
        """
        Return the event of a change, as it is published and as `changes` answers it.

        Args:
            change: The change, of a relation whose rows may be shown.
            max_bytes: Maximum size in bytes. If the event is larger, or the log does not have the exact
                values, it has no rows and is marked `large`.
        """
        event = {
            "op": change.op,
            "schema": self.schema,
            "relation": self.name,
            "key": self._key(change),
            "row": None,
            "old": None,
            "position": f"{change.tick.epoch}.{change.tick.number}.{change.place}",
            "tx": change.xid,
            "last": change.last,
            "at": change.at,
        }
        try:
            event["row"], event["old"] = self._rows(change)
            most = ENVELOPE + LONGER * change.size
            if most > max_bytes or self._levels > LEVELS - 2:
                fit(event, max_bytes - ENVELOPE)
        except (UnconvertibleValue, TooLarge, Unserializable):
            event |= {"row": None, "old": None, "large": True}
        return event

    @property
    def _levels(self) -> int:
        return 0 if self.reader is None else self.reader.levels

    def touched(self, change: Change) -> dict[str, Any]:
        """Return the event that a relation has changed, which reveals neither what nor how often."""
        place = change.tick
        # Index 0, because the index of the change would reveal how many changes came before it.
        return {
            "relation": self.name,
            "position": str(TickPosition(place.epoch, place.number, 0)),
        }

    def _key(self, change: Change) -> dict[str, Any] | None:
        assert self.reader is not None
        if change.key is None or not self.key or len(change.key) != len(self.key):
            return None
        try:
            return {
                name: self.reader.value(name, value)
                for name, value in zip(self.key, change.key, strict=True)
            }
        except UnconvertibleValue:
            return None

    def _rows(self, change: Change) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """
        Return the row of a change, and the values that it had before.

        Raises:
            UnconvertibleValue: The log does not have the exact values.
        """
        new = self._row(change.new)
        if new is None or change.old is None or change.new is None:
            return new, self._row(change.old)
        assert self.reader is not None
        return new, self.reader.before(change.old, change.new, new)

    def _row(self, image: Image | None) -> dict[str, Any] | None:
        reader = self.reader
        assert reader is not None
        # At the level `keys` an image has the key columns only, and is not a row.
        if image is None or (
            len(image) == len(self.key) < len(reader.columns) and set(image) == set(self.key)
        ):
            return None
        return reader.row(image)


@dataclass(frozen=True, slots=True)
class Topic:
    """
    The topics of a relation.

    Args:
        head: Beginning of the topics' URIs.
        shown: How changes are shown in events.
        rights: Rights on the relation.
        audience: Roles that may read all that events show; None if there are none.
    """

    head: str
    shown: Shown
    rights: Rights
    audience: Audience | None


Send = Callable[[Sequence[Publication]], Awaitable[None]]
Wanted = Callable[[Collection[str]], Awaitable[Collection[str]]]


class Topics:
    """
    Publishes changes, in order.

    Args:
        database: Looks up rights.
        dispatcher: Knows the served catalog.
        roles: Mapping of authroles to database roles.
        prefix: Prefix of all URIs.
        max_bytes: Maximum size of an event in bytes.
        send: Publishes events; returns when they are acknowledged.
        wanted: Returns those beginnings of topics that may have subscribers.
    """

    def __init__(
        self,
        database: Database,
        dispatcher: Dispatcher,
        roles: Roles,
        prefix: str,
        max_bytes: int,
        send: Send,
        wanted: Wanted,
    ) -> None:
        self._database = database
        self._dispatcher = dispatcher
        self._roles = roles
        self._prefix = prefix
        self._max_bytes = max_bytes
        self._send = send
        self._wanted = wanted
        self._catalog: Catalog | None = None
        self._heads: dict[int, str] = {}
        self._last: dict[int, str] = {}
        self._subscribed_lately: dict[int, None] = {}

    def subscribed(self) -> SubscribedRelations:
        """Return the relations that had subscribers when they changed last, and the roles to be checked."""
        return SubscribedRelations(tuple(self._subscribed_lately), self._roles.names)

    async def publish(
        self, changes: Sequence[Change], durable: Awaitable[None], rights: AllRights
    ) -> None:
        """
        Publish changes; return when the router has acknowledged all events.

        Changes of relations without subscribers are not published.

        Args:
            changes: Changes of complete transactions.
            durable: Awaited before any event is sent.
            rights: Rights on some of the relations, looked up after the changes were read. If one is
                missing, all are looked up.
        """
        topics = await self._topics({change.relation for change in changes}, rights)
        touched: set[tuple[int, int]] = set()
        for at in range(0, len(changes), CHUNK):
            some = changes[at : at + CHUNK]
            # The first events are made while the commit of their tick waits for the disk.
            found = [self._publication(each, topics.get(each.relation), touched) for each in some]
            if not at:
                await durable
            followed = map(self._following, some, found)
            await self._send([each for each in followed if each is not None])

    def _following(self, change: Change, made: Publication | None) -> Publication | None:
        """Return the event of a change, with the position of the relation's change before it (`prev`)."""
        # Changes that are not published count too, so that a subscriber who missed one notices.
        prev, self._last[change.relation] = self._last.get(change.relation), str(change.position)
        if made is None or "prev" not in made.event:
            return made
        return replace(made, event={**made.event, "prev": prev})

    def _publication(
        self,
        change: Change,
        topic: Topic | None,
        touched: set[tuple[int, int]],
    ) -> Publication | None:
        """Return the event of a change, without `prev`; None if none is published."""
        if topic is None or topic.audience is None:
            return None
        tick = change.relation, change.tick.number
        if tick in touched:
            return None
        if topic.shown.only_touched(change):
            touched.add(tick)
            event = topic.shown.touched(change)
            return Publication(f"{topic.head}.{TOUCHED}", event, topic.audience)
        if not topic.rights.hold_for(change):
            touched.add(tick)
            change = reset(change)
        event = topic.shown.event(change, self._max_bytes)
        key = NO_KEY if event["key"] is None else encode_key(event["key"].values())
        uri = f"{topic.head}.{CHANGED}.{change.op}.{key}"
        return Publication(uri, {**event, "prev": None}, topic.audience)

    async def _topics(self, ids: set[int], known_rights: AllRights) -> dict[int, Topic]:
        """Return the topics of relations that may have subscribers."""
        while not self._dispatcher.ready:  # the catalog is being read for the first time
            await deferLater(self._database.reactor, PAUSE)
        if self._catalog is not self._dispatcher.served.catalog:
            # Relations may have other names now.
            self._heads.clear()
        known = {id: self._heads[id] for id in ids if id in self._heads}
        wanted = await self._wanted(set(known.values()))
        asked = {id for id in ids if id not in known or known[id] in wanted}
        for id in ids - asked:
            self._subscribed_lately.pop(id, None)
        if not asked:
            return {}
        rights = {id: known_rights[id] for id in asked if id in known_rights}
        if len(rights) < len(asked):
            rights = await self._asked(asked)
        # Without the catalog's relations and columns, events would be left out.
        while any(
            is_catalog_behind(self._dispatcher.served.catalog, each) for each in rights.values()
        ):
            if await self._dispatcher.refresh():
                break
            log.warn("events wait: the catalog is older than the changes, and cannot be read now")
            await deferLater(self._database.reactor, PAUSE)
        catalog = self._catalog = self._dispatcher.served.catalog
        heads = {
            id: topic_head(self._prefix, catalog.schemas[0], each.schema, each.name)
            for id, each in rights.items()
            if (each.schema, each.name) in catalog.relations
        }
        self._heads |= heads
        wanted = await self._wanted(set(heads.values()))
        self._subscribed_lately |= dict.fromkeys(id for id, head in heads.items() if head in wanted)
        return {
            id: self._topic(catalog, head, rights[id])
            for id, head in heads.items()
            if head in wanted
        }

    async def _asked(self, ids: set[int]) -> dict[int, Rights]:
        while True:
            try:
                found: dict[int, Rights] = await self._database.run(
                    rights_txn, ids, self._roles.names, retry=True
                )
                return found
            except Unavailable as error:
                # No connection is free. The changes wait, since they must not be published unchecked.
                log.warn("events wait: {error}", error=error.message)
                await deferLater(self._database.reactor, PAUSE)

    def _topic(self, catalog: Catalog, head: str, rights: Rights) -> Topic:
        every = {name: type for each in rights.columns.values() for name, type in each.items()}
        shown = shown_of(catalog, rights, every)
        some = shown.reader is None

        def may(role: str) -> bool:
            return role in rights.columns and (some or rights.columns[role] == every)

        return Topic(head, shown, rights, self._audience(may))

    def _audience(self, may: Callable[[str], bool]) -> Audience | None:
        roles = self._roles
        if roles.names == (SERVICE,):
            return Audience() if may(SERVICE) else None
        eligible = tuple(name for name, role in roles.mapped.items() if may(role))
        if roles.anonymous is not None and may(roles.anonymous):
            # A caller whose authrole is not mapped has this role, so only the other roles are excluded.
            return Audience(excluded=tuple(name for name in roles.mapped if name not in eligible))
        return Audience(eligible) if eligible else None


def reset(change: Change) -> Change:
    """Return a reset in place of a change: the relation has to be read again."""
    return change._replace(op="reset", key=None, old=None, new=None)


def shown_of(catalog: Catalog, rights: Rights, columns: Mapping[str, int]) -> Shown:
    """
    Return how the changes of a relation are shown to roles that may read certain columns.

    Args:
        catalog: Catalog that has the relation.
        rights: Rights on the relation.
        columns: Types of the columns that the roles may read, by name.
    """
    relation = catalog.relations[rights.schema, rights.name]
    key = relation.primary_key if columns.keys() >= set(relation.primary_key) else ()
    reader = image_reader(catalog, relation, frozenset(columns.items()))
    return Shown(rights.schema, rights.name, key, None if rights.row_security else reader)


def is_catalog_behind(catalog: Catalog, rights: Rights) -> bool:
    """Return whether the catalog lacks columns that the database has, or has other types for them."""
    if rights.schema not in catalog.schemas:
        return False
    relation = catalog.relations.get((rights.schema, rights.name))
    known = {} if relation is None else {name: each.type for name, each in relation.columns.items()}
    return any(each.items() - known.items() for each in rights.columns.values())
