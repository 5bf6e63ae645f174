"""
How much the router still holds for a session, for whoever sends it much.

Crossbar takes what a callee sends, and keeps in memory what a slow caller does not take. This
component, in the router's own process, tells the service how much that is for one session, so
that a stream can wait. It answers at once, and only its own role.

It stands on names of Crossbar's that are not promised (`requirements.lock` pins the version):
where one is gone, it answers 0, and streams are paced by the router alone.
"""

import gc

from autobahn.twisted.wamp import ApplicationSession
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import RegisterOptions


class Backlog(ApplicationSession):
    """Registers `<prefix>.router.backlog(session)`; the prefix is in the component's `extra`."""

    async def onJoin(self, details):
        """Register."""
        self.role = details.authrole
        # A collection of all that the router has loaded takes a tenth of a second, in which it
        # routes nothing; large messages bring it about.
        gc.collect()
        gc.freeze()
        uri = f"{self.config.extra['prefix']}.router.backlog"
        await self.register(self.backlog, uri, options=RegisterOptions(details_arg="details"))

    def onUserError(self, fail, msg):
        """Keep quiet: a refusal is the caller's."""

    def backlog(self, session, details):
        """Give the bytes that wait for a session to take them, less those in the kernel."""
        if details.caller_authrole != self.role:
            raise ApplicationError(ApplicationError.NOT_AUTHORIZED)
        try:
            found = self._transport._router._session_id_to_session.get(session)
            return held(found._transport.transport) if found is not None else 0
        except AttributeError:
            return 0


def held(transport):
    """Count what a transport of Twisted's, and those under it, have not yet written."""
    count = 0
    while transport is not None:
        count += len(getattr(transport, "dataBuffer", b"")) - getattr(transport, "offset", 0)
        count += getattr(transport, "_tempDataLen", 0)
        count += sum(map(len, getattr(transport, "_appSendBuffer", ())))
        transport = getattr(transport, "transport", None)
    return count
