"""
Answers to cancelled calls.

With mode "kill" the caller receives the callee's answer, as WAMP specifies. Crossbar replaces that answer by
its own "canceled", although the callee may have committed its work. With mode "skip" the caller receives
"canceled" at once; Crossbar never answers such a call.
"""

from autobahn.wamp import message
from autobahn.wamp.exception import ApplicationError
from crossbar.router.dealer import Dealer, _can_cancel

from component import guard

take_yield, take_cancel = Dealer.processYield, Dealer.processCancel


def install():
    """Replace methods of Crossbar, for all realms of this process; call this after `guard.install`."""
    Dealer.processYield = answered(take_yield)
    # Replaces the guard's method, and calls it.
    Dealer.processInvocationError = answered(guard.error_of_callee)
    Dealer.processCancel = cancel_of_call


def cancel_of_call(self, session, cancel):
    """Handle a CANCEL, and answer the call if its callee is not interrupted."""
    invocation = self._invocations_by_call.get((session._session_id, cancel.request))
    first = invocation is not None and not invocation.canceled
    take_cancel(self, session, cancel)
    skipped = cancel.mode == message.Cancel.SKIP
    if first and (skipped or not _can_cancel(invocation.callee, "callee")):
        guard.refuse(self, session, cancel.request, ApplicationError.CANCELED)


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
