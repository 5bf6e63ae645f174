"""
Live queries and calls of Rowcast over autobahn sessions, with Twisted or asyncio.

    component = Component(transports="ws://127.0.0.1:8080/ws", realm="realm1")
    db = Rowcast(component)
    open_actions = db.live("actions", where={"status": False}, order=["id"])
    open_actions.subscribe(lambda rows, change: draw(rows))
    run([component])
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import struct
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary
from zlib import crc32

import txaio as _txaio
from autobahn.exception import Disconnected
from autobahn.wamp.exception import ApplicationError, Error, TransportLost
from autobahn.wamp.types import CallOptions

log = logging.getLogger("rowcast")

txaio: Any = _txaio
"""Abstraction of Twisted and asyncio; its functions exist only after autobahn has chosen one of them."""

PAUSES = (0.1, 5.0)
"""Seconds until a live query is started again: the first time, and at most."""

SILENCE = 40.0
"""Seconds without a message after which a connection is aborted; the service sends `alive` every 15 s."""

PATIENCE = 30.0
"""Timeout of a call in seconds; also how long an effect is shown at most after its write was answered."""

LOST, LATE = "rowcast.client.lost", "rowcast.client.timeout"
"""Error URIs of the kit: the session was lost; there was no answer in time."""

AGAIN = (
    "canceled",
    "timeout",
    "unavailable",
    "position_gone",
    "lost",
    "internal",
    "outcome_unknown",
)
"""Last components of error URIs after which a live query is started again."""

ABSENT = "no callee registered"
"""Beginning of the router's error message when no service is joined."""

CLOSING = Disconnected, TransportLost
"""Errors of a session that is closing; the call was not sent."""

Row = Any
Rows = dict[Any, Row]
"""Rows by name: the canonical text of the key; without a key, of the row, with a number for equal rows."""

Step = list[tuple["Live", Mapping[str, Any]]]

STEPS: WeakKeyDictionary[Any, dict[str, Step]] = WeakKeyDictionary()
"""
For each session and prefix, the messages of the step that is not complete yet.

Kits on the same session share it, because a single message, of any watch of the session, completes a step.
"""

Effect = Callable[[Rows], Any]
Listener = Callable[[list[Row], "Change | None"], Any]
Later = Callable[[float, Callable[[], Any]], Any]


class Mismatch(Exception):
    """The rows of a live query differ from the service's."""


@dataclass(frozen=True)
class Change:
    """
    A change of a query's rows.

    Args:
        enter: New rows.
        update: Changed rows.
        leave: Rows that are gone, as they were last.
        reset: Whether all rows were sent again.
    """

    enter: list[Row] = field(default_factory=list)
    update: list[Row] = field(default_factory=list)
    leave: list[Row] = field(default_factory=list)
    reset: bool = False


class Entry(NamedTuple):
    """
    A row of a live query.

    Args:
        row: The row as received.
        check: Its part of the checksum.
    """

    row: Row
    check: int


def canonical(value: Any) -> str:
    """Return the canonical text of a value, from which the service computes its checksums, too."""
    return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Mapping):
        names = sorted(value, key=lambda name: name.encode("utf-16-be", "surrogatepass"))
        return {name: _plain(value[name]) for name in names}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        return "\0" + b64encode(value).decode()
    if -(2**53) < value < 2**53 and value == int(value):
        return int(value)
    return struct.pack(">d", value).hex()


