"""
The answer to a caller that cancels a call.

In mode "kill" it is what its callee answered.

WAMP has the caller wait for that answer, and Crossbar puts its own "canceled" in its place, though
the callee may have kept what it did. In mode "skip" it is "canceled", at once: Crossbar answers
nothing at all, then or later.
"""

from autobahn.wamp import message
from autobahn.wamp.exception import ApplicationError
from crossbar.router.dealer import Dealer, _can_cancel

from component import guard

take_yield, take_cancel = Dealer.processYield, Dealer.processCancel


def install():
    """Replace methods of Crossbar's, in every realm of this process; call it after the guard's."""
    Dealer.processYield = answered(take_yield)
    # In place of the guard's own, which this one calls.
    Dealer.processInvocationError = answered(guard.error_of_callee)
    Dealer.processCancel = cancel_of_call


def cancel_of_call(self, session, cancel):
    """Handle a CANCEL, and answer the call where its callee is not interrupted."""
    invocation = self._invocations_by_call.get((session._session_id, cancel.request))
    first = invocation is not None and not invocation.canceled
    take_cancel(self, session, cancel)
    skipped = cancel.mode == message.Cancel.SKIP
    if first and (skipped or not _can_cancel(invocation.callee, "callee")):
        guard.refuse(self, session, cancel.request, ApplicationError.CANCELED)


def answered(process):
    """Return how the dealer takes the answer to an invocation, as if it had not been cancelled."""

    def take(self, session, answer):
        invocation = self._invocations.get(answer.request)
        waited = invocation is not None and invocation.callee is session
        # only mode "kill" has the error wait; in the others the caller has it by now
        if waited and invocation.canceled and invocation.error_msg is not None:
            invocation.canceled, invocation.error_msg = False, None
        process(self, session, answer)

    return take
