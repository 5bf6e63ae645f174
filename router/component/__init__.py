"""
What the service has in the router's own process: `component.Component`, beside a worker's realms.

It guards calls against other clients (`guard`) and tells the service how much the router still
holds for a session (`backlog`).

It stands on names of Crossbar's that are not promised, so it starts with the versions alone that
it was tested with; and Crossbar opens no door before its components have started.
"""

import gc

from autobahn.twisted.wamp import ApplicationSession
from autobahn.wamp import message
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import RegisterOptions

from component import guard
from component.backlog import held


class Component(ApplicationSession):
    """
    Registers `<prefix>.router.backlog(session)` for its own role.

    The component's `extra` has the `prefix`, and `versions` where Crossbar and autobahn are
    others than those in `guard.TESTED`.
    """

    def __init__(self, config):
        super().__init__(config)
        # Here, since an error here ends the node; one after the session stands does not.
        guard.install(config.extra.get("versions", {}))

    async def onJoin(self, details):
        """Register."""
        self.role = details.authrole
        # A collection of all that the router has loaded takes a tenth of a second, in which it
        # routes nothing; large messages bring it about.
        gc.collect()
        gc.freeze()
        uri = f"{self.config.extra['prefix']}.router.backlog"
        try:
            await self.register(self.backlog, uri, options=RegisterOptions(details_arg="details"))
        except ApplicationError as error:
            self.log.error("the component cannot register: {error}", error=error)

    def onMessage(self, msg):
        """Take a message; who forwards a call says itself who called, so that none is taken."""
        if isinstance(msg, message.Invocation) and msg.forward_for:
            refused = ApplicationError.NOT_AUTHORIZED
            self._transport.send(
                message.Error(message.Invocation.MESSAGE_TYPE, msg.request, refused)
            )
            return
        super().onMessage(msg)

    def onUserError(self, fail, msg):
        """Keep quiet: a refusal is the caller's."""

    def backlog(self, session, details):
        """Return the bytes that wait for a session to take them, less those in the kernel."""
        if details.caller_authrole != self.role:
            raise ApplicationError(ApplicationError.NOT_AUTHORIZED)
        found = self._transport._router._session_id_to_session.get(session)
        return held(found) if found is not None else 0