class Copy:
    """
    The rows of a query, built from the messages of `watch`.

    Args:
        query: The arguments of `watch`.

    Attributes:
        entries: The rows in order, by name.
        position: Position of the rows; None before the first.
        staged: Rows of a snapshot that is not complete yet; None if there is none.
    """

    def __init__(self, query: Mapping[str, Any]) -> None:
        self.ordered = bool(query.get("order"))
        self._grouped = not query.keys().isdisjoint(("measures", "group", "having"))
        self.entries: dict[Any, Entry] = {}
        self.position: str | None = None
        self._columns: Sequence[str] | None = None
        self.staged: dict[Any, Entry] | None = None

    def take(self, message: Mapping[str, Any]) -> Change | None:
        """
        Apply a message; return the change, or None if there is none yet.

        Raises:
            Mismatch: The rows differ from the service's.
        """
        change = None
        if message["type"] == "snapshot":
            change = self._snapshot(message)
        elif message["type"] == "delta":
            change = self._delta(message)
        if self.staged is None:
            # `alive` has no position while the service still has to read the first rows.
            self.position = message.get("position", self.position)
            if message.get("checksum", self.checksum) != self.checksum:
                raise Mismatch(f"not the rows of {self.position}")
        return change

    def cut(self) -> None:
        """Drop an incomplete snapshot, whose remaining messages will not arrive."""
        self.staged = None

    @property
    def checksum(self) -> int:
        """The checksum of the rows, which has to equal the service's."""
        checks = (each.check for each in self.entries.values())
        return sum(at * each if self.ordered else each for at, each in enumerate(checks, 1)) % 2**32

    @property
    def rows(self) -> Rows:
        """The rows by name, in a new dict."""
        return {name: entry.row for name, entry in self.entries.items()}

    def _key(self, row: Row) -> Any:
        assert self._columns is not None
        if self._grouped:
            return {name: row[name] for name in self._columns}
        values = [row[name] for name in self._columns]
        return values[0] if len(values) == 1 else values

    def name(self, row: Row) -> Any:
        """Return the name of a row; an object of its own if the row does not have its key."""
        if self._columns is None or not all(name in row for name in self._columns):
            return object()
        return canonical(self._key(row))

    def _put(self, entries: dict[Any, Entry], row: Row, keys: Sequence[Any] | None, at: int) -> Any:
        """Add a row to entries, or replace the row with its key; return its name."""
        if keys is None and self._columns is None:
            # Without a key, equal rows are kept as often as they are received.
            text = canonical(row)
            name = next(each for each in _names(text) if each not in entries)
            entries[name] = Entry(row, crc32(f"[null,{text}]".encode()))
            return name
        name = canonical(self._key(row) if keys is None else keys[at])
        check = crc32(f"[{name},{canonical(row)}]".encode())
        entries[name] = Entry(row, check)
        return name

    def _snapshot(self, message: Mapping[str, Any]) -> Change | None:
        if self.staged is None:
            # Set from the first message, even if that has no key: the query may have lost its key.
            self.staged, self._columns = {}, message.get("key")
        staged = self.staged
        for at, row in enumerate(message["rows"]):
            self._put(staged, row, message.get("keys"), at)
        if not message.get("complete"):
            return None
        old, self.entries, self.staged = self.entries, staged, None
        return Change(
            [each.row for name, each in staged.items() if name not in old],
            [
                each.row
                for name, each in staged.items()
                if name in old and old[name].check != each.check
            ],
            [each.row for name, each in old.items() if name not in staged],
            True,
        )

    def _delta(self, message: Mapping[str, Any]) -> Change:
        change, placed = Change(), {}
        keys, after = message.get("keys"), message.get("after")
        for key in message["leave"]:
            name = _last(self.entries, canonical(key))
            if name in self.entries:  # after `since`, keys may leave that were never here
                change.leave.append(self.entries.pop(name).row)
        for kind, changed in (("update", change.update), ("enter", change.enter)):
            beside = None if keys is None else keys[kind]
            own = beside is None and self._columns is None
            for at, row in enumerate(message[kind]):
                # A row without a key that is "updated" has only moved.
                moved = own and kind == "update"
                name = canonical(row) if moved else self._put(self.entries, row, beside, at)
                changed.append(row)
                before = after[kind][at] if after else False
                if before is not False:
                    placed[None if before is None else canonical(before)] = name
        if placed:
            self._place(placed)
        return change

    def _place(self, placed: Mapping[Any, Any]) -> None:
        """Move rows behind the rows that precede them now."""
        moved, entries = set(placed.values()), {}

        def follow(name: Any) -> None:
            while (following := placed.get(name)) is not None:
                name = following
                entries[name] = self.entries[name]

        follow(None)
        for name, entry in self.entries.items():
            if name not in moved:
                entries[name] = entry
                follow(name)
        self.entries = entries | {name: self.entries[name] for name in moved - entries.keys()}


def _names(text: str) -> Iterable[Any]:
    """Yield the names of equal rows: of the first, the second and so on."""
    yield text
    copy = 2
    while True:
        yield text, copy
        copy += 1


def _known(values: Mapping[str, Any], row: Row) -> Row:
    """
    Return the values that need not be computed, of the columns of a row.

    Args:
        values: Values of a create or an update; `{"$add": 1}` is computed.
        row: A row of the query; None if there is none, so that its columns are not known.
    """
    return {
        name: value
        for name, value in values.items()
        if (row is None or name in row)
        and not (isinstance(value, Mapping) and str(next(iter(value), "")).startswith("$"))
    }


