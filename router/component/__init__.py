"""
The part of the service that runs in the router's own process: `component.Component`.

It guards calls against other clients (`guard`), lets the answer to a cancelled call reach its
caller (`kill`), keeps back calls of a client with very many under way (`pace`), drops a service that
stands still (`alive`), reports to the service how many bytes the router still holds for a session
(`backlog`), makes texts of debug lines only where they are read (`lazy`), and answers calls while no
service is joined.

It relies on private names of Crossbar's, so it starts only with the versions that it was tested
with; and Crossbar opens no transport before its components have started.
"""

import gc

from autobahn.twisted.wamp import ApplicationSession
from autobahn.wamp import message
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import RegisterOptions

from component import guard, kill, lazy, pace
from component.alive import Alive
from component.backlog import held

UNAVAILABLE = "rowcast.error.unavailable"
"""The URIs of errors are the same whatever the prefix is."""


class Component(ApplicationSession):
    """
    Registers `<prefix>.router.backlog(session)` and `<prefix>.router.alive()` for its own role, and the
    prefix without its dot: the router prefers the service's registration, which is longer, while there is one.

    The component's `extra` has the `prefix`; `connections`, how many the services have to the
    database, where that is more than 16; and `versions` where Crossbar and autobahn are others than
    those in `guard.TESTED`.
    """

    def __init__(self, config):
        super().__init__(config)
        self.absent = None
        self.services = Alive(self.drop)
        # Here, since an error here ends the node; one after the session stands does not.
        guard.install(config.extra.get("versions", {}))
        kill.install()
        pace.install(config.extra.get("connections", 0))
        lazy.install()

    async def onJoin(self, details):
        """Register the procedures."""
        self.role = details.authrole
        # A collection of all that the router has loaded takes a tenth of a second, in which it
        # routes nothing; large messages bring it about.
        gc.collect()
        gc.freeze()
        # Python's own (700, 10, 10) look through calls that wait, which are no garbage: a tenth of
        # what a call costs the router.
        gc.set_threshold(5_000, 20, 10)
        prefix = self.config.extra["prefix"]
        options = RegisterOptions(details_arg="details")
        try:
            await self.register(self.backlog, f"{prefix}.router.backlog", options=options)
            await self.register(self.alive, f"{prefix}.router.alive", options=options)
            absent = await self.register(nobody, prefix, options=RegisterOptions(match="prefix"))
            self.absent = absent.id
        except ApplicationError as error:
            # Not raised: the node would go on all the same, and the guard works without them.
            self.log.error("the component cannot register: {error}", error=error)
        self.services.start()

    def onLeave(self, details):
        """Stop looking for services that stand still."""
        self.services.stop()
        super().onLeave(details)

    def onMessage(self, msg):
        """Handle a message, or refuse a call."""
        refused = self.refused(msg) if isinstance(msg, message.Invocation) else None
        if refused is None:
            super().onMessage(msg)
        else:
            # At once: a session in the router's process cannot be told that a caller has cancelled.
            uri, args, kwargs = refused
            kind = message.Invocation.MESSAGE_TYPE
            self._transport.send(message.Error(kind, msg.request, uri, args=args, kwargs=kwargs))

    def refused(self, call):
        """Return the error that a call gets from us, if any."""
        if call.registration == self.absent:
            if call.procedure.startswith(f"{self.config.extra['prefix']}."):
                return (
                    UNAVAILABLE,
                    ["the service is not there"],
                    {"retry": True, "retry_after": 1.0},
                )
            why = f"no callee registered for procedure <{call.procedure}>"
            return ApplicationError.NO_SUCH_PROCEDURE, [why], None
        if call.forward_for:
            # Who forwards a call says itself who called.
            return ApplicationError.NOT_AUTHORIZED, ["this session may not call for others"], None
        return None

    def onUserError(self, fail, msg):
        """Log nothing: a refusal is the caller's."""

    def backlog(self, session, details):
        """Return the bytes that wait for a session to take them, less those in the kernel."""
        self.check(details)
        found = self.session(session)
        return held(found) if found is not None else 0

    def alive(self, details):
        """Record a sign of life of a service, which from now on has to go on giving some."""
        self.check(details)
        self.services.heard(details.caller)

    def check(self, details):
        """Raise an error for a caller that is none of our services."""
        if details.caller_authrole != self.role:
            raise ApplicationError(ApplicationError.NOT_AUTHORIZED)

    def session(self, id):
        """Return the session with an ID, if there is one."""
        return self._transport._router._session_id_to_session.get(id)

    def drop(self, id):
        """Close the connection of a service that stands still."""
        found = self.session(id)
        if found is not None and found._transport is not None:
            self.log.warn("a service gives no sign of life: session {id} is dropped", id=id)
            found._transport.transport.abortConnection()


def nobody():
    """Do nothing: calls of the absent service are answered before they come here."""
