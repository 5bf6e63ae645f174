"""
Live copies of what Rowcast serves, on sessions of autobahn, with Twisted as with asyncio.

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
"""Twisted or asyncio, whichever the sessions are of; its functions are there from then on."""

PAUSES = (0.1, 5.0)
"""Seconds between two tries: at first, and at most."""

SILENCE = 40.0
"""Seconds of silence after which a connection is given up: the service says each 15 that it lives."""

PATIENCE = 30.0
"""Seconds that a call may take, and that an effect is shown after its write without being covered."""

LOST, LATE = "rowcast.client.lost", "rowcast.client.timeout"
"""Errors of our own: the session is gone, or there was no answer in time."""

AGAIN = (
    "canceled",
    "timeout",
    "unavailable",
    "position_gone",
    "lost",
    "internal",
    "outcome_unknown",
)
"""Last words of errors after which a live query begins again."""

ABSENT = "no callee registered"
"""How the router's message begins where no service is there."""

CLOSING = Disconnected, TransportLost
"""What a session that is closing says to a call, of which it has sent nothing."""

Row = Any
Rows = dict[Any, Row]
"""By the canonical text of their keys; of a row that is its own key, by its text and the copy."""

Step = list[tuple["Live", Mapping[str, Any]]]

STEPS: WeakKeyDictionary[Any, dict[str, Step]] = WeakKeyDictionary()
"""
Of each session, by prefix, what came of a step that is not whole yet.

Kits that share a session share it: one message, of whatever is watched there, says that a step is whole.
"""

Effect = Callable[[Rows], Any]
Listener = Callable[[list[Row], "Change | None"], Any]
Later = Callable[[float, Callable[[], Any]], Any]


class Mismatch(Exception):
    """A copy is not what the service has."""


@dataclass(frozen=True)
class Change:
    """
    What is different in the rows of a query.

    Args:
        enter, update, leave: Rows; those that leave as they were.
        reset: Whether all were sent anew.
    """

    enter: list[Row] = field(default_factory=list)
    update: list[Row] = field(default_factory=list)
    leave: list[Row] = field(default_factory=list)
    reset: bool = False


class Entry(NamedTuple):
    """
    A row of a copy.

    Args:
        row: As it came.
        check: Its part of the checksum.
    """

    row: Row
    check: int


def canonical(value: Any) -> str:
    """Return the one text of a value, of which the service makes its checksums, too."""
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
    The rows of a query, as the messages of `watch` make them.

    Args:
        query: The arguments of `watch`.

    Attributes:
        entries: In their order, by their names.
        position: What they are a state of; None before there are any.
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
        Take a message; return what it has changed, None while it is not whole.

        Raises:
            Mismatch: The rows are not those of the service.
        """
        change = None
        if message["type"] == "snapshot":
            change = self._snapshot(message)
        elif message["type"] == "delta":
            change = self._delta(message)
        if self.staged is None:
            # Who waits for rows hears without one that he is not forgotten.
            self.position = message.get("position", self.position)
            if message.get("checksum", self.checksum) != self.checksum:
                raise Mismatch(f"not the rows of {self.position}")
        return change

    def cut(self) -> None:
        """Forget the beginning of a snapshot whose rest will not come."""
        self.staged = None

    @property
    def checksum(self) -> int:
        """What the service says of the same rows."""
        checks = (each.check for each in self.entries.values())
        return sum(at * each if self.ordered else each for at, each in enumerate(checks, 1)) % 2**32

    @property
    def rows(self) -> Rows:
        """The rows by their names, in a dict of the caller's own."""
        return {name: entry.row for name, entry in self.entries.items()}

    def _key(self, row: Row) -> Any:
        assert self._columns is not None
        if self._grouped:
            return {name: row[name] for name in self._columns}
        values = [row[name] for name in self._columns]
        return values[0] if len(values) == 1 else values

    def _put(self, entries: dict[Any, Entry], row: Row, keys: Sequence[Any] | None, at: int) -> Any:
        """Put a row among entries, in place of that with its key; return its name."""
        if keys is None and self._columns is None:
            # Without a key a row is its own, as often as it comes.
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
            # The key may be another one by now, or gone: the first part says so, by silence as well.
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
            if name in self.entries:  # after `since` it may not be held
                change.leave.append(self.entries.pop(name).row)
        for kind, changed in (("update", change.update), ("enter", change.enter)):
            beside = None if keys is None else keys[kind]
            own = beside is None and self._columns is None
            for at, row in enumerate(message[kind]):
                # One that is its own key and is updated has only moved.
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
        """Put rows right behind those that stand before them now."""
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
    """Yield the names of the first copy of a row, the second and so on."""
    yield text
    copy = 2
    while True:
        yield text, copy
        copy += 1


def _whole(message: Mapping[str, Any]) -> bool:
    """Return whether a message is the last of a live query in its step."""
    return message["type"] != "snapshot" or bool(message.get("complete"))