def _whole(message: Mapping[str, Any]) -> bool:
    """Return whether a message is the last of its live query in a step."""
    return message["type"] != "snapshot" or bool(message.get("complete"))


def _last(entries: Mapping[Any, Entry], text: str) -> Any:
    """Return the name of the last of several equal rows."""
    found: Any = text
    for name in _names(text):
        if name not in entries:
            return found
        found = name


class _Writing:
    """An optimistic effect, shown until the rows include its write, or the write has failed."""

    def __init__(self, effect: Effect) -> None:
        self.effect = effect
        self.tx: str | None = None
        self.timer: Any = None


class Live:
    """
    A live query.

    Args:
        db: The kit that it belongs to.
        name: Name of a relation, or of a function: "fn.name".
        query: The arguments of `watch`.

    Attributes:
        error: Why it has ended; None if it has not.
        closed: Whether it was closed.
        mismatches: How often its rows differed from the service's, and were requested again.
        heard: Time of its last message.
    """

    def __init__(self, db: Rowcast, name: str, query: Mapping[str, Any]) -> None:
        self.name = name
        self.query = query
        self.error: Exception | None = None
        self.closed = False
        self.mismatches = 0
        self.heard = 0.0
        self._db = db
        self._copy = Copy(query)
        self._listeners: dict[object, Listener] = {}
        self._writing: list[_Writing] = []
        self._covered: dict[str, None] = {}
        self._call: Any = None
        self._retry: Any = None
        self._failures = 0
        self._waiting: list[Any] = []

    @property
    def rows(self) -> list[Row]:
        """The rows after the last step, with the effects of writes in progress."""
        rows = self._copy.rows
        for each in self._writing:
            _guarded(each.effect, rows)
        return list(rows.values())

    @property
    def position(self) -> str | None:
        """The position of the rows; None before the first."""
        return self._copy.position

    def ready(self) -> Awaitable[list[Row]]:
        """Wait for the first rows, and return them; fails if the query has ended."""
        future = txaio.create_future()
        if self.error is not None:
            txaio.reject(future, self.error)
        elif self.position is not None:
            txaio.resolve(future, self.rows)
        elif self.closed:
            txaio.reject(future, _closed())
        else:
            self._waiting.append(future)
        return future

    def subscribe(self, changed: Listener) -> Callable[[], None]:
        """Call a function with the rows, now and after each change; return a function that ends that."""
        token = object()
        self._listeners[token] = changed
        if self.position is not None:
            _guarded(changed, self.rows, None)
        return lambda: self._listeners.pop(token, None) and None

    def close(self) -> None:
        """End the live query."""
        self.closed = True
        self._end()
        self._settle(_closed())
        self._db.drop(self)

    def write(
        self, verb: str, *args: Any, effect: Effect = lambda rows: None, **kwargs: Any
    ) -> Awaitable[Any]:
        """
        Call a verb that writes, and show its effect at once.

        The effect is removed when the rows include the write, or the write has failed.

        Args:
            verb: Verb of the relation.
            args: Positional arguments of the call.
            effect: Modifies a dict of the rows by the canonical text of their keys.
            kwargs: Keyword arguments of the call.
        """
        mine = _Writing(effect)
        self._writing.append(mine)
        self._tell(None)
        return _started(self._write(verb, args, kwargs, mine))

    def create(
        self, values: Mapping[str, Any] | Sequence[Mapping[str, Any]], **kwargs: Any
    ) -> Awaitable[Any]:
        """Create a row or several, and show them at once, behind the others."""

        def effect(rows: Rows) -> None:
            like = next(iter(rows.values()), None)
            for each in [values] if isinstance(values, Mapping) else values:
                # The change may arrive before the answer: a row with this key is the new row itself.
                rows.setdefault(self._copy.name(each), _known(each, like))

        return self.write("create", values, effect=effect, **kwargs)

    def update(self, key: Any, changes: Mapping[str, Any], **kwargs: Any) -> Awaitable[Any]:
        """Update the row with a key, and show the changes at once."""

        def effect(rows: Rows) -> None:
            name = canonical(key)  # here, since a key that cannot be sent fails the call
            if name in rows:
                rows[name] = {**rows[name], **_known(changes, rows[name])}

        return self.write("update", key, changes, effect=effect, **kwargs)

    def delete(self, key: Any, **kwargs: Any) -> Awaitable[Any]:
        """Delete the row with a key, and hide it at once."""
        return self.write(
            "delete", key, effect=lambda rows: rows.pop(canonical(key), None), **kwargs
        )

    async def _write(
        self, verb: str, args: Sequence[Any], kwargs: Mapping[str, Any], mine: _Writing
    ) -> Any:
        try:
            done = await self._db.call(f"{self.name}.{verb}", *args, **kwargs, receipt=True)
        except BaseException:
            self._drop(mine)
            raise
        mine.tx = done.kwresults["tx"]
        if mine.tx is None or mine.tx in self._covered:
            self._drop(mine)
        else:
            mine.timer = self._db.later(PATIENCE, lambda: self._drop(mine))
        return done.results[0]

    def _drop(self, mine: _Writing) -> None:
        mine.timer = _cancelled(mine.timer)
        if mine in self._writing:
            self._writing.remove(mine)
            self._tell(None)

    def start(self) -> None:
        """Start to watch, if there is a session and the query is not watched yet."""
        session = self._db.session
        if session is None or self._call is not None or self.closed or self.error is not None:
            return
        self._retry = _cancelled(self._retry)
        since = {} if self.position is None else {"since": self.position}
        self.heard = self._db.now()
        token = self._call = _Call()

        def take(message: Any) -> None:
            self.heard = self._db.now()
            if self._call is token:
                self._db.take(self, message)
            elif message.get("step"):
                self._db.flush()

        def ended(_: Any) -> None:
            if self._call is token:
                self._failed(None)

        def failed(why: Any) -> None:
            if self._call is token:
                self._failed(why.value)

        try:
            token.answer = session.call(
                self._db.uri(f"{self.name}.watch"),
                **self.query,
                **since,
                tx=True,
                options=CallOptions(on_progress=take),
            )
            txaio.add_callbacks(token.answer, ended, failed)
        except Exception as error:
            self._unsent(error)

    @property
    def watching(self) -> bool:
        """Whether its call of `watch` is in progress."""
        return self._call is not None

    def cut(self) -> None:
        """Forget the call: the session is gone, and may never answer it."""
        self._call = None
        self._copy.cut()

    def apply(self, message: Mapping[str, Any]) -> Callable[[], None]:
        """Apply a message of a step that is complete; return a function that notifies the listeners."""
        try:
            change = self._copy.take(message)
        except Exception as error:
            # Whatever the error is, the rows may be wrong: request all of them again.
            log.warning("%s is asked for anew: %r", self.name, error)
            self.mismatches += 1
            self._end()
            self._copy.position = None
            self._again()
            return lambda: None
        if self._copy.staged is None:
            self._failures = 0
        self._covered.update(dict.fromkeys(message.get("covers", ())))
        while len(self._covered) > 1000:
            del self._covered[next(iter(self._covered))]
        covered = [each for each in self._writing if each.tx in self._covered]

        def tell() -> None:
            for each in covered:
                self._drop(each)
            if change is not None:
                self._tell(change)
                self._settle(None)

        return tell

    def _tell(self, change: Change | None) -> None:
        if self.position is not None:
            for each in list(self._listeners.values()):
                _guarded(each, self.rows, change)

    def _settle(self, error: Exception | None) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if txaio.is_called(each):  # it was cancelled
                continue
            txaio.resolve(each, self.rows) if error is None else txaio.reject(each, error)

    def _failed(self, error: BaseException | None) -> None:
        self.cut()
        self._db.settle()
        uri: str = LOST
        args: Sequence[Any] = ()
        kwargs: Mapping[str, Any] = {}
        if isinstance(error, ApplicationError):
            uri, args, kwargs = error.error, error.args, error.kwargs
        if uri.endswith("position_gone"):
            self._copy.position = None
        absent = bool(args) and str(args[0]).startswith(ABSENT)
        if not absent and not kwargs.get("retry") and uri.rpartition(".")[2] not in AGAIN:
            assert isinstance(error, ApplicationError)
            self._refused(error)
            return
        self._again(float(kwargs.get("retry_after") or 0))

    def _unsent(self, error: Exception) -> None:
        """Handle a call that could not be sent: retry if the session is closing, end with other errors."""
        self._failed(None) if isinstance(error, CLOSING) else self._refused(error)

    def _refused(self, error: Exception) -> None:
        """End the live query with an error."""
        self.cut()
        self.error = error
        self._settle(error)
        log.error("%s is not watched any more: %s", self.name, error)

    def _again(self, least: float = 0) -> None:
        """Start again after a pause, which grows until a message could be applied."""
        seconds = max(least, min(PAUSES[1], PAUSES[0] * 2**self._failures))
        self._failures += 1
        _cancelled(self._retry)
        # Jitter, so that the watches of a service that was lost do not all start at the same time.
        self._retry = self._db.later(seconds * random.uniform(0.5, 1.5), self.start)

    def _end(self) -> None:
        self._retry = _cancelled(self._retry)
        call = self._call
        self.cut()
        if call is not None and call.answer is not None:
            _guarded(txaio.cancel, call.answer)


