"""
A client with very many calls under way delays others by a few of them.

Crossbar hands on what it has read, in the order in which it came: 10,000 calls of one client would
stand before everybody's on the one connection to the service. Here a session has so many calls
under way, and the next ones wait for their answers in a queue of its own. What else it sends is
handled meanwhile, a CANCEL above all. A session with too much in its queue is not read; TCP tells
its client so.

Calls that take progressive results do not count, for they last until the client cancels them; nor
those of a session that is itself called, which calls on behalf of others, as a service does that
passes an upload on.
"""

from collections import OrderedDict, deque
from struct import unpack_from

from autobahn.twisted.rawsocket import WampRawSocketServerProtocol
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.serializer import Serializer
from crossbar.router.dealer import Dealer
from crossbar.router.session import RouterSession
from twisted.internet import reactor

from component import guard, kill

UNDER_WAY = 32
"""Calls of a session under way; twice as many as the service has connections, if that is more."""
TURN = 16
"""Calls that begin one after another, some 60 µs each, until messages have their turn."""
MOST_WAITING, MOST_BYTES = 2_000, 1024 * 1024
"""Calls that wait, and what their messages weigh, from which on a session is not read."""
PIECE = 4 * 1024
"""Bytes that are read from a connection until others have their turn: some 60 small calls or answers."""
LARGE_PIECE = 64 * 1024
"""The same within a larger message, which is handled once it is there to its end."""
PREFIX = 4
"""Bytes before each message of a RawSocket, which say how long it is."""

take_call, add_request, detach = Dealer.processCall, Dealer._add_invoke_request, Dealer.detach
receive, decode = WampRawSocketServerProtocol.dataReceived, Serializer.unserialize


class Queue:
    """
    The calls of one session.

    Attributes:
        under_way: Those that were handed on and are not answered, progressive ones aside.
        waiting: Those that come after them, by request ID, each with the bytes of its message.
        bytes: What those weigh.
        ready: Whether it is in line for the next turn.
        paused: Whether its client is not read.
    """

    __slots__ = ("bytes", "paused", "ready", "under_way", "waiting")

    def __init__(self):
        self.under_way = self.bytes = 0
        self.waiting = OrderedDict()
        self.ready = self.paused = False


class Line:
    """
    The sessions whose next call may begin, which do so in turn.

    Attributes:
        most: Calls of a session under way.
    """

    def __init__(self):
        self.most = UNDER_WAY
        self._ready = deque()
        self._scheduled = False

    def may_begin(self, dealer, session):
        """Return whether one more call of a session may be under way."""
        return session.queue.under_way < self.most or bool(
            dealer._session_to_registrations.get(session)
        )

    def join(self, dealer, session):
        """Put a session in line for its next call, if one waits and may begin."""
        queue = session.queue
        if queue.waiting and not queue.ready and self.may_begin(dealer, session):
            queue.ready = True
            self._ready.append((dealer, session))
            # Not at once: whoever has just been answered is in the midst of a method of the dealer's.
            self._go_on()

    def _go_on(self):
        if self._ready and not self._scheduled:
            self._scheduled = True
            reactor.callLater(0, self._turn)

    def _turn(self):
        self._scheduled = False
        for _ in range(min(TURN, len(self._ready))):
            dealer, session = self._ready.popleft()
            queue = session.queue
            queue.ready = False
            if queue.waiting and self.may_begin(dealer, session):
                _, (call, size) = queue.waiting.popitem(last=False)
                forget(session, size)
                take_call(dealer, session, call)
                self.join(dealer, session)
        self._go_on()


line = Line()


def install(connections):
    """
    Replace methods of Crossbar's, in every realm of this process; call it after the others'.

    Args:
        connections: Of the services to the database.
    """
    line.most = max(UNDER_WAY, 2 * connections)
    Dealer.processCall = take_call_in_turn
    Dealer.processCancel = cancel_waiting_too
    Dealer._add_invoke_request = add_and_count
    Dealer._remove_invoke_request = remove_and_count
    Dealer.detach = detach_and_count
    RouterSession.onOpen = open_with_queue
    Serializer.unserialize = decode_and_weigh
    WampRawSocketServerProtocol.missing, WampRawSocketServerProtocol.pieces = 0, ()
    WampRawSocketServerProtocol.dataReceived = receive_whole


