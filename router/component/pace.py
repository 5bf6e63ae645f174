"""
A client with very many calls under way is not read until some of them are answered.

Crossbar hands on what it has read, in the order in which it came: 10,000 calls of one client would
stand before everybody's on the one connection to the service. What is not read waits in the
client's own socket, and TCP tells the client so.

Calls that take progressive results do not count: they last until the client itself cancels them,
which would not be read. Nor is a session held back that others call: their answers would wait, and
perhaps its own calls for those. The service is such a one, and is read in large pieces once it has answered.
"""

from weakref import WeakSet

from crossbar.router.dealer import Dealer
from crossbar.router.session import RouterSession

from component import guard

MOST = 256
"""Calls of a session under way from which on it is not read; more than run at once, by far."""
SLACK = 32
"""How many fewer there are when it is read again: what then comes stands before others' calls."""
AT_ONCE = 4 * 1024
"""Bytes that are read from a client until others have their turn."""
AT_ONCE_OF_CALLEES = 64 * 1024
"""As Twisted has it. RawSocket copies what it has of a message with each piece: answers of 8 MB in pieces of
4 KiB kept the router busy, and everybody else's calls waiting, for half a minute."""

paused = WeakSet()
callees = WeakSet()


def install():
    """Replace methods of Crossbar's, in every realm of this process; call it after the guard's."""
    Dealer._call = call_and_count
    Dealer._remove_invoke_request = remove_and_count
    RouterSession.onOpen = open_with_turns


def call_and_count(self, session, *rest, **options):
    """Call, and stop to read from a session that has enough under way."""
    done = guard.call_of_new_request(self, session, *rest, **options)
    if session not in paused and has_under_way(self, session, MOST):
        transport = wire_of(session)
        if transport is not None:
            paused.add(session)
            transport.pauseProducing()
    return done


def remove_and_count(self, invocation):
    """Forget an invocation, and read on once a session has fewer."""
    guard.remove_invoke_request(self, invocation)
    if invocation.callee not in callees:
        callees.add(invocation.callee)
        read_at_once(invocation.callee, AT_ONCE_OF_CALLEES)
    caller = invocation.caller
    if caller in paused and not has_under_way(self, caller, MOST - SLACK):
        paused.discard(caller)
        transport = wire_of(caller)
        if transport is not None:
            transport.resumeProducing()


def has_under_way(dealer, session, most):
    """Return whether a session has so many calls under way that it is to wait for their answers."""
    calls = dealer._caller_to_invocations.get(session, ())
    if len(calls) < most or dealer._session_to_registrations.get(session):
        return False
    return sum(not each.call.receive_progress for each in calls) >= most


def open_with_turns(self, transport):
    """Begin a session, whose client is read in small pieces."""
    guard.open_without_delay(self, transport)
    read_at_once(self, AT_ONCE)


def read_at_once(session, size):
    """Read so many bytes from a session until others have their turn."""
    wire = wire_of(session)
    # TLS is a transport around that of TCP.
    while wire is not None:
        if hasattr(wire, "bufferSize"):
            wire.bufferSize = size
        wire = getattr(wire, "transport", None)


def wire_of(session):
    """Return the transport of a client's connection; None for sessions of the router's own."""
    transport = getattr(session._transport, "transport", None)
    return transport if hasattr(transport, "pauseProducing") else None