class _Call:
    """A call of `watch`, which also identifies its messages; `answer` is None until it was sent."""

    answer: Any = None


class Rowcast:
    """
    Live queries and calls that survive the loss of a session.

    Args:
        component: autobahn Component that opens the sessions. Without one, call `joined` and `left`.
        prefix: Prefix of the service's URIs.
        later: Calls a function after some seconds; by default a timer of Twisted or asyncio.
        now: Returns a time in seconds.
        silence: Seconds after which a connection is aborted that has not joined, or on which a live query
            has received nothing.
    """

    def __init__(
        self,
        component: Any = None,
        prefix: str = "rowcast",
        later: Later | None = None,
        now: Callable[[], float] = time.monotonic,
        silence: float = SILENCE,
    ) -> None:
        self.session: Any = None
        self.closed = False
        self.now = now
        self.later: Later = later or _later
        self._prefix = prefix
        self._live: dict[Live, None] = {}
        self._calls: dict[_Pending, None] = {}
        self._step: Step = []
        self._silence = silence
        self._joining: dict[Any, float] = {}
        self._watchdog: Any = None
        if component is not None:
            component.on("connect", self._connected)
            component.on("join", self.joined)
            component.on("leave", self.left)
            component.on("disconnect", self.left)

    def uri(self, name: str) -> str:
        """Return the URI of a procedure."""
        return name if name.startswith(f"{self._prefix}.") else f"{self._prefix}.{name}"

    def live(self, name: str, **query: Any) -> Live:
        """Watch a relation, or the rows of a function ("fn.name"), with the arguments of `find`."""
        live = Live(self, name, query)
        self._live[live] = None
        live.close() if self.closed else live.start()
        return live

    def call(
        self, name: str, *args: Any, patience: float = PATIENCE, **kwargs: Any
    ) -> Awaitable[Any]:
        """
        Call a procedure, with a timeout; fail if the session is lost.

        Without a session the call waits for the next one.

        Args:
            name: Name of the procedure.
            args: Positional arguments.
            patience: Timeout in seconds, including the wait for a session.
            kwargs: Keyword arguments.

        Raises:
            ApplicationError: The error of the call; or `rowcast.client.lost` or `rowcast.client.timeout`,
                after which it is not known whether the call had an effect.
        """
        pending = _Pending(self.uri(name), args, kwargs)
        self._calls[pending] = None

        def late() -> None:
            pending.fail(LATE, f"no answer within {patience:g} s")
            # After `fail`, because cancelling ends the call at once with another error.
            if pending.answer is not None:
                _guarded(txaio.cancel, pending.answer)

        timer = self.later(patience, late)

        def ended() -> None:
            _cancelled(timer)
            self._calls.pop(pending, None)

        pending.ended = ended
        if self.closed:
            pending.fail(LOST, "closed")
        elif self.session is not None:
            pending.start(self.session)
        return pending.future

    def joined(self, session: Any, details: Any = None) -> None:
        """Continue with a new session."""
        self._joining.pop(session, None)
        if self.closed:
            return
        self.session = session
        self._step = STEPS.setdefault(session, {}).setdefault(self._prefix, [])
        for pending in list(self._calls):
            if pending.answer is None:
                pending.start(session)
        for live in list(self._live):
            live.start()
        self._look()

    def left(self, session: Any = None, details: Any = None, was_clean: bool = False) -> None:
        """End the calls of a session that is gone; autobahn may never end them."""
        self._joining.pop(session, None)
        if self.session is None or (session is not None and session is not self.session):
            return
        self.session = None
        for pending in list(self._calls):
            if pending.answer is not None:
                pending.fail(LOST, "the session is gone")
        self.flush()
        for live in list(self._live):
            live.cut()

    def close(self) -> None:
        """End all live queries and calls; the session stays open."""
        self.closed = True
        self._watchdog = _cancelled(self._watchdog)
        for live in list(self._live):
            live.close()
        for pending in list(self._calls):
            pending.fail(LOST, "closed")
        self.session = None

    def drop(self, live: Live) -> None:
        """Forget a live query."""
        self._live.pop(live, None)
        self.settle()

    def take(self, live: Live, message: Mapping[str, Any]) -> None:
        """Keep a message until its step is complete, so that all live queries change together."""
        # A second message of a live query belongs to the next step.
        if any(other is live and _whole(before) for other, before in self._step):
            self.flush()
        self._step.append((live, message))
        if message.get("step") or (message["type"] == "alive" and len(self._step) == 1):
            self.flush()

    def settle(self) -> None:
        """Apply the kept messages, whose last may be lost with a call; not if another kit waits for it."""
        if all(live in self._live or live.closed for live, _ in self._step):
            self.flush()

    def flush(self) -> None:
        """Apply the kept messages, then notify the listeners."""
        step = self._step[:]
        self._step.clear()
        told = [live.apply(message) for live, message in step if not live.closed]
        for tell in told:
            tell()

    def _connected(self, session: Any, transport: Any) -> None:
        """Watch a connection until it has joined: autobahn would wait for ever."""
        self._joining[session] = self.now()
        self._look()

    def _look(self) -> None:
        """Start the watchdog's timer, unless it runs."""
        if self._watchdog is None and not self.closed:
            self._watchdog = self.later(self._silence / 8, self._watch)

    def _watch(self) -> None:
        """Abort connections that are silent."""
        self._watchdog = None
        self._look()
        late = self.now() - self._silence
        silent = [session for session, since in self._joining.items() if since < late]
        if self.session is not None and any(
            live.watching and live.heard < late for live in self._live
        ):
            silent.append(self.session)
        for session in silent:
            self.left(session)
            if session.transport is not None:
                # Not `close`, which waits for the silent peer, and after which autobahn does not reconnect.
                _guarded(session.transport.abort)


