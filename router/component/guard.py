"""
Checks of clients' messages that Crossbar lacks, made before it handles them; answers to cancelled calls; and
answers without delay.

With mode "kill" the caller of a cancelled call receives the callee's answer, as WAMP specifies. Crossbar
replaces that answer by its own "canceled", although the callee may have committed its work. With mode "skip"
the caller receives "canceled" at once; Crossbar never answers such a call.

Methods are replaced in Crossbar's classes, which all realms and transports of a worker share.
"""

from contextlib import suppress
from importlib.metadata import version

from autobahn.wamp import message
from autobahn.wamp.exception import ApplicationError, ProtocolError
from crossbar.router.dealer import Dealer, _can_cancel
from crossbar.router.session import RouterSession

TESTED = {"crossbar": "26.10.1", "autobahn": "26.10.2"}


def install(allowed):
    """
    Replace methods of Crossbar, for all realms of this process.

    Args:
        allowed: Versions by distribution, which replace those in `TESTED`.

    Raises:
        RuntimeError: A distribution has another version.
    """
    for name, tested in (TESTED | allowed).items():
        if version(name) != tested:
            raise RuntimeError(
                f"the guard was tested with {name} {tested}, this is {version(name)} → install"
                f" {name}=={tested}, or run the project's tests with this one and set"
                f' "versions": {{"{name}": "{version(name)}"}} in the component\'s "extra"'
            )
    Dealer.processInvocationError = answered(error_of_callee)
    Dealer.processYield = answered(take_yield)
    Dealer.processCancel = cancel_of_call
    Dealer._call = call_of_new_request
    Dealer._remove_invoke_request = remove_invoke_request
    RouterSession.onHello = hello_without_transport
    RouterSession.onOpen = open_without_delay


# The original methods, saved before `install` replaces them; the replacements call them.
take_error, call = Dealer.processInvocationError, Dealer._call
take_yield, take_cancel = Dealer.processYield, Dealer.processCancel
greet, open_session = RouterSession.onHello, RouterSession.onOpen


def error_of_callee(self, session, error):
    """
    Handle an ERROR that answers an invocation, after the check that `processYield` makes for a YIELD.

    Raises:
        ProtocolError: The invocation was sent to another session; the sender's session is closed.
    """
    invocation = self._invocations.get(error.request)
    if invocation is not None and invocation.callee is not session:
        raise ProtocolError(f"ERROR received for non-owned request ID {error.request}")
    take_error(self, session, error)


def call_of_new_request(self, session, msg, *rest, **options):
    """
    Start a call, unless another call of this session in progress has the same request ID.

    Two such calls share an entry in the dealer's tables, so the end of the second one fails: if the callee
    leaves then, its registration stays, and calls to it are never answered.
    """
    if (session._session_id, msg.request) not in self._invocations_by_call:
        return call(self, session, msg, *rest, **options)
    refuse(self, session, msg.request, *in_use(msg.request))
    return False


def in_use(request):
    """Return the URI and message of the error for a second call with a request ID in use."""
    return ApplicationError.INVALID_ARGUMENT, f"request ID {request} is in use"


def refuse(dealer, session, request, uri, *args):
    """Answer a call with an error."""
    kind = message.Call.MESSAGE_TYPE
    dealer._router.send(session, message.Error(kind, request, uri, args=list(args)))


def cancel_of_call(self, session, cancel):
    """Handle a CANCEL, and answer the call if its callee is not interrupted."""
    invocation = self._invocations_by_call.get((session._session_id, cancel.request))
    first = invocation is not None and not invocation.canceled
    take_cancel(self, session, cancel)
    skipped = cancel.mode == message.Cancel.SKIP
    if first and (skipped or not _can_cancel(invocation.callee, "callee")):
        refuse(self, session, cancel.request, ApplicationError.CANCELED)


def answered(process):
    """Return a method that handles the answer to an invocation as if the call had not been cancelled."""

    def take(self, session, answer):
        invocation = self._invocations.get(answer.request)
        waited = invocation is not None and invocation.callee is session
        # Only in mode "kill" does Crossbar keep the error until the callee answers; in other modes the
        # caller has received it already.
        if waited and invocation.canceled and invocation.error_msg is not None:
            invocation.canceled, invocation.error_msg = False, None
        process(self, session, answer)

    return take


def remove_invoke_request(self, invocation):
    """
    Forget an invocation.

    The dealer's own method fails half-way if the caller has cancelled the call and left, and then keeps the
    call, with its arguments, for ever.
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
    Handle a HELLO without the client's `authextra.transport`.

    Crossbar takes it for the details of the connection; and if it cannot parse them, it publishes neither
    that the session joins nor that it leaves.
    """
    if details.authextra:
        details.authextra.pop("transport", None)
    return greet(self, realm, details)


def open_without_delay(self, transport):
    """
    Open a session on a socket without Nagle's algorithm.

    Crossbar leaves it on: the second of two answers waits until the client has acknowledged the first, which
    its kernel delays by 40 ms if the client has nothing to send.
    """
    open_session(self, transport)
    with suppress(AttributeError, OSError):  # not TCP, such as the Unix socket of the service
        transport.transport.setTcpNoDelay(True)
