"""
The callee: from an invocation to the dispatcher and back.

One prefix registration takes all calls, and the dispatcher finds the procedure by its name. So the service
answers a call of an unknown name, with the nearest known one, and a changed catalog needs no registration.

Each process has two more registrations of its own: `<prefix>.tx.<process>.…` for transactions and uploads,
which stay in the process between calls; and `<prefix>.tx.<process>`, at which other processes pass on calls
that came to the wrong one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import accumulate
from typing import Any

from autobahn.exception import PayloadExceededError
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import CallResult, RegisterOptions, SessionDetails
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as Late
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from service.api.call import CallState, OngoingCall, Send
from service.db.worker import JOB_OWNER
from service.errors import DETAILS as DETAILS_OF_ERRORS
from service.errors import (
    Canceled,
    Conflict,
    InvalidArgument,
    NotAuthorized,
    OutcomeUnknown,
    RelayedError,
    ServiceError,
    Unavailable,
)
from service.payload import WithReceipt, check
from service.request.arguments import Caller
from service.request.names import FN
from service.waiting import CooperativeDeferred, cancel_timer
from service.wamp.application_errors import (
    PROCEDURE_EXISTS,
    PROCEDURE_EXISTS_OTHERWISE,
    application_error,
)
from service.wamp.backpressure import Account, Accounts, Bounds, NextPart, Pace
from service.wamp.client import SessionObserver
from service.wamp.session import DETAILS, Details, SafeSession

log = Logger()

UNREGISTER_TIMEOUT = 2.0
"""Seconds to wait for the router's UNREGISTERED."""
CANCEL_TIMEOUT = 2.0
"""Seconds to wait for cancelled calls to end."""
CANCEL_AGAIN_AFTER = 0.1
"""Seconds until a call is cancelled again that still runs, because what it awaited had just finished."""

CALLEE_GONE = "callee disconnected from in-flight request"
"""Crossbar's error message for a call whose callee was lost."""
STOPPED = "the service that had the upload has stopped"

LEFT_BEHIND = "the service has stopped before the call had ended: a change may be kept"

Answer = Callable[
    [str, Sequence[Any], Mapping[str, Any], Caller, CallState, Send | None], Awaitable[Any]
]
"""
The dispatcher. Its parameters: name without prefix, arguments, keyword arguments, caller, state of the call,
and a function that sends parts of the answer, if the caller accepts any. It returns a wire-safe result.
"""


Forwarded = Callable[[str, Sequence[Any], Mapping[str, Any], int | None], Awaitable[Any]]
"""The dispatcher of calls that were passed on: name, arguments, keyword arguments, caller's session id."""


def _send_part(
    session: SafeSession, account: Account, progress: Callable[[Any], None], part: Any
) -> Awaitable[None]:
    """Send a part of an answer at once; return an awaitable that returns when the next may be sent."""
    check(part)
    session.sizes.weigh = account.weigh
    progress(part)
    assert account.room is not None
    return account.room


_BOUNDS = [0.0001 * 2 ** (step / 4) for step in range(81)]
"""
Upper bounds of the histogram's buckets in seconds, from 0.1 ms to 105 s.

With four buckets to a doubling, a quantile is exact within 19 %.
"""

QUANTILES = (0.5, 0.9, 0.95, 0.99)

UNKNOWN = "unknown"
"""Verb under which unknown names are counted: callers can make up any number of them."""

TX = "tx"
"""Verb of calls in transactions, each of which has a URI of its own."""

FORWARDED = "forwarded"
"""Verb of calls that another process has passed on, and has counted under their own verb."""


