"""
Fairness among clients: a client with very many calls delays others by only a few of them.

Crossbar passes on messages in the order in which it has read them: 10,000 calls of one client would be ahead
of all others' on the one connection to the service. Here, the number of calls of a session in progress is
limited, and further ones wait in a queue of the session until earlier ones are answered. Its other messages,
CANCEL above all, are handled meanwhile. If the queue is too long, the session's socket is not read, and TCP
slows the client down.

Calls with progressive results do not count, because they may last until the client cancels them. Nor do calls
of a session that has registrations, because it calls on behalf of others, such as a service that passes on an
upload.
"""

from collections import OrderedDict, deque
from struct import unpack_from
from time import monotonic

from autobahn.twisted.rawsocket import WampRawSocketServerProtocol
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.serializer import Serializer
from crossbar.router.dealer import Dealer
from crossbar.router.session import RouterSession
from twisted.internet import reactor

from component import guard

UNDER_WAY = 32
"""
Calls of a session in progress; or twice the number of database connections, if that is more.

Beside a client with 10,000 calls, the p99 of other callers is 1.6 to 2.3 times that without this client; with
256 calls in progress it was 16 to 22 times, at the same throughput.
"""
TURN = 16
"""Number of waiting calls, about 60 µs each, that are started before the reactor handles messages again."""
MOST_WAITING, MOST_BYTES = 2_000, 1024 * 1024
"""Number of waiting calls, and size of their messages, at which a session's socket is not read any more."""
PIECE = 4 * 1024
"""Bytes that are read from a socket before others are read: about 60 small calls or answers."""
LARGE_PIECE = 64 * 1024
"""The same within a larger message, which is handled when it is complete."""
PREFIX = 4
"""Size of the header with the length of a RawSocket message, in bytes."""

take_call, add_request, detach = Dealer.processCall, Dealer._add_invoke_request, Dealer.detach
receive, decode = WampRawSocketServerProtocol.dataReceived, Serializer.unserialize


class Queue:
    """
    The calls of one session.

    Attributes:
        under_way: Number of calls in progress, without those with progressive results.
        waiting: Waiting calls by request ID, each with the size of its message.
        bytes: Size of the messages of waiting calls.
        ready: Whether the session is in the line for the next turn.
        paused: Whether the session's socket is not read.
    """

    __slots__ = ("bytes", "paused", "ready", "under_way", "waiting")

    def __init__(self):
        self.under_way = self.bytes = 0
        self.waiting = OrderedDict()
        self.ready = self.paused = False


class Line:
    """
    The sessions whose next call may start, in round-robin order.

    Attributes:
        most: Maximum number of calls of a session in progress.
    """

    def __init__(self):
        self.most = UNDER_WAY
        self._ready = deque()
        self._scheduled = False

    def may_begin(self, dealer, session):
        """Return whether a session may start another call."""
        return session.queue.under_way < self.most or bool(
            dealer._session_to_registrations.get(session)
        )

    def join(self, dealer, session):
        """Append a session to the line, if one of its calls waits and may start."""
        queue = session.queue
        if queue.waiting and not queue.ready and self.may_begin(dealer, session):
            queue.ready = True
            self._ready.append((dealer, session))
            # Not at once, because this may be called from within a method of the dealer.
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
    Replace methods of Crossbar, for all realms of this process; call this after the other modules'.

    Args:
        connections: Number of database connections of the services.
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
    """Open a session with a queue, whose socket is read in small pieces."""
    self.queue = Queue()
    guard.open_without_delay(self, transport)
    read_at_once(transport.transport, PIECE)


def take_call_in_turn(self, session, call):
    """Start a call, now or when earlier ones are answered."""
    queue = getattr(session, "queue", None)
    # The router's internal sessions have no queue: they have no client that could send too much.
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
    """Handle a CANCEL; a waiting call ends at once, whatever the mode."""
    queue = getattr(session, "queue", None)
    waiting = queue.waiting.pop(cancel.request, None) if queue is not None else None
    if waiting is None:
        guard.cancel_of_call(self, session, cancel)
        return
    forget(session, waiting[1])
    guard.refuse(self, session, cancel.request, ApplicationError.CANCELED)


def add_and_count(self, id, registration, session, call, *rest, **options):
    """Store an invocation, and count it."""
    count(session, call, 1)
    return add_request(self, id, registration, session, call, *rest, **options)


def remove_and_count(self, invocation):
    """Forget an invocation, so that the next call of its caller may start."""
    known = invocation.id in self._invocations
    guard.remove_invoke_request(self, invocation)
    if known and count(invocation.caller, invocation.call, -1):
        line.join(self, invocation.caller)


def detach_and_count(self, session):
    """Forget a session: its waiting calls, and the calls that it has not answered."""
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
    """Count a call of a session that starts or ends; return False if it does not count."""
    queue = getattr(caller, "queue", None)
    if queue is None or call.receive_progress:
        return False
    queue.under_way += by
    return True


def forget(session, size):
    """Count a call that waits no more; read the session's socket again when half of the queue is gone."""
    queue = session.queue
    queue.bytes -= size
    few = len(queue.waiting) <= MOST_WAITING // 2 and queue.bytes <= MOST_BYTES // 2
    if queue.paused and few:
        queue.paused = False
        if session._transport is not None:
            session._transport.transport.resumeProducing()


def decode_and_weigh(self, payload, *rest):
    """Decode a message, and store its size."""
    self.received = len(payload)
    return decode(self, payload, *rest)


def receive_whole(self, data):
    """
    Pass received data of a RawSocket on when the current message is complete.

    Twisted would copy the incomplete message with each piece: a message of 8 MiB took seconds.
    """
    self.read_at = monotonic()
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
    """Set how many bytes are read from a socket before others are read."""
    # A TLS transport wraps that of TCP.
    while wire is not None:
        if hasattr(wire, "bufferSize"):
            wire.bufferSize = size
        wire = getattr(wire, "transport", None)
