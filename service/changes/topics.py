"""
Changes as events on topics: what is published of which, and for whom.

A topic is `<relation>.changed.<op>.<key>`, so that WAMP's own patterns choose the grain. All
subscribers of one get the same event, so that only those may be among them who may read all of it:
the router's configuration says who, and each event names the roles besides. Of a relation with
row-level security, where that depends on the row, an event says only that something has changed.

The catalog that is served is a little behind the database. A caller's own statement is judged by
PostgreSQL all the same, but what is read from the log is not: it belongs to the service. So rights
are asked anew, after the changes were read and before they are shown, so that a row is never shown
by rights that ended before it was written.

Those are rights on columns as these are called now, and an image has the names that they had: a
column that is called so by now may be another one. So images count only if no column has been
changed since they were written.
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
from service.changes.images import ImageReader, Unreadable, event_packer, image_reader
from service.changes.log import LogRow
from service.changes.net import Change, Image
from service.changes.positions import TickPosition
from service.changes.ticks import Tick
from service.db.connection import PgConnection
from service.db.database import Database
from service.db.introspect_sql import HIDDEN
from service.db.planned import GENERIC, Planned
from service.errors import TooLarge, Unavailable
from service.payload import LEVELS, Audience, Publication, Unsafe, fit
from service.request.names import RESERVED, encode

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


AllRights = Mapping[int, Rights]
"""On relations, by their numbers in the log."""


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


@dataclass(frozen=True, slots=True)
class Heard:
    """
    Of what, and by whom, changes are heard.

    Args:
        relations: By their numbers in the log.
        roles: As `rights_txn` has them.
    """

    relations: Collection[int]
    roles: Collection[str]

    def rights_txn(self, connection: PgConnection, rows: Collection[LogRow]) -> AllRights:
        """Return the rights on those of the relations that rows of the log are of."""
        ids = {row.relation for row in rows}.intersection(self.relations)
        return rights_txn(connection, ids, self.roles) if ids else {}


NOBODY = Heard((), ())
"""Hears nothing."""


log = Logger()

CHANGED, TOUCHED = "changed", "touched"
NO_KEY = "-"
"""Stands for the key where there is none."""
ENVELOPE = 1024
"""Bytes that a message has besides its topic and its event."""
LONGER = 9
"""
Bytes of an event for each character of its rows in the log, at most.

A character takes up to 4 in UTF-8, and "1," of an array of floats 9; a key stands there twice.
"""
CHUNK = 200
"""Events that are made in one piece, between two turns of the reactor."""
PAUSE = 0.1
"""Seconds until the database is asked again that had no time."""


def topic_head(prefix: str, first: str, schema: str, name: str) -> str:
    """
    Return what the topics of a relation begin with, as in "rowcast.actions".

    Args:
        prefix: Of all URIs.
        first: The first served schema, whose relations stand without it.
        schema: Of the relation.
        name: Of the relation.
    """
    bare = schema == first and name not in RESERVED
    return ".".join([prefix, *([] if bare else [encode(schema)]), encode(name)])


def encode_key(values: Iterable[Any]) -> str:
    """Return the values of a key as one component of a URI: never empty, and never "-"."""
    text = ",".join(encode(_text(value)).replace(",", "%2C") for value in values)
    # No component may be empty, and NUL is in no text of PostgreSQL.
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
"""Of arrays and composites."""


@dataclass(frozen=True, slots=True)
class Shown:
    """
    How the changes of a relation are shown to somebody.

    Args:
        schema: Of the relation.
        name: Of the relation.
        key: The columns of its primary key, if all are shown.
        reader: Of its rows; None if nothing may be told but that there was a change.
    """

    schema: str
    name: str
    key: tuple[str, ...]
    reader: ImageReader | None

    def only_touched(self, change: Change) -> bool:
        """Return whether nothing may be told of a change but that there was one."""
        return self.reader is None or change.op == "touch"

    def packer(self, max_bytes: int) -> Callable[[Change, bool], str | None] | None:
        """
        Return what gives changes as `event` does, but as CBOR, a character for each byte.

        It takes a change, and whether it is the last one of its transaction, and returns None for one
        that is more than its rows as they are in the log.

        Args:
            max_bytes: What a change may weigh.

        Returns:
            None if no rows may be shown, or they may have too many levels.
        """
        reader = self.reader
        if reader is None or self._levels > LEVELS - 2:
            return None
        columns = tuple(reader.columns.items())
        make = event_packer(self.schema, self.name, self.key, columns)

        def packer(change: Change, last: bool) -> str | None:
            try:
                found = make(change, last)
            except (KeyError, Unreadable):
                return None
            return found if len(found) + 2 * ENVELOPE <= max_bytes else None

        return packer

    def event(self, change: Change, max_bytes: int) -> dict[str, Any]:
        """
        Return a change as it is published and answered.

        Args:
            change: Of a relation whose rows may be shown.
            max_bytes: What it may weigh; without its rows, and `large`, if it weighs more or if the
                log does not have them exactly.
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
        except (Unreadable, TooLarge, Unsafe):
            event |= {"row": None, "old": None, "large": True}
        return event

    @property
    def _levels(self) -> int:
        return 0 if self.reader is None else self.reader.levels

    def touched(self, change: Change) -> dict[str, Any]:
        """Return that a relation has changed: neither how often nor what."""
        place = change.tick
        # The index would tell how many changes there were.
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
        except Unreadable:
            return None

    def _rows(self, change: Change) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """
        Return the row of a change, and what it was before.

        Raises:
            Unreadable: The log does not have them exactly.
        """
        new = self._row(change.new)
        if new is None or change.old is None or change.new is None:
            return new, self._row(change.old)
        assert self.reader is not None
        return new, self.reader.before(change.old, change.new, new)

    def _row(self, image: Image | None) -> dict[str, Any] | None:
        reader = self.reader
        assert reader is not None
        # At the level `keys` an image is the key alone, and is no row.
        if image is None or (
            len(image) == len(self.key) < len(reader.columns) and set(image) == set(self.key)
        ):
            return None
        return reader.row(image)


