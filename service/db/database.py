"""
Transactions as scopes: `Database` sends every statement to the transaction its caller is in.

Which transaction that is, is a context variable: it follows a task through every await and
callback, and no other task sees it. A scope inside a scope is a savepoint. Work that should
outlive a scope must be started with a clean context (`contextvars.Context().run`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import psycopg2
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.defer import TimeoutError as Late
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from service.db.levels import Level, Savepoint, Transaction
from service.db.pool import PgPool
from service.db.session_settings import Identity
from service.db.slow import ORIGIN, Origin
from service.db.transaction import (
    RETRIES,
    Actor,
    Retries,
    atomic_txn,
    autocommit_write_txn,
    begin_statement,
    nested_txn,
    procedure_txn,
    single_txn,
    statement_txn,
)
from service.db.worker import Job
from service.errors import StatementTimeout

STEPS = 50
"""Steps of some 20 µs between two turns of the reactor: a millisecond."""


class Database:
    """
    The one road to the database.

    Args:
        pool: Started and closed by its owner.
        reactor: For the pauses between attempts.
    """

    def __init__(self, pool: PgPool, reactor: Any) -> None:
        self.pool = pool
        self.reactor = reactor
        self._retries = Retries(reactor)
        self._level: ContextVar[Level | None] = ContextVar("rowcast_scope", default=None)
        itself = Actor()
        self._actor: ContextVar[Actor] = ContextVar("rowcast_actor", default=itself)

    @property
    def level(self) -> Level | None:
        """The transaction or savepoint that the caller is in, if any."""
        return self._level.get()

    @property
    def acting_as(self) -> Identity:
        """The identity under which the caller's statements run."""
        return self._actor.get().identity

    @contextmanager
    def identity(self, identity: Identity) -> Iterator[Actor]:
        """
        Run the statements of the body under an identity; yields the actor, which notes commits.

        Inside a transaction, too: each operation of a batch has its schema's `search_path`.
        """
        actor = Actor(identity)
        token = self._actor.set(actor)
        try:
            yield actor
        finally:
            self._actor.reset(token)

    def hold(
        self, idle: float, isolation: str | None = None, read_only: bool = False
    ) -> Transaction:
        """
        Return a transaction that its holder ends, with `commit`, `rollback` or `abandon`.

        Args:
            idle: Seconds between two statements after which the holder ends it.
            isolation: As that of `transaction`.
            read_only: Whether the server refuses writes in it.
        """
        words = begin_statement(isolation, read_only)
        return Transaction(self.pool.scheduler, words, self._actor.get(), read_only, idle)

    @contextmanager
    def inside(self, level: Level) -> Iterator[None]:
        """Run the statements of the body in a transaction that is held."""
        token = self._level.set(level)
        try:
            yield
        finally:
            self._level.reset(token)

    async def yield_to_reactor(self, at: int) -> None:
        """Yield to the reactor after every `STEPS` steps of a long loop in its thread."""
        if at % STEPS == STEPS - 1:
            await deferLater(self.reactor, 0)

    async def within(self, seconds: float | None, work: Awaitable[Any]) -> Any:
        """
        Wait for work for a while; then its query is stopped and its transaction rolled back.

        What was committed meanwhile is its result.

        Raises:
            StatementTimeout: It took longer.
        """
        if seconds is None:
            return await work
        running = deferred(work)
        running.addTimeout(seconds, self.reactor)
        try:
            return await running
        except Late as error:
            raise StatementTimeout from error

    def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        retry: bool = False,
        ending: bool = False,
        last: bool = False,
        timeout: float | None = None,
    ) -> Deferred[Any]:
        """
        Run a function in a worker: in the caller's transaction, else in autocommit.

        Args:
            function: Called with a PgConnection and `args`, in a worker thread.
            args: For the function.
            retry: Whether it may run again if the connection died under it; for reads alone.
            ending: Whether its one statement may end its transaction: the CALL of a procedure.
            last: Whether the caller's transaction ends with it: it is committed in the same job,
                and if it fails, rolled back.
            timeout: Seconds after which it is stopped.

        Raises:
            Unavailable: No connection in time; or shutting down.
            StatementTimeout: `timeout` has passed.
            OutcomeUnknown: The connection was lost while it was on its way; not for reads.
            TransactionClosed: The caller's transaction has already ended.
            psycopg2.Error: As PostgreSQL said it.
        """
        level, actor = self._level.get(), self._actor.get()
        if level is not None:
            send = level.finish if last else level.run
            return _marked(send(function, *args, actor=actor, timeout=timeout), level.read_only)
        if retry:
            job = Job(single_txn, (actor.identity, function, *args), True)
            return self.pool.scheduler.submit(job, timeout)
        how = procedure_txn if ending else autocommit_write_txn
        return self._submit(Job(how, (actor.identity, function, *args)), actor, timeout)

    def statement(
        self,
        sql: Any,
        params: Any = None,
        fetch: bool = True,
        post: Callable[..., Any] | None = None,
        retry: bool = False,
        timeout: float | None = None,
    ) -> Deferred[Any]:
        """Run one statement and return its rows, passed through `post`, else their number."""
        return self.run(statement_txn, sql, params, fetch, post, retry=retry, timeout=timeout)

    def atomic(
        self,
        function: Callable[..., Any],
        *args: Any,
        isolation: str | None = None,
        read_only: bool = False,
        retry: bool = False,
        timeout: float | None = None,
    ) -> Deferred[Any]:
        """
        Run a function in one transaction, in one go in one worker.

        Inside a transaction it runs in a savepoint, as that of `transaction`. With `retry`, which
        is for reads, it is repeated if the connection died under it.

        Raises:
            InvalidArgument: The transaction around it is isolated less than `isolation`.
            OutcomeUnknown: The connection was lost during COMMIT.
        """
        words = begin_statement(isolation, read_only)
        level, actor = self._level.get(), self._actor.get()
        if level is not None:
            work = nested_txn, isolation, read_only, function, *args
            done = level.run(*work, actor=actor, timeout=timeout)
            return _marked(done, read_only or level.read_only)
        job = Job(atomic_txn, (words, actor.identity.words, function, *args), retry)
        return _marked(self._submit(job, actor, timeout, read_only), read_only)

    def acting(
        self, function: Callable[..., Any], *args: Any, timeout: float | None = None
    ) -> Deferred[Any]:
        """Run a function that begins and commits a transaction by itself; it takes the actor, too."""
        actor = self._actor.get()
        return self._submit(Job(function, (actor, *args)), actor, timeout)

    def _submit(
        self, job: Job, actor: Actor, timeout: float | None, read_only: bool = False
    ) -> Deferred[Any]:
        """Submit a job, and tell the actor whether something may be kept of it."""
        job.commits = not (job.retry or read_only)
        done = self.pool.scheduler.submit(job, timeout)
        return actor.commits(done) if job.commits else done

    @asynccontextmanager
    async def transaction(
        self, isolation: str | None = None, read_only: bool = False, name: str = ""
    ) -> AsyncIterator[Level]:
        """
        Open a transaction for the length of the body; inside another one, a savepoint.

        It takes a worker with its first statement. The body's error rolls it back.

        Args:
            isolation: Of the transaction; the one around it has at least to have it.
            read_only: Whether the server refuses writes in the body.
            name: What the log calls it.

        Raises:
            InvalidArgument: The transaction around it is isolated less than `isolation`.
            OutcomeUnknown: The connection was lost during COMMIT.
            TransactionAborted: The body swallowed the error of a statement.
        """
        outer = self._level.get()
        words = begin_statement(isolation, read_only)
        level = (
            Savepoint(outer, isolation, read_only)
            if outer
            else Transaction(self.pool.scheduler, words, self._actor.get(), read_only)
        )
        await level.enter()
        token = self._level.set(level)
        origin = ORIGIN.get()
        if name:
            ORIGIN.set(replace(origin or Origin(), transaction=name))
        try:
            yield level
        except GeneratorExit:  # the task was dropped: nothing may be awaited any more
            # Nor is the token reset: whoever closes the generator may do so in another context,
            # where reset() raises.
            level.abandon()
            raise
        except BaseException:
            self._level.reset(token)
            await level.rollback()
            ORIGIN.set(origin)
            raise
        self._level.reset(token)
        await level.commit()
        ORIGIN.set(origin)

    def transact(
        self,
        function: Callable[..., Coroutine[Any, Any, Any]],
        *args: Any,
        isolation: str | None = None,
        read_only: bool = False,
        retries: int = RETRIES,
        timeout: float | None = None,
        name: str = "",
        kind: Hashable = None,
    ) -> Deferred[Any]:
        """
        Run a coroutine function in a `transaction`, again if PostgreSQL asks for it.

        Args:
            function: May run more than once, so it should touch nothing but the database.
            args: For the function.
            isolation: As that of `transaction`.
            read_only: Whether the server refuses writes in it.
            retries: How often to try again after 40001 and 40P01; never inside a
                transaction, where the outermost one has to be run again.
            timeout: Seconds for all of it, pauses included; then it is rolled back.
            name: What the log calls the transaction.
            kind: Equal for transactions that may meet in the same rows, so that those which are
                run again take turns; without one it is the function's code.

        Raises:
            StatementTimeout: `timeout` has passed.
            OutcomeUnknown: The connection was lost during COMMIT; that is never run again.
        """

        async def attempt() -> Any:
            async with self.transaction(isolation, read_only, name):
                return await function(*args)

        # A closure is another function in each call, and has the same code.
        kind = getattr(function, "__code__", None) if kind is None else kind
        return Deferred.fromCoroutine(self.within(timeout, self.again(attempt, retries, kind)))

    async def again(
        self,
        attempt: Callable[[], Awaitable[Any]],
        retries: int = RETRIES,
        kind: Hashable = None,
    ) -> Any:
        """Run an attempt as `Retries.run` does; inside a transaction once, as a part of that one."""
        if self._level.get() is not None:
            return await attempt()
        return await self._retries.run(attempt, retries, kind)


def _marked(done: Deferred[Any], read_only: bool) -> Deferred[Any]:
    """
    Raise the error of a write with whether it was its transaction that only reads.

    A server that takes no writes at all, a standby say, has the same error, 25006.
    """

    def mark(failure: Failure) -> Failure:
        if isinstance(failure.value, psycopg2.Error):
            failure.value.read_only = True  # type: ignore[attr-defined]
        return failure

    return done.addErrback(mark) if read_only else done


def deferred(work: Awaitable[Any]) -> Deferred[Any]:
    """Return the Deferred of anything that can be awaited; `ensureDeferred` takes less than that."""

    async def wait() -> Any:
        return await work

    return ensureDeferred(wait())
