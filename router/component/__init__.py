"""
The part of Rowcast that runs in the router's process: `component.Component`.

It protects calls from other clients, and passes the answer to a cancelled call on to its caller (`guard`);
queues calls of a client with very many in progress (`pace`); drops a service that hangs (`alive`); formats
debug messages only if they are logged (`lazy`); and forwards results of the service without decoding them
(`forward`). `Component` itself reports to the service how many bytes the router buffers for a session, which
Crossbar keeps in memory until a slow caller reads them, and answers calls while no service is joined.

It relies on private names of Crossbar, so it starts only with the versions that it was tested with. If it
does not start, Crossbar opens no transport.
"""

import gc

from autobahn.twisted.wamp import ApplicationSession
from autobahn.wamp import message
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import RegisterOptions

from component import forward, guard, lazy, pace
from component.alive import Alive

UNAVAILABLE = "rowcast.error.unavailable"
"""URIs of errors do not depend on the configured prefix."""


class Component(ApplicationSession):
    """
    Registers `<prefix>.router.backlog(session)` and `<prefix>.router.alive()` for sessions of its own role,
    and the prefix without its dot, to answer calls while no service is joined. While one is, the router
    prefers the service's registration, which is longer.

    The component's `extra` has the `prefix`; `connections`, the number of database connections of the
    services, if more than 16; and `versions`, if Crossbar or autobahn have other versions than in
    `guard.TESTED`.
    """

    def __init__(self, config):
        super().__init__(config)
        self.absent = None
        self.services = Alive(self.drop, self.read_at)
        # Here, because an error in the constructor ends the node, but not one after the session has joined.
        guard.install(config.extra.get("versions", {}))
        pace.install(config.extra.get("connections", 0))
        lazy.install()
        forward.install()

    async def onJoin(self, details):
        """Register the procedures."""
        self.role = details.authrole
        forward.trust(self._transport._router._dealer, self.role)
        # A full collection of all that the router has loaded takes a tenth of a second, during which it
        # routes nothing; large messages cause one.
        gc.collect()
        gc.freeze()
        # With Python's defaults (700, 10, 10), collections examine the calls in progress, which are not
        # garbage: a tenth of the CPU time of a call in the router.
        gc.set_threshold(5_000, 20, 10)
        prefix = self.config.extra["prefix"]
        options = RegisterOptions(details_arg="details")
        try:
            await self.register(self.backlog, f"{prefix}.router.backlog", options=options)
            await self.register(self.alive, f"{prefix}.router.alive", options=options)
            absent = await self.register(nobody, prefix, options=RegisterOptions(match="prefix"))
            self.absent = absent.id
        except ApplicationError as error:
            # Not raised: the node would keep running anyway, and the guard works without these procedures.
            self.log.error("the component cannot register: {error}", error=error)
        self.services.start()

    def onLeave(self, details):
        """Stop checking for services that hang."""
        self.services.stop()
        super().onLeave(details)

    def onMessage(self, msg):
        """Handle a message; answer a call that is to be refused."""
        refused = self.refused(msg) if isinstance(msg, message.Invocation) else None
        if refused is None:
            super().onMessage(msg)
        else:
            # Answered at once, without an endpoint: Crossbar cannot send an INTERRUPT to a session in its
            # own process.
            uri, args, kwargs = refused
            kind = message.Invocation.MESSAGE_TYPE
            self._transport.send(message.Error(kind, msg.request, uri, args=args, kwargs=kwargs))

    def refused(self, call):
        """Return the error with which to answer a call; None if an endpoint answers it."""
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
            # A session that forwards a call can name any session as the caller.
            return ApplicationError.NOT_AUTHORIZED, ["this session may not call for others"], None
        return None

    def onUserError(self, fail, msg):
        """Log nothing: endpoints raise errors only to refuse a call."""

    def backlog(self, session, details):
        """Return how many bytes are buffered for a session, without those in the kernel."""
        self.check(details)
        found = self.session(session)
        return held(found) if found is not None else 0

    def alive(self, details):
        """Record a heartbeat of a service, which has to send more from now on."""
        self.check(details)
        self.services.heard(details.caller)

    def check(self, details):
        """Raise an error if the caller is not a service."""
        if details.caller_authrole != self.role:
            raise ApplicationError(ApplicationError.NOT_AUTHORIZED)

    def session(self, id):
        """Return the session with an ID; None if there is none."""
        return self._transport._router._session_id_to_session.get(id)

    def read_at(self, id):
        """Return when data of a session was last read by RawSocket, on the monotonic clock; else 0."""
        return getattr(getattr(self.session(id), "_transport", None), "read_at", 0.0)

    def drop(self, id):
        """Close the connection of a service that hangs."""
        found = self.session(id)
        if found is not None and found._transport is not None:
            self.log.warn("a service sends no heartbeats: session {id} is dropped", id=id)
            found._transport.transport.abortConnection()


def nobody():
    """Do nothing: `onMessage` answers the calls of this registration."""


def held(session):
    """Return how many bytes are buffered for a session's client; 0 if its transport has no buffer."""
    transport = getattr(session._transport, "transport", None)
    count = 0
    # A TLS transport wraps that of TCP; both have buffers.
    while transport is not None:
        count += len(getattr(transport, "dataBuffer", b"")) - getattr(transport, "offset", 0)
        count += getattr(transport, "_tempDataLen", 0)
        count += sum(map(len, getattr(transport, "_appSendBuffer", ())))
        transport = getattr(transport, "transport", None)
    return count