@dataclass(frozen=True, slots=True)
class Topic:
    """
    Where the changes of a relation go.

    Args:
        head: What its topics begin with.
        shown: What events tell.
        rights: On the relation.
        audience: Who may read all of its rows, or of one with row-level security any; None if
            nobody may.
    """

    head: str
    shown: Shown
    rights: Rights
    audience: Audience | None


Send = Callable[[Sequence[Publication]], Awaitable[None]]
Wanted = Callable[[Collection[str]], Awaitable[Collection[str]]]


class Topics:
    """
    Publishes changes, in their order.

    Args:
        database: Says who may see what.
        dispatcher: Has the catalog that is served.
        roles: Of callers and of the database.
        prefix: Of all URIs.
        max_bytes: What an event may weigh.
        send: Publishes events; they are published when it is done.
        wanted: Returns those beginnings of topics to which somebody may be subscribed.
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
        self._heard: dict[int, None] = {}

    def heard(self) -> Heard:
        """Return what was subscribed to when it changed last, and the roles whose rights on it count."""
        return Heard(tuple(self._heard), self._roles.names) if self._heard else NOBODY

    async def publish(
        self, changes: Sequence[Change], durable: Awaitable[None], rights: AllRights
    ) -> None:
        """
        Publish changes; done when the router has acknowledged each.

        Changes of relations that nobody is subscribed to are not published.

        Args:
            changes: Of whole transactions.
            durable: What is awaited before any of them is sent.
            rights: On relations of theirs, looked up after the changes were read; others are looked up.
        """
        topics = await self._topics({change.relation for change in changes}, rights)
        touched: set[tuple[int, int]] = set()
        for at in range(0, len(changes), CHUNK):
            some = changes[at : at + CHUNK]
            found = [self._publication(each, topics.get(each.relation), touched) for each in some]
            if not at:
                await durable
            followed = map(self._following, some, found)
            await self._send([each for each in followed if each is not None])

    def _following(self, change: Change, made: Publication | None) -> Publication | None:
        """Return what is published of a change, with the position of the one before it."""
        # Those that are not published count too: a subscriber who should have had one notices.
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
        """Return what is published of a change, less the position of the one before it."""
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
            self._heard.pop(id, None)
        if not asked:
            return {}
        rights = {id: known_rights[id] for id in asked if id in known_rights}
        if len(rights) < len(asked):
            rights = await self._asked(asked)
        if any(behind(self._dispatcher.served.catalog, each) for each in rights.values()):
            await self._dispatcher.refresh()
        catalog = self._catalog = self._dispatcher.served.catalog
        heads = {
            id: topic_head(self._prefix, catalog.schemas[0], each.schema, each.name)
            for id, each in rights.items()
            if (each.schema, each.name) in catalog.relations
        }
        self._heads |= heads
        wanted = await self._wanted(set(heads.values()))
        self._heard |= dict.fromkeys(id for id, head in heads.items() if head in wanted)
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
                # All connections are taken: the changes wait, and so does the one who publishes.
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
            # Whoever has no role of his own has this one.
            return Audience(excluded=tuple(name for name in roles.mapped if name not in eligible))
        return Audience(eligible) if eligible else None


def reset(change: Change) -> Change:
    """Return that a relation is to be read again, in the place of a change."""
    return change._replace(op="reset", key=None, old=None, new=None)


def shown_of(catalog: Catalog, rights: Rights, columns: Mapping[str, int]) -> Shown:
    """
    Return how a relation of a catalog is shown to who may read these columns.

    Args:
        catalog: That has the relation.
        rights: On the relation.
        columns: Names and types.
    """
    relation = catalog.relations[rights.schema, rights.name]
    key = relation.primary_key if columns.keys() >= set(relation.primary_key) else ()
    reader = image_reader(catalog, relation, frozenset(columns.items()))
    return Shown(rights.schema, rights.name, key, None if rights.row_security else reader)


def behind(catalog: Catalog, rights: Rights) -> bool:
    """Return whether the database has more of a relation than the catalog knows, or other types."""
    if rights.schema not in catalog.schemas:
        return False
    relation = catalog.relations.get((rights.schema, rights.name))
    known = {} if relation is None else {name: each.type for name, each in relation.columns.items()}
    return any(each.items() - known.items() for each in rights.columns.values())