class _Pending:
    """
    A call that waits for a session or for its answer.

    Args:
        uri: URI of the procedure.
        args: Positional arguments.
        kwargs: Keyword arguments.

    Attributes:
        ended: Called when the call has ended.
    """

    def __init__(self, uri: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.future: Any = txaio.create_future()
        self.answer: Any = None
        self.ended: Callable[[], None] = lambda: None
        self._call = uri, args, kwargs
        self._over = False

    def start(self, session: Any) -> None:
        """Send the call."""
        uri, args, kwargs = self._call
        try:
            self.answer = session.call(uri, *args, **kwargs)
        except CLOSING:  # wait for the next session
            return
        except Exception as error:  # the arguments cannot be sent
            self._end(txaio.reject, error)
            return
        txaio.add_callbacks(
            self.answer,
            lambda result: self._end(txaio.resolve, result),
            lambda why: self._end(txaio.reject, _ours(why.value)),
        )

    def fail(self, uri: str, message: str) -> None:
        """End the call with an error of the kit."""
        self._end(txaio.reject, ApplicationError(uri, message))

    def _end(self, settle: Callable[[Any, Any], Any], outcome: Any) -> None:
        if not self._over:
            self._over = True
            self.ended()
            if not txaio.is_called(self.future):  # else it was cancelled
                settle(self.future, outcome)


def _closed() -> ApplicationError:
    return ApplicationError(LOST, "the live query was closed")


def _ours(error: BaseException) -> BaseException:
    """Return the error of a call; autobahn's errors of lost sessions become `LOST`."""
    known = isinstance(error, ApplicationError) or not isinstance(error, Error)
    return error if known else ApplicationError(LOST, str(error))


def _later(seconds: float, act: Callable[[], Any]) -> Any:
    if txaio.using_twisted:
        from twisted.internet import reactor

        return reactor.callLater(seconds, act)
    return asyncio.get_running_loop().call_later(seconds, act)


def _started(work: Coroutine[Any, Any, Any]) -> Awaitable[Any]:
    """Start a coroutine, which need not be awaited."""
    if txaio.using_twisted:
        from twisted.internet.defer import ensureDeferred

        return ensureDeferred(work)
    return asyncio.ensure_future(work)


def _cancelled(timer: Any) -> Any:
    """Cancel a timer, if there is one that has not fired; return None."""
    if timer is not None and (not hasattr(timer, "active") or timer.active()):
        timer.cancel()
    return None


def _guarded(act: Callable[..., Any], *args: Any) -> None:
    """Run a function of the application or of autobahn; log its errors."""
    try:
        act(*args)
    except Exception:
        log.exception("a listener or an effect has failed")