def _last(entries: Mapping[Any, Entry], text: str) -> Any:
    """Return the name of the last copy of a row."""
    found: Any = text
    for name in _names(text):
        if name not in entries:
            return found
        found = name


class _Writing:
    """An effect that is shown while its write is under way, and until the rows have it."""

    def __init__(self, effect: Effect) -> None:
        self.effect = effect
        self.tx: str | None = None
        self.timer: Any = None


class Live:
    """
    A query that is watched.

    Args:
        db: Whose it is.
        name: Of a relation, or of a function: "fn.name".
        query: The arguments of `watch`.

    Attributes:
        error: Why it has ended, if it has.
        mismatches: How often its rows were not the service's, and were asked for anew.
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
        """The rows as of the newest step, with what is being written."""
        rows = self._copy.rows
        for each in self._writing:
            _guarded(each.effect, rows)
        return list(rows.values())

    @property
    def position(self) -> str | None:
        """What the rows are a state of; None before there are any."""
        return self._copy.position

    def ready(self) -> Awaitable[list[Row]]:
        """Wait for the first rows, and return them; fails if there can be none."""
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
        """Call with the rows now, if they are there, and after each change; return what ends that."""
        token = object()
        self._listeners[token] = changed
        if self.position is not None:
            _guarded(changed, self.rows, None)
        return lambda: self._listeners.pop(token, None) and None

    def close(self) -> None:
        """Watch no more."""
        self.closed = True
        self._end()
        self._settle(_closed())
        self._db.drop(self)

    def write(self, verb: str, *args: Any, effect: Effect, **kwargs: Any) -> Awaitable[Any]:
        """
        Write with an effect that is shown at once.

        It goes when the rows have what was written, or the write has failed.

        Args:
            verb: What to call of the relation.
            args: For the call.
            effect: Changes a dict of the rows by the canonical text of their keys.
            kwargs: For the call.
        """
        mine = _Writing(effect)
        self._writing.append(mine)
        self._tell(None)
        return _started(self._write(verb, args, kwargs, mine))

    def create(self, values: Mapping[str, Any], **kwargs: Any) -> Awaitable[Any]:
        """Create a row, which is shown at once."""
        token = object()
        return self.write(
            "create", values, effect=lambda rows: rows.update({token: values}), **kwargs
        )

    def update(self, key: Any, changes: Mapping[str, Any], **kwargs: Any) -> Awaitable[Any]:
        """Update the row of a key, which shows the changes at once."""
        name = canonical(key)

        def effect(rows: Rows) -> None:
            if name in rows:
                rows[name] = {**rows[name], **changes}

        return self.write("update", key, changes, effect=effect, **kwargs)

    def delete(self, key: Any, **kwargs: Any) -> Awaitable[Any]:
        """Delete the row of a key, which is shown no more."""
        name = canonical(key)
        return self.write("delete", key, effect=lambda rows: rows.pop(name, None), **kwargs)

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
        """Watch from here on, if there is a session and it is not done already."""
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
        """Whether its call is under way."""
        return self._call is not None

    def cut(self) -> None:
        """Note that the session is gone: its calls may never be answered."""
        self._call = None
        self._copy.cut()

    def apply(self, message: Mapping[str, Any]) -> Callable[[], None]:
        """Take a message of a step that is whole now; return what tells the listeners."""
        try:
            change = self._copy.take(message)
        except Exception as error:
            # Whatever it is, the rows are not to be trusted: ask for all of them.
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
            if txaio.is_called(each):  # its waiter has gone
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
        """Start again if the session is closing; what cannot be sent is refused."""
        self._failed(None) if isinstance(error, CLOSING) else self._refused(error)

    def _refused(self, error: Exception) -> None:
        """End for good."""
        self.cut()
        self.error = error
        self._settle(error)
        log.error("%s is not watched any more: %s", self.name, error)

    def _again(self, least: float = 0) -> None:
        """Start after a pause, which is longer each time until a message was good."""
        seconds = max(least, min(PAUSES[1], PAUSES[0] * 2**self._failures))
        self._failures += 1
        _cancelled(self._retry)
        # Not all at once, when a service has gone that had many.
        self._retry = self._db.later(seconds * random.uniform(0.5, 1.5), self.start)

    def _end(self) -> None:
        self._retry = _cancelled(self._retry)
        call = self._call
        self.cut()
        if call is not None and call.answer is not None:
            _guarded(txaio.cancel, call.answer)


class _Call:
    """A call that may not be there yet."""

    answer: Any = None


class Rowcast:
    """
    Live queries and calls on the sessions that come and go.

    Args:
        component: autobahn's, which makes them; without one, `joined` and `left` are told.
        prefix: Of the service's URIs.
        later: Calls a function after some seconds; by default by the framework that runs.
        now: Returns a time in seconds.
        silence: Seconds after which a connection is given up that does not join, or on which a live
            query hears nothing.
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
        """Watch a relation, or the rows of a function as in "fn.name", by the arguments of `find`."""
        live = Live(self, name, query)
        self._live[live] = None
        live.close() if self.closed else live.start()
        return live

    def call(
        self, name: str, *args: Any, patience: float = PATIENCE, **kwargs: Any
    ) -> Awaitable[Any]:
        """
        Call a procedure: as the session does, but it ends in time, and with the session.

        Without a session it waits for one.

        Args:
            name: Of the procedure.
            args: Of the call.
            patience: Seconds for all of it.
            kwargs: Of the call.

        Raises:
            ApplicationError: `rowcast.client.lost` and `rowcast.client.timeout`, too; whether it
                was done is not known then.
        """
        pending = _Pending(self.uri(name), args, kwargs)
        self._calls[pending] = None

        def late() -> None:
            pending.fail(LATE, f"no answer within {patience:g} s")
            # Only then: the answer of one that is cancelled comes at once.
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
        """Go on with a new session."""
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
        """End what is under way: with autobahn, a call need not end when its session does."""
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
        """End all live queries and calls, for good; the session is not ours to close."""
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
        """Keep a message until its step is whole, for all live queries change together."""
        # One for which there is another message already is in the next step.
        if any(other is live and _whole(before) for other, before in self._step):
            self.flush()
        self._step.append((live, message))
        if message.get("step") or (message["type"] == "alive" and len(self._step) == 1):
            self.flush()

    def settle(self) -> None:
        """Apply what was kept, since its end may have been lost with a call, unless others wait for it."""
        if all(live in self._live or live.closed for live, _ in self._step):
            self.flush()

    def flush(self) -> None:
        """Apply what was kept, then tell the listeners."""
        step = self._step[:]
        self._step.clear()
        told = [live.apply(message) for live, message in step if not live.closed]
        for tell in told:
            tell()

    def _connected(self, session: Any, transport: Any) -> None:
        """Have a connection given up that does not join: autobahn would wait for ever."""
        self._joining[session] = self.now()
        self._look()

    def _look(self) -> None:
        """Watch the connections, if nobody does."""
        if self._watchdog is None and not self.closed:
            self._watchdog = self.later(self._silence / 8, self._watch)

    def _watch(self) -> None:
        """Give up connections that are silent."""
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
                # Not closed: that waits for who is silent, and is taken for an end that was wanted.
                _guarded(session.transport.abort)


