"""
What became of a call that was cancelled in mode "kill": what its callee answered.

WAMP has the caller wait for that answer, and Crossbar puts its own "canceled" in its place, though
the callee may have kept what it did.
"""

from crossbar.router.dealer import Dealer

from component import guard

take_yield = Dealer.processYield


def install():
    """Have answers reach their callers, in every realm of this process; after the guard."""
    Dealer.processYield = answered(take_yield)
    Dealer.processInvocationError = answered(guard.error_of_callee)


def answered(process):
    """Return how the dealer takes the answer to an invocation, as if nobody had cancelled it."""

    def take(self, session, answer):
        invocation = self._invocations.get(answer.request)
        waited = invocation is not None and invocation.callee is session
        # only mode "kill" has the error wait; in the others the caller has it by now
        if waited and invocation.canceled and invocation.error_msg is not None:
            invocation.canceled, invocation.error_msg = False, None
        process(self, session, answer)

    return take