class Meter:
    """
    Counts the calls of one service since its start.

    Attributes:
        verbs: The verbs of relations.
        procedures: Names of the procedures of the service and of its application.
    """

    verbs: Container[str] = ()
    procedures: Container[str] = ()

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self._buckets: dict[str, list[int]] = {}
        self._errors: dict[str, Counter[str]] = {}

    def end(self, name: str, outcome: str, seconds: float, error: str = "") -> None:
        """
        Count a call that has ended.

        Args:
            name: Name of the procedure, without the prefix.
            outcome: How the call ended: "answered", "refused", "canceled" or "failed".
            seconds: Its duration.
            error: URI of its error.
        """
        self.outcomes[outcome] += 1
        verb = name.rpartition(".")[2]
        if name in self.procedures:
            verb = name
        elif f".{FN}." in f".{name}":
            verb = FN
        elif name.startswith(f"{TX}."):
            verb = TX if name.count(".") > 1 else FORWARDED
        elif verb not in self.verbs:
            verb = UNKNOWN
        buckets = self._buckets.get(verb)
        if buckets is None:
            # One bucket more than bounds, for longer calls.
            buckets = self._buckets[verb] = [0] * (len(_BOUNDS) + 1)
            self._errors[verb] = Counter()
        buckets[bisect_left(_BOUNDS, seconds)] += 1
        if error:
            self._errors[verb][error] += 1

    def refused(self) -> None:
        """Count a call that was refused before it began."""
        self.outcomes["refused"] += 1

    def snapshot(self) -> dict[str, Any]:
        """Return the figures, latencies in seconds."""
        every = [sum(counts) for counts in zip(*self._buckets.values(), strict=True)]
        return {
            "outcomes": dict(self.outcomes),
            "latency": _latency(every),
            "verbs": {
                verb: {
                    "calls": sum(buckets),
                    "errors": dict(self._errors[verb]),
                    "latency": _latency(buckets),
                }
                for verb, buckets in sorted(self._buckets.items())
            },
        }


def _latency(buckets: Sequence[int]) -> dict[str, float | None]:
    return {f"p{part * 100:g}": quantile(buckets, part) for part in QUANTILES}


def quantile(buckets: Sequence[int], part: float) -> float | None:
    """Return the seconds within which a fraction of the calls ended; None if there are no calls."""
    wanted = part * sum(buckets)
    if not wanted:
        return None
    # The last bucket has no upper bound; report the highest bound.
    return _BOUNDS[min(bisect_left(list(accumulate(buckets)), wanted), len(_BOUNDS) - 1)]


class _ActiveCall:
    """
    What is kept of a call until it ends; of an ongoing call, such as a watch, this is all that is kept.

    Attributes:
        ongoing: The dispatcher's result, if the call is ongoing.
        answer: Deferred that fires when the call ends, if it is ongoing.
        seconds: Time until the call was answered, or turned out ongoing: how long its caller then lets
            it last is no latency.
        failed: URI of its error.
    """

    __slots__ = (
        "account",
        "answer",
        "callee",
        "failed",
        "ongoing",
        "seconds",
        "session",
        "size",
        "uri",
    )
    ongoing: OngoingCall
    answer: CooperativeDeferred
    seconds: float

    def __init__(
        self, callee: Callee, session: SafeSession, account: Account, size: int, uri: str
    ) -> None:
        self.callee = callee
        self.session = session
        self.account = account
        self.size = size
        self.uri = uri
        self.failed = ""

    def keep_open(self, answer: CooperativeDeferred) -> None:
        """Keep the call open, and answer it when it ends."""
        self.answer = answer
        answer.request = self._cancel
        self.ongoing.follow(self._end_ongoing)

    def _cancel(self) -> None:
        self.ongoing.end(CancelledError())

    def _end_ongoing(self, error: Exception) -> None:
        self.callee._end_ongoing(self, error)