class _Pending:
    """
    A call that waits for a session or for its answer.

    Args:
        uri: Of the procedure.
        args: Of the call.
        kwargs: Of the call.

    Attributes:
        ended: Called when it is over.
    """

    def __init__(self, uri: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.future: Any = txaio.create_future()
        self.answer: Any = None
        self.ended: Callable[[], None] = lambda: None
        self._call = uri, args, kwargs
        self._over = False

    def start(self, session: Any) -> None:
        """Make the call."""
        uri, args, kwargs = self._call
        try:
            self.answer = session.call(uri, *args, **kwargs)
        except CLOSING:  # the next one has it
            return
        except Exception as error:  # what cannot be sent
            self._end(txaio.reject, error)
            return
        txaio.add_callbacks(
            self.answer,
            lambda result: self._end(txaio.resolve, result),
            lambda why: self._end(txaio.reject, _ours(why.value)),
        )

    def fail(self, uri: str, message: str) -> None:
        """End it with an error of our own."""
        self._end(txaio.reject, ApplicationError(uri, message))

    def _end(self, settle: Callable[[Any, Any], Any], outcome: Any) -> None:
        if not self._over:
            self._over = True
            self.ended()
            if not txaio.is_called(self.future):  # its waiter has gone
                settle(self.future, outcome)


def _closed() -> ApplicationError:
    return ApplicationError(LOST, "the live query was closed")


def _ours(error: BaseException) -> BaseException:
    """Return the error of a call; autobahn's own for a lost session is ours for it."""
    known = isinstance(error, ApplicationError) or not isinstance(error, Error)
    return error if known else ApplicationError(LOST, str(error))


def _later(seconds: float, act: Callable[[], Any]) -> Any:
    if txaio.using_twisted:
        from twisted.internet import reactor

        return reactor.callLater(seconds, act)
    return asyncio.get_running_loop().call_later(seconds, act)


def _started(work: Coroutine[Any, Any, Any]) -> Awaitable[Any]:
    """Start work that nobody need wait for."""
    if txaio.using_twisted:
        from twisted.internet.defer import ensureDeferred

        return ensureDeferred(work)
    return asyncio.ensure_future(work)


def _cancelled(timer: Any) -> Any:
    """Cancel a timer, if there is one that has not fired; return what stands for none."""
    if timer is not None and (not hasattr(timer, "active") or timer.active()):
        timer.cancel()
    return None


def _guarded(act: Callable[..., Any], *args: Any) -> None:
    """Run what is not ours, whose errors must not stop us."""
    try:
        act(*args)
    except Exception:
        log.exception("a listener or an effect has failed")
