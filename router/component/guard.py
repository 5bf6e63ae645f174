"""
Checks of clients' messages that Crossbar lacks, made before Crossbar handles them; and answers
without delay.

All realms and transports of a worker share the classes, so methods are replaced in those.
"""

from contextlib import suppress
from importlib.metadata import version

from autobahn.wamp import message
from autobahn.wamp.exception import ApplicationError, ProtocolError
from crossbar.router.dealer import Dealer
from crossbar.router.session import RouterSession

TESTED = {"crossbar": "26.10.1", "autobahn": "26.10.2"}


def install(allowed):
    """
    Replace methods of Crossbar's, for every realm of this process.

    Args:
        allowed: Versions by distribution, in place of those in `TESTED`.

    Raises:
        RuntimeError: The versions are others.
    """
    for name, tested in (TESTED | allowed).items():
        if version(name) != tested:
            raise RuntimeError(
                f"the guard was tested with {name} {tested}, this is {version(name)} → install"
                f" {name}=={tested}, or run the project's tests with this one and set"
                f' "versions": {{"{name}": "{version(name)}"}} in the component\'s "extra"'
            )
    Dealer.processInvocationError = error_of_callee
    Dealer._call = call_of_new_request
    Dealer._remove_invoke_request = remove_invoke_request
    RouterSession.onHello = hello_without_transport
    RouterSession.onOpen = open_without_delay


# Kept at the import, before `install` puts ours, which call them, in their places.
take_error, call = Dealer.processInvocationError, Dealer._call
greet, open_session = RouterSession.onHello, RouterSession.onOpen


def error_of_callee(self, session, error):
    """
    Handle an ERROR that answers an invocation, with the check that `processYield` makes of a YIELD.

    Raises:
        ProtocolError: The invocation is another session's; this session ends.
    """
    invocation = self._invocations.get(error.request)
    if invocation is not None and invocation.callee is not session:
        raise ProtocolError(f"ERROR received for non-owned request ID {error.request}")
    take_error(self, session, error)


def call_of_new_request(self, session, msg, *rest, **options):
    """
    Call, unless a call of this session that still runs has the same request ID.

    Two of them have one entry in the dealer's tables, so that the second end of the two fails:
    a callee that leaves then keeps its registration, and calls to it are never answered.
    """
    if (session._session_id, msg.request) not in self._invocations_by_call:
        return call(self, session, msg, *rest, **options)
    refuse(self, session, msg.request, *in_use(msg.request))
    return False


def in_use(request):
    """Return the URI and the words of the error that a second call with a request ID gets."""
    return ApplicationError.INVALID_ARGUMENT, f"request ID {request} is in use"


def refuse(dealer, session, request, uri, *args):
    """Answer a call with an error."""
    kind = message.Call.MESSAGE_TYPE
    dealer._router.send(session, message.Error(kind, request, uri, args=list(args)))


def remove_invoke_request(self, invocation):
    """
    Forget an invocation.

    The dealer's own method fails half way when the caller has cancelled the call and left, and
    keeps the call, with its arguments, for ever.
    """
    if invocation.timeout_call:
        invocation.timeout_call.cancel()
        invocation.timeout_call = None
    if self._invocations.pop(invocation.id, None) is None:
        return
    for table, session in (
        (self._callee_to_invocations, invocation.callee),
        (self._caller_to_invocations, invocation.caller),
    ):
        left = table.get(session, [])
        if invocation in left:
            left.remove(invocation)
        if not left:
            table.pop(session, None)
    self._invocations_by_call.pop((invocation.caller_session_id, invocation.call.request), None)


def hello_without_transport(self, realm, details):
    """
    Handle a HELLO without what its client says of its own connection.

    Crossbar believes it, and where it cannot parse it, publishes neither that the session joins nor
    that it leaves.
    """
    if details.authextra:
        details.authextra.pop("transport", None)
    return greet(self, realm, details)


def open_without_delay(self, transport):
    """
    Begin a session, on a socket that sends each message at once.

    Crossbar leaves Nagle's algorithm on: the second of two answers waits until the client has
    acknowledged the first, for which its kernel takes 40 ms if the client has nothing to send.
    """
    open_session(self, transport)
    with suppress(AttributeError, OSError):  # no TCP, as between the service and its own router
        transport.transport.setTcpNoDelay(True)