def open_with_queue(self, transport):
    """Begin a session, whose client is read in small pieces."""
    self.queue = Queue()
    guard.open_without_delay(self, transport)
    read_at_once(transport.transport, PIECE)


def take_call_in_turn(self, session, call):
    """Take a call, now or once calls before it are answered."""
    queue = getattr(session, "queue", None)
    # The router's own sessions have no client that could send too much.
    if queue is None or not (queue.waiting or not line.may_begin(self, session)):
        take_call(self, session, call)
        return
    if call.request in queue.waiting:
        guard.refuse(self, session, call.request, *guard.in_use(call.request))
        return
    size = session._transport._serializer.received
    queue.waiting[call.request] = call, size
    queue.bytes += size
    if not queue.paused and (len(queue.waiting) >= MOST_WAITING or queue.bytes >= MOST_BYTES):
        queue.paused = True
        session._transport.transport.pauseProducing()
    line.join(self, session)


def cancel_waiting_too(self, session, cancel):
    """Handle a CANCEL: a call that waits ends at once, in whatever mode."""
    queue = getattr(session, "queue", None)
    waiting = queue.waiting.pop(cancel.request, None) if queue is not None else None
    if waiting is None:
        kill.cancel_of_call(self, session, cancel)
        return
    forget(session, waiting[1])
    guard.refuse(self, session, cancel.request, ApplicationError.CANCELED)


def add_and_count(self, id, registration, session, call, *rest, **options):
    """Keep an invocation, and count it."""
    count(session, call, 1)
    return add_request(self, id, registration, session, call, *rest, **options)


def remove_and_count(self, invocation):
    """Forget an invocation; the next call of its caller may begin."""
    known = invocation.id in self._invocations
    guard.remove_invoke_request(self, invocation)
    if known and count(invocation.caller, invocation.call, -1):
        line.join(self, invocation.caller)


def detach_and_count(self, session):
    """Forget a session: its calls that wait, and those that it was to answer."""
    queue = getattr(session, "queue", None)
    if queue is not None:
        queue.waiting.clear()
        forget(session, queue.bytes)
    unanswered = list(self._callee_to_invocations.get(session, ()))
    detach(self, session)
    for invocation in unanswered:
        if count(invocation.caller, invocation.call, -1):
            line.join(self, invocation.caller)


def count(caller, call, by):
    """Count a call of a session that begins or ends; return whether it is one that counts."""
    queue = getattr(caller, "queue", None)
    if queue is None or call.receive_progress:
        return False
    queue.under_way += by
    return True


def forget(session, size):
    """Count a call that waits no longer; its client is read on when half of them are gone."""
    queue = session.queue
    queue.bytes -= size
    few = len(queue.waiting) <= MOST_WAITING // 2 and queue.bytes <= MOST_BYTES // 2
    if queue.paused and few:
        queue.paused = False
        if session._transport is not None:
            session._transport.transport.resumeProducing()


def decode_and_weigh(self, payload, *rest):
    """Decode a message, and keep how many bytes it has."""
    self.received = len(payload)
    return decode(self, payload, *rest)


def receive_whole(self, data):
    """
    Handle what has come of a RawSocket's messages, as soon as the last of them is whole.

    Twisted copies all that it has of a message with each piece: one of 8 MiB took seconds.
    """
    self.missing -= len(data)
    if self.missing > 0:
        self.pieces.append(data)
        return
    data, self.pieces = b"".join((*self.pieces, data)), []
    receive(self, data)
    rest = self._unprocessed
    length = unpack_from("!I", rest)[0] if len(rest) >= PREFIX else 0
    self.missing = PREFIX + length - len(rest)
    read_at_once(self.transport, LARGE_PIECE if self.missing > PIECE else PIECE)


def read_at_once(wire, size):
    """Read so many bytes from a connection until others have their turn."""
    # TLS is a transport around that of TCP.
    while wire is not None:
        if hasattr(wire, "bufferSize"):
            wire.bufferSize = size
        wire = getattr(wire, "transport", None)