class Callee(SessionObserver):
    """
    Passes the calls of one prefix to the dispatcher.

    Args:
        reactor: Runs timers, and measures latencies.
        answer: The dispatcher.
        prefix: Prefix of all procedures.
        shared: Whether to register with round-robin invocation, so that several services share the calls.
            If not, a later service takes the prefix over, so that a half-dead predecessor does not keep it.
        drain: Seconds that running calls get to end when the service stops.
        patience: Seconds for which a caller of progressive results may read none of them.
        bounds: Limits on calls in progress.
        freed: Called when a caller has read answers, so that more work may begin.

    Attributes:
        wrote: Called with a session id and the id of the transaction whose receipt it was sent.
        drained: Called when no further calls will come, so that ongoing calls have to end.
    """

    wrote: Callable[[int | None, str], None] = staticmethod(lambda session, tx: None)
    drained: Callable[[], None] = staticmethod(lambda: None)

    def __init__(
        self,
        reactor: IReactorTime,
        answer: Answer,
        prefix: str,
        shared: bool = False,
        drain: float = 20.0,
        patience: float = 10.0,
        bounds: Bounds = Bounds(),  # noqa: B008 - frozen
        freed: Callable[[], None] = lambda: None,
    ) -> None:
        self.meter = Meter()
        self._reactor = reactor
        self._answer = answer
        self._prefix = prefix
        self._head = f"{prefix}."
        self._shared = shared
        self._process = ""
        self._forwarded: Forwarded | None = None
        self._drain = drain
        self._draining = self._cancelling_late = False
        self._patience = patience
        self._pace: Pace | None = None
        self._accounts = Accounts(reactor, bounds, self._buffered, freed)
        self._session: SafeSession | None = None
        self._running: dict[CooperativeDeferred, str] = {}  # with their URIs
        self._idle: Deferred[None] | None = None
        self._registration: Any = None

    def register_own_uris(self, process: str, forwarded: Forwarded) -> None:
        """
        Register this process's own URIs from the next session on.

        Args:
            process: Id of the process.
            forwarded: Dispatcher of calls that other processes pass on.
        """
        self._process, self._forwarded = process, forwarded

    @property
    def in_progress(self) -> int:
        """Return the number of calls in progress."""
        return self._accounts.calls

    def stats(self) -> dict[str, Any]:
        """Return the figures of calls for `stats`, latencies in seconds."""
        return {"in_progress": self.in_progress, **self.meter.snapshot()}

    @property
    def serving(self) -> bool:
        """Return whether the service receives calls."""
        return self._registration is not None and not self._draining

    async def joined(self, session: SafeSession, details: SessionDetails) -> None:
        """Register the prefix."""
        self._draining = self._cancelling_late = False
        self._session = session
        self._pace = Pace(self._reactor, session, f"{self._head}router.backlog", self._patience)
        session.full, session.refused = self._accounts.full, partial(self._refused, session)
        receive = partial(self._receive, session, details.realm or "")
        if self._process:
            # Before the shared prefix, since the first call to that may begin a transaction, whose next
            # call needs this registration.
            own = f"{self._head}tx.{self._process}"
            options = RegisterOptions(match="prefix", details_arg=DETAILS)
            await session.register(receive, f"{own}.", options=options)
            receive_forwarded = partial(self._receive_forwarded, session, details)
            await session.register(
                receive_forwarded, own, options=RegisterOptions(details_arg=DETAILS)
            )
        try:
            self._registration = await self._register(session, receive, False)
        except ApplicationError as error:
            if error.error not in {PROCEDURE_EXISTS, PROCEDURE_EXISTS_OTHERWISE}:
                raise
            log.warn("taking {prefix} over from another session", prefix=self._head)
            self._registration = await self._register(session, receive, True)

    def displaced(self, registration: int) -> None:
        """Forget the registration if another service took it over; it is not taken back."""
        if self._registration is not None and registration == self._registration.id:
            self._registration = None
            log.warn("another session took {prefix} over", prefix=self._head)

    async def leaving(self) -> None:
        """Refuse further calls, wait for running ones, and cancel those that outlast the drain."""
        if self._shared and self._registration is not None:
            # The other services get further calls; those already sent to this one are still answered.
            registration, self._registration = self._registration, None
            with suppress(Late, ApplicationError):
                await registration.unregister().addTimeout(UNREGISTER_TIMEOUT, self._reactor)
        # Not before UNREGISTERED: no other service gets the calls that the router sent before it.
        self._draining = True
        if self._pace is not None:
            self._pace.stop()
        self.drained()
        if not self.in_progress:
            return
        self._idle = Deferred()
        late = self._reactor.callLater(self._drain, self._cancel_late)
        try:
            await self._idle.addTimeout(self._drain + CANCEL_TIMEOUT, self._reactor)
        except Late:
            self._idle = None
            log.warn("{calls} calls do not end, and are abandoned", calls=self.in_progress)
            for answer in list(self._running):
                answer.errback(application_error(OutcomeUnknown(LEFT_BEHIND), "leaving"))
        finally:
            cancel_timer(late)

    def left(self) -> None:
        """Cancel all calls, because no caller can be answered any more."""
        self._registration = self._session = self._pace = None
        self._accounts.clear()
        self._cancel()

    def departed(self, session: int) -> None:
        """Forget a caller that has left the router."""
        self._accounts.forget(session)

    async def _register(self, session: SafeSession, receive: Any, force: bool) -> Any:
        options = RegisterOptions(
            # A registration for each of 15,000 procedures took 2.5 s at each join.
            match="prefix",
            invoke="roundrobin" if self._shared else None,
            force_reregister=True if force else None,
            details_arg=DETAILS,
        )
        return await session.register(receive, self._head, options=options)

    def _receive(
        self,
        session: SafeSession,
        realm: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        details: Details,
    ) -> Deferred[Any]:
        """
        Begin a call.

        Cancelling the returned Deferred cancels the dispatcher's coroutine, repeatedly until it ends. The
        coroutine's outcome is the answer even then, because a write may have been committed.
        """
        caller = Caller(details.caller, details.caller_authid, details.caller_authrole, realm)
        name, state = (details.procedure or "").removeprefix(self._head), CallState(encodes=True)
        answer = partial(self._answer, name, args, kwargs, caller, state)
        return self._begin(session, details, state, answer)

    def _receive_forwarded(
        self,
        session: SafeSession,
        own: SessionDetails,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        details: Details,
    ) -> Deferred[Any]:
        """Begin a call that another process of the service has passed on; refuse all other callers."""

        async def answer(progress: Send | None = None) -> Any:
            # A client with the service's authrole could register the service's procedures anyway, so
            # the authrole is enough to recognize the service.
            role = details.caller_authrole
            if self._forwarded is None or role is None or role != own.authrole:
                raise NotAuthorized("only the service itself calls this")
            name, given, named, caller = args
            return await self._forwarded(name, given, named, caller)

        return self._begin(session, details, CallState(), answer)

    async def forward(
        self,
        process: str,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        caller: Caller,
    ) -> Any:
        """
        Pass a call on to the process that has its transaction or upload; return its answer.

        Raises:
            Conflict: The process is gone.
            OutcomeUnknown: The process was lost during the call, which may have completed an upload.
            RelayedError: The process has refused the call.
        """
        session = self._session
        if session is None:
            raise Unavailable("the router is gone")
        uri = f"{self._head}tx.{process}"
        try:
            # As two arguments: autobahn would take a caller's keyword `options` as its own.
            result = await session.call_through(uri, name, list(args), dict(kwargs), caller.session)
            if isinstance(result, CallResult):
                return WithReceipt(result.results[0], result.kwresults["tx"])
            return result
        except PayloadExceededError:
            raise InvalidArgument(
                "the call is too large to be passed on", hint="send fewer rows in each call"
            ) from None
        except ApplicationError as error:
            words = str(error.args[0]) if error.args else ""
            # All cancelled calls have the same error URI; only the message tells this case.
            if words == CALLEE_GONE:
                if kwargs.get("done"):
                    raise OutcomeUnknown(f"{STOPPED}; what it was to keep may be kept") from error
                raise Conflict(f"{STOPPED}; nothing is kept", reason="stopped") from error
            known = {key: value for key, value in error.kwargs.items() if key in DETAILS_OF_ERRORS}
            raise RelayedError(error.error, words, known) from error

    def _begin(
        self,
        session: SafeSession,
        details: Details,
        state: CallState,
        answer: Callable[[Send | None], Awaitable[Any]],
    ) -> Deferred[Any]:
        """Begin a call, and return a Deferred that can be cancelled."""
        call = self._call if details.progress is None else self._in_parts
        running = Deferred.fromCoroutine(call(session, details, state, answer))
        # A call that has already ended needs no Deferred that can be cancelled.
        if running.called and not isinstance(running.result, _ActiveCall):
            return running
        outcome = CooperativeDeferred()
        outcome.request = partial(self._cancel_again, running)
        self._running[outcome] = details.procedure or ""
        running.addBoth(self._finished, outcome)
        return outcome

    def _refused(self, session: SafeSession, caller: int | None) -> None:
        self.meter.refused()
        # The refusal is sent right after this.
        session.sizes.weigh = self._accounts.of(caller).weigh

    def _cancel_again(self, running: Deferred[Any]) -> None:
        # `called` does not mean finished: a callback may have returned a Deferred, which is awaited.
        if not running.called or isinstance(running.result, Deferred):
            running.cancel()
            self._reactor.callLater(CANCEL_AGAIN_AFTER, self._cancel_again, running)

    def _finished(self, result: Any, answer: CooperativeDeferred) -> None:
        if isinstance(result, _ActiveCall):
            result.keep_open(answer)
            return
        self._running.pop(answer, None)
        if not answer.called:  # `leaving` may have answered it already
            answer.errback(result) if isinstance(result, Failure) else answer.callback(result)

    async def _in_parts(
        self,
        session: SafeSession,
        details: Details,
        state: CallState,
        answer: Callable[[Send | None], Awaitable[Any]],
    ) -> Any:
        """Run a call whose caller accepts parts of the answer, with back-pressure."""
        account, progress = self._accounts.of(details.caller), details.progress
        assert progress is not None
        if account.room is None:
            assert self._pace is not None
            account.room = NextPart(self._pace, account)
        send = partial(_send_part, session, account, progress)
        with session.outflow():
            result = await self._call(session, details, state, answer, send)
            if isinstance(result, _ActiveCall):
                session.outflow().enter()
            return result

    async def _call(
        self,
        session: SafeSession,
        details: Details,
        state: CallState,
        answer: Callable[[Send | None], Awaitable[Any]],
        progress: Send | None = None,
    ) -> Any:
        """Run a call when its caller's session may, and count it until it ends."""
        began, uri = self._reactor.seconds(), details.procedure or ""
        # Read at once, because the next message of the connection replaces it.
        size = session.sizes.received
        # Counted before its turn, because a stopping service waits for waiting calls, too.
        account = self._accounts.enter(details.caller, size)
        call = _ActiveCall(self, session, account, size, uri)
        ended, running = True, False
        error: Exception | None = None
        try:
            # Only the dispatcher knows how a transaction has ended, which its holder may ask for.
            if self._draining and not uri.startswith(f"{self._head}tx."):
                raise Unavailable("the service is stopping")
            turn = self._accounts.begin(account)
            if turn is not None:
                await turn
            running = True
            JOB_OWNER.set(account)
            result = await answer(progress)
            if isinstance(result, OngoingCall):
                ended, call.ongoing = False, result
                return call
            if isinstance(result, WithReceipt):
                return self._receipted(details.caller, result)
            if not state.plain:
                check(result)
            return result
        # Twisted's CancelledError is an Exception (asyncio's is not), and is caught here as well.
        except Exception as failure:
            error = failure
            refused = self._refusal(call, failure)
            if refused is None:
                return None
            raise refused from None
        finally:
            call.seconds = self._reactor.seconds() - began
            # An ongoing call keeps no other call of its session from running.
            if running:
                self._accounts.end(account)
            if ended:
                self._count_end(call, error)

    def _refusal(self, call: _ActiveCall, error: Exception) -> ApplicationError | None:
        """Return the WAMP error for an exception of a call; None if the session is lost."""
        if call.session.lost:
            return None
        if self._cancelling_late and isinstance(error, CancelledError | Canceled):
            # Cancelled by the stop, not by the caller: nothing is kept, and another service may run it.
            error = Unavailable("the service is stopping")
        refused = application_error(error, self._loggable(call.uri))
        call.failed = refused.error
        return refused

    def _loggable(self, uri: str) -> str:
        # The URI of a transaction is its holder's secret, and must not be logged.
        return f"{self._head}tx" if uri.startswith(f"{self._head}tx.") else uri

    def _count_end(self, call: _ActiveCall, error: Exception | None) -> None:
        """Count a call that has ended."""
        outcome = "answered" if error is None else _outcome(error)
        name = call.uri.removeprefix(self._head)
        self.meter.end(name, outcome, call.seconds, call.failed)
        self._accounts.leave(call.account, call.size)
        call.session.sizes.weigh = call.account.weigh  # the answer is sent right after this
        if self._idle is not None and not self.in_progress:
            # In the next turn of the reactor, because of that answer.
            self._reactor.callLater(0, self._idle.callback, None)
            self._idle = None

    def _end_ongoing(self, call: _ActiveCall, error: Exception) -> None:
        """Answer an ongoing call that has ended."""
        refused = self._refusal(call, error)
        self._count_end(call, error)
        call.session.outflow().leave()
        self._finished(None if refused is None else Failure(refused), call.answer)

    def _receipted(self, caller: int | None, result: WithReceipt) -> CallResult:
        check(result.answer)
        if result.tx is not None:
            self.wrote(caller, result.tx)
        return call_result(result)

    async def _buffered(self, caller: int | None) -> int:
        """Return how many bytes the router buffers for a caller."""
        return 0 if self._pace is None else await self._pace.held(caller)

    def _cancel_late(self) -> None:
        uris = sorted(set(map(self._loggable, self._running.values())))
        log.info("cancelling calls that outlast the drain: {uris}", uris=", ".join(uris[:5]))
        self._cancelling_late = True
        self._cancel()

    def _cancel(self) -> None:
        # A copy, because a call that ends when it is cancelled removes itself from the set.
        for running in list(self._running):
            running.cancel()


def call_result(result: WithReceipt) -> CallResult:
    """Return an answer with a receipt as the result that autobahn sends."""
    return CallResult(result.answer, tx=result.tx)


def _outcome(error: Exception) -> str:
    if isinstance(error, CancelledError):
        return "canceled"
    return "refused" if isinstance(error, ServiceError) else "failed"
