"""
Interactive transactions, which a caller holds open between calls.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, gatherResults

from service.api.interactive import TransactionLimits
from service.api.leases import new_process
from service.errors import (
    Conflict,
    DatabaseRefused,
    InvalidArgument,
    NoSuchProcedure,
    NotAuthorized,
    NotFound,
    ServiceError,
    StatementTimeout,
    Unavailable,
    UniqueViolation,
)
from service.request.arguments import Caller
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller, serving
from tests.deferreds import failure_of, until

SCHEMA = """
CREATE SCHEMA other;
CREATE TABLE items (id int PRIMARY KEY, name text, later int UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE other.items (id int PRIMARY KEY, name text DEFAULT 'other''s');
CREATE FUNCTION other.here() RETURNS text LANGUAGE plpgsql STABLE
    AS $$ BEGIN RETURN (SELECT max(name) FROM items); END $$;
CREATE VIEW slow AS SELECT 1 AS id FROM pg_sleep(20);
CREATE FUNCTION wait(seconds float) RETURNS text LANGUAGE sql VOLATILE
    AS 'SELECT pg_sleep(seconds)::text';
CREATE TABLE guarded (id int PRIMARY KEY, name text);
CREATE FUNCTION same() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER same BEFORE UPDATE ON guarded FOR EACH ROW EXECUTE FUNCTION same();
CREATE FUNCTION pid() RETURNS int LANGUAGE sql STABLE AS 'SELECT pg_backend_pid()';
"""

ANN, BOB = (Caller(session, None, None, "realm1") for session in (1, 2))


class Held:
    """
    A transaction from the point of view of its caller.

    Args:
        db: The service.
        caller: The caller.
        uri: The URI that `transaction.begin` returned.
    """

    def __init__(self, db: DirectCaller, caller: Caller, uri: str) -> None:
        self.db = db
        self.caller = caller
        self.name = uri.removeprefix("rowcast.")

    def call(self, name: str, *args: Any, **kwargs: Any) -> Deferred[Any]:
        """Run an operation inside."""
        return self.ask("", name, list(args), kwargs)

    def ask(self, command: str, *args: Any, caller: Caller | None = None) -> Deferred[Any]:
        """Call a command of the transaction, such as commit."""
        name = f"{self.name}.{command}" if command else self.name
        return Deferred.fromCoroutine(
            self.db.dispatcher.answer(name, args, {}, caller or self.caller)
        )


Begin = Callable[..., Any]


@asynccontextmanager
async def holding(dsn: str, most: int = 5, **limits: Any) -> AsyncIterator[Begin]:
    """Serve the database with other limits; yield a function that begins a transaction."""
    async with serving(dsn, "public", "other", most=most) as db:
        db.dispatcher.hold(TransactionLimits(**limits))

        async def begin(caller: Caller = ANN, **kwargs: Any) -> Held:
            answer = await db.call_as(caller, "transaction.begin", **kwargs)
            return Held(db, caller, answer["tx"])

        yield begin
        db.dispatcher.stop()


@pytest.fixture(autouse=True)
def empty(dsn: str) -> None:
    execute(dsn, "TRUNCATE items, other.items")


@pytest_twisted.async_yield_fixture
async def begin(dsn: str) -> AsyncIterator[Begin]:
    async with holding(dsn) as found:
        yield found


def kept(dsn: str) -> list[Any]:
    return [id for (id,) in execute(dsn, "SELECT id FROM items ORDER BY id")]


def transactions(dsn: str) -> list[Any]:
    return execute(
        dsn,
        "SELECT pid, query FROM pg_stat_activity WHERE datname = current_database()"
        " AND xact_start IS NOT NULL AND pid <> pg_backend_pid()",
    )


async def conflict(call: Any) -> tuple[str | None, str | None]:
    """Return the reason and the clock of the conflict that a call ends with."""
    error = await failure_of(call)
    assert isinstance(error, Conflict), error
    return error.details.get("reason"), error.details.get("clock")


@pytest_twisted.ensureDeferred
async def test_operations_see_each_other_and_commit_keeps_them(dsn: str, begin: Begin) -> None:
    """All run in one PostgreSQL session; other sessions see nothing before the commit."""
    tx = await begin()
    assert transactions(dsn) == []
    assert await tx.call("items.create", {"id": 1, "name": "a"}) == {
        "id": 1, "name": "a", "later": None,
    }  # fmt: skip
    assert await tx.call("items.update", 1, {"name": "b"}) is not None
    assert (await tx.call("items.get", 1))["name"] == "b"
    pids = {await tx.call("fn.pid") for _ in range(3)}
    assert len(pids) == 1
    assert kept(dsn) == []
    assert await tx.ask("commit") is None
    assert kept(dsn) == [1]
    assert transactions(dsn) == []
    assert await conflict(tx.call("items.count")) == ("committed", None)
    assert await conflict(tx.ask("rollback")) == ("committed", None)


@pytest_twisted.ensureDeferred
async def test_rollback_after_a_write_keeps_nothing(dsn: str, begin: Begin) -> None:
    tx = await begin()
    await tx.call("items.create", {"id": 1})
    await tx.ask("rollback")
    assert (kept(dsn), transactions(dsn)) == ([], [])
    assert await conflict(tx.ask("commit")) == ("rolled_back", None)
    empty_handed = await begin()
    await empty_handed.ask("commit")
    await (await begin()).ask("rollback")


@pytest_twisted.ensureDeferred
async def test_calls_sent_ahead_run_in_order(dsn: str, begin: Begin) -> None:
    """This includes the commit, which is sent without waiting for any result."""
    tx = await begin()
    calls = [tx.call("items.create", {"id": 1, "name": "0"})]
    calls += [tx.call("items.update", 1, {"name": str(n)}) for n in range(1, 20)]
    calls += [tx.call("items.get", 1), tx.ask("commit"), tx.call("items.count").addErrback(repr)]
    answers = await gatherResults(calls)
    assert [each["name"] for each in answers[:20]] == [str(n) for n in range(20)]
    assert answers[20]["name"] == "19"
    assert "committed" in answers[22]
    assert kept(dsn) == [1]


@pytest_twisted.ensureDeferred
async def test_error_fails_the_calls_after_it(dsn: str, begin: Begin) -> None:
    """They fail with its cause until the transaction is rolled back, whatever kind of error it is."""
    for bad, kind in (
        (("items.create", {"id": 1}), UniqueViolation),
        (("items.create", {"nope": 1}), InvalidArgument),
        (("items.get", 9), NotFound),
        (("nowhere.get", 9), NoSuchProcedure),
        (("items.stream",), InvalidArgument),
        (("items.export",), InvalidArgument),
        (("transaction.begin",), InvalidArgument),
        ((5,), InvalidArgument),
    ):
        tx = await begin()
        first, wrong, behind, last = (
            tx.call("items.create", {"id": 1}),
            tx.call(*bad),
            tx.call("items.create", {"id": 2}),
            tx.ask("savepoint", "s"),
        )
        await first
        error = await failure_of(wrong)
        assert isinstance(error, kind), bad
        for each in (behind, last, tx.call("items.count")):
            failed = await failure_of(each)
            assert isinstance(failed, Conflict)
            assert failed.details["reason"] == "failed"
            assert isinstance(error, ServiceError)
            assert failed.details["detail"] == f"{error.uri}: {error.message}"
        await tx.ask("rollback")
    assert kept(dsn) == []


@pytest_twisted.ensureDeferred
async def test_statement_is_sent_before_the_previous_one_is_answered(begin: Begin) -> None:
    """It waits in the worker's queue, not in the reactor."""
    tx = await begin()
    await tx.call("items.count")
    (lease,) = tx.db.dispatcher._interactive.leases._open.values()
    calls = [tx.call("fn.wait", seconds=0.1), tx.call("items.count"), tx.call("items.count")]
    assert len(lease.held.level._open) == 3
    calls.append(tx.ask("savepoint", "s"))  # applies to all of them
    assert len(lease.held.level._open) == 3
    assert (await gatherResults(calls))[1:3] == [0, 0]
    await tx.ask("rollback")


@pytest_twisted.ensureDeferred
async def test_update_by_key_is_sent_before_the_previous_statement_is_answered(
    dsn: str, begin: Begin
) -> None:
    """Its row may be missing; the reason is looked up later."""
    execute(dsn, "INSERT INTO items VALUES (1), (2)")
    tx = await begin()
    await tx.call("items.count")
    (lease,) = tx.db.dispatcher._interactive.leases._open.values()
    calls = [tx.call("fn.wait", seconds=0.1), tx.call("items.update", 1, {"name": "a"})]
    calls += [tx.call("items.delete", 2), tx.call("items.count")]
    assert len(lease.held.level._open) == 4
    assert [each["id"] for each in (await gatherResults(calls))[1:3]] == [1, 2]
    await tx.ask("commit")
    assert execute(dsn, "SELECT id, name FROM items") == [(1, "a")]


@pytest.mark.parametrize("behind", [{"id": 9}, {"id": 1}])
@pytest_twisted.ensureDeferred
async def test_reason_of_a_missing_row_ignores_later_statements(
    dsn: str, begin: Begin, behind: dict[str, Any]
) -> None:
    """Later statements may insert the row, or make PostgreSQL fail the transaction."""
    execute(dsn, "INSERT INTO items VALUES (1, 'a')")
    for name, args, expect, kind in (
        ("items.update", [9, {"name": "x"}], None, NotFound),
        ("items.delete", [9], None, NotFound),
        ("items.update", [1, {"name": "x"}], {"name": "b"}, Conflict),
    ):
        tx = await begin()
        options = {"expect": expect} if expect else {}
        calls = [tx.call("fn.wait", seconds=0.05), tx.call(name, *args, **options)]
        calls.append(tx.call("items.create", behind))
        await calls[0]
        error = await failure_of(calls[1])
        assert isinstance(error, kind)
        if isinstance(error, Conflict):
            assert error.details["row"] == {"id": 1, "name": "a", "later": None}
        assert await conflict(calls[2]) == ("failed", None)
        await tx.ask("rollback")
    assert kept(dsn) == [1]


@pytest_twisted.ensureDeferred
async def test_results_of_pipelined_statements_are_collected(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker does not wake the reactor for each."""
    tx = await begin()
    await tx.call("items.count")
    woken: list[Any] = []
    wake = reactor.callFromThread  # type: ignore[attr-defined]

    def noted(function: Any, *args: Any) -> None:
        woken.append(function)
        wake(function, *args)

    monkeypatch.setattr(reactor, "callFromThread", noted)
    calls = [tx.call("fn.wait", seconds=0.05), *(tx.call("items.count") for _ in range(200))]
    assert (await gatherResults(calls))[1:] == [0] * 200
    assert len(woken) < 100
    await tx.ask("rollback")


@pytest_twisted.ensureDeferred
async def test_result_does_not_wait_for_a_slow_later_statement(begin: Begin) -> None:
    tx = await begin()
    quick = [tx.call("items.count") for _ in range(3)]
    slow = tx.call("slow.find")
    assert await gatherResults(quick).addTimeout(5, reactor) == [0, 0, 0]
    slow.cancel()
    await failure_of(slow)
    await tx.ask("rollback")


@pytest_twisted.ensureDeferred
async def test_calls_sent_after_a_refused_one_are_stopped_and_rolled_back(
    dsn: str, begin: Begin
) -> None:
    """The service refuses the first call, so PostgreSQL has already started the later ones."""
    tx = await begin()
    await tx.ask("savepoint", "s")
    missing, behind, slow, after = (
        tx.call("items.get", 9),
        tx.call("items.create", {"id": 1}),
        tx.call("slow.find"),
        tx.call("items.count"),
    )
    assert isinstance(await failure_of(missing), NotFound)
    for each in (behind, slow, after):
        assert await conflict(each) == ("failed", None)
    back, count = tx.ask("rollback_to", "s"), tx.call("items.count")
    await back.addTimeout(10, reactor)  # less than the 20 seconds for which one would sleep
    assert await count == 0
    await tx.call("items.create", {"id": 2})
    await tx.ask("commit")
    assert kept(dsn) == [2]


@pytest_twisted.ensureDeferred
async def test_timeout_of_a_call_sent_ahead_is_its_own(begin: Begin) -> None:
    """The time of the calls before it does not count."""
    tx = await begin()
    await tx.call("items.count")
    slow = tx.call("fn.wait", seconds=4)
    quick = tx.call("items.count", timeout=3.5)
    await slow
    assert await quick == 0
    await tx.ask("rollback")


@pytest_twisted.ensureDeferred
async def test_many_calls_sent_after_a_refused_one_all_have_its_cause(begin: Begin) -> None:
    tx = await begin()
    calls = [tx.call("items.get", 9)] + [tx.call("fn.nowhere") for _ in range(500)]
    assert isinstance(await failure_of(calls[0]), NotFound)
    for each in calls[1:]:
        assert await conflict(each) == ("failed", None)


@pytest_twisted.ensureDeferred
async def test_unknown_command_fails_the_calls_after_it(dsn: str, begin: Begin) -> None:
    """A pipelined commit after a misspelled rollback_to does not commit."""
    tx = await begin()
    await tx.call("items.create", {"id": 1})
    wrong, commit = tx.ask("rolback_to", "s"), tx.ask("commit")
    error = await failure_of(wrong)
    assert isinstance(error, NoSuchProcedure)
    assert error.details["hint"] == 'did you mean "rollback_to"?'
    assert await conflict(commit) == ("failed", None)
    assert (kept(dsn), transactions(dsn)) == ([], [])


@pytest_twisted.ensureDeferred
async def test_commit_of_a_failed_transaction_rolls_back(dsn: str, begin: Begin) -> None:
    tx = await begin()
    await tx.call("items.create", {"id": 1})
    await failure_of(tx.call("items.get", 2))
    assert await conflict(tx.ask("commit")) == ("failed", None)
    assert await conflict(tx.ask("rollback")) == ("failed", None)
    assert (kept(dsn), transactions(dsn)) == ([], [])


@pytest_twisted.ensureDeferred
async def test_commit_that_fails_says_why(dsn: str, begin: Begin) -> None:
    """A deferred constraint is an error of the commit."""
    tx = await begin()
    await tx.call("items.create", [{"id": 1, "later": 1}, {"id": 2, "later": 1}])
    error = await failure_of(tx.ask("commit"))
    assert isinstance(error, UniqueViolation)
    assert error.message == 'there is a row with the same value of "later" already'
    assert (error.details["relation"], error.details["columns"]) == ("items", ["later"])
    assert await conflict(tx.ask("commit")) == ("failed", None)
    assert (kept(dsn), transactions(dsn)) == ([], [])


@pytest_twisted.ensureDeferred
async def test_savepoint_of_any_name_is_rolled_back_to_and_released(dsn: str, begin: Begin) -> None:
    """After rolling back to it, a savepoint remains, and a failed transaction can continue."""
    tx = await begin()
    await tx.ask("savepoint", 'odd "name"')
    await tx.call("items.create", {"id": 1})
    await tx.ask("savepoint", "b")
    await tx.call("items.create", {"id": 2})
    assert isinstance(await failure_of(tx.call("items.create", {"id": 1})), UniqueViolation)
    assert await conflict(tx.call("items.count")) == ("failed", None)
    await tx.ask("rollback_to", "b")
    assert await tx.call("items.count") == 1
    await tx.call("items.create", {"id": 3})
    await tx.ask("rollback_to", "b")
    await tx.call("items.create", {"id": 4})
    await tx.ask("release", "b")
    await tx.ask("savepoint", "late")
    for command, name, hint in (
        ("rollback_to", "b", "savepoints: "),
        ("release", "lat", "is failed by now"),
        ("rollback_to", "lat", 'did you mean "late"?'),
    ):
        wrong = await failure_of(tx.ask(command, name))
        if command == "release":
            assert isinstance(wrong, Conflict)
            continue
        assert isinstance(wrong, InvalidArgument)
        assert wrong.message == f'no savepoint "{name}"'
        assert wrong.details["hint"].startswith(hint)
    await tx.ask("rollback_to", 'odd "name"')
    assert isinstance(await failure_of(tx.ask("release", "late")), InvalidArgument)
    await tx.ask("rollback_to", 'odd "name"')
    await tx.call("items.create", {"id": 5})
    await tx.ask("commit")
    assert kept(dsn) == [5]
    for name in (None, "", "x" * 64, "nul\0"):
        tx = await begin()
        assert isinstance(await failure_of(tx.ask("savepoint", name)), InvalidArgument)
        await tx.ask("rollback")


@pytest_twisted.ensureDeferred
async def test_savepoints_of_one_name_shadow_each_other(dsn: str, begin: Begin) -> None:
    """As in PostgreSQL, the name means the newest one, and releasing it uncovers the one before."""
    tx = await begin()
    for id in (1, 2):
        await tx.ask("savepoint", "s")
        await tx.call("items.create", {"id": id})
    await tx.ask("release", "s")
    assert await tx.call("items.count") == 2
    await tx.ask("rollback_to", "s")
    assert await tx.call("items.count") == 0
    await tx.ask("release", "s")
    assert isinstance(await failure_of(tx.ask("rollback_to", "s")), InvalidArgument)
    assert await conflict(tx.ask("commit")) == ("failed", None)


@pytest.mark.parametrize("savepoint", [False, True])
@pytest_twisted.ensureDeferred
async def test_deadlock_victim_without_savepoint_is_rolled_back_at_once(
    dsn: str, begin: Begin, savepoint: bool
) -> None:
    """With a savepoint, its caller may continue, and the error mentions the locks still held."""
    execute(dsn, "TRUNCATE guarded; INSERT INTO guarded VALUES (1), (2)")
    one, two = await begin(), await begin(BOB)
    for tx, id in ((one, 1), (two, 2)):
        await tx.call("guarded.update", id, {"name": "first"})
        if savepoint:
            await tx.ask("savepoint", "s")
    # Each update has its own savepoint: a trigger may write to other tables, which a refusal must undo.
    work = [tx.call("guarded.update", id, {"name": "last"}) for tx, id in ((one, 2), (two, 1))]
    outcomes = DeferredList([each.addErrback(lambda failure: failure.value) for each in work])
    if savepoint:
        await until(lambda: any(each.called for each in work))
        (victim,) = [tx for tx, each in zip((one, two), work, strict=True) if each.called]
        await victim.ask("rollback")
    answers = [answer for _, answer in await outcomes]
    (error,) = [each for each in answers if getattr(each, "details", {}).get("retry")]
    assert error.details["sqlstate"] == "40P01"
    assert error.details["hint"].startswith("roll it back, begin another one")
    assert ("keeps its locks" in error.details["hint"]) is savepoint
    (other,) = [each for each in answers if each is not error]
    assert other["name"] == "last"


@pytest_twisted.ensureDeferred
async def test_failed_transaction_releases_its_connection(dsn: str, begin: Begin) -> None:
    """Only a rollback could follow; further calls get the same errors as with the connection."""
    tx = await begin()
    await tx.call("items.create", {"id": 1})
    assert isinstance(await failure_of(tx.call("items.get", 9)), NotFound)
    await until(lambda: not tx.db.pool.stats().busy)
    assert transactions(dsn) == []
    assert await conflict(tx.call("items.count")) == ("failed", None)
    assert await tx.ask("rollback") is None
    assert await conflict(tx.ask("commit")) == ("rolled_back", None)


@pytest_twisted.ensureDeferred
async def test_schema_of_each_operation_is_searched_after_a_savepoint_too(begin: Begin) -> None:
    tx = await begin()
    await tx.call("items.create", {"id": 1, "name": "first's"})
    await tx.ask("savepoint", "s")
    await tx.call("other.items.create", {"id": 1})
    assert await tx.call("other.fn.here") == "other's"
    await tx.ask("rollback_to", "s")
    assert await tx.call("other.fn.here") is None
    assert await tx.call("items.get", 1) is not None
    await tx.ask("rollback")


@pytest_twisted.ensureDeferred
async def test_transaction_is_refused_to_other_sessions(begin: Begin) -> None:
    """Other sessions are not authorized, while it is open and afterwards; an unknown transaction is a conflict."""
    tx = await begin()
    for over in (False, True):
        for command in ("", "commit"):
            refused = await failure_of(tx.ask(command, "items.count", caller=BOB))
            assert isinstance(refused, NotAuthorized)
        if not over:
            await tx.ask("rollback")
    wrong = Held(tx.db, ANN, tx.name[:-1] + ("x" if tx.name[-1] != "x" else "y"))
    assert await conflict(wrong.ask("commit")) == (None, None)
    other = Held(tx.db, ANN, f"tx.{new_process()}.{'x' * 24}")
    assert await conflict(other.ask("commit")) == ("stopped", None)


@pytest.mark.parametrize("command", ["commit", "rollback", "savepoint"])
@pytest_twisted.ensureDeferred
async def test_command_with_a_wrong_timeout_is_refused_before_it_runs(
    begin: Begin, command: str
) -> None:
    """Check also that no coroutine is left behind, of which Python would warn that it was never awaited."""
    tx = await begin()
    answering = tx.db.dispatcher.answer(f"{tx.name}.{command}", (), {"timeout": 0}, tx.caller)
    error = await failure_of(answering)
    assert isinstance(error, InvalidArgument)
    assert error.details["path"] == "timeout"
    gc.collect()


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ({"isolation": "none"}, "isolation"),
        ({"read_only": 1}, "read_only"),
        ({"idle_timeout": 0}, "idle_timeout"),
        ({"idle_timeout": True}, "idle_timeout"),
        ({"timeout": 0}, "timeout"),
        ({"idle": 1}, "idle"),
        ({"iso": "serializable"}, "iso"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_begin_with_malformed_arguments_is_refused(
    begin: Begin, arguments: dict[str, Any], path: str
) -> None:
    error = await failure_of(begin(**arguments))
    assert isinstance(error, InvalidArgument)
    assert error.details["path"] == path
    if path == "idle":
        assert error.details["hint"] == 'did you mean "idle_timeout"?'


@pytest_twisted.ensureDeferred
async def test_isolation_and_read_only_have_the_effect_of_postgresql(
    dsn: str, begin: Begin
) -> None:
    tx = await begin(isolation="repeatable read")
    assert await tx.call("items.count") == 0
    execute(dsn, "INSERT INTO items VALUES (1)")
    assert await tx.call("items.count") == 0
    await tx.ask("commit")
    tx = await begin(read_only=True)
    assert await tx.call("items.count") == 1
    refused = await failure_of(tx.call("items.create", {"id": 2}))
    assert isinstance(refused, DatabaseRefused)
    assert refused.details == {"sqlstate": "25006"}
    for call in tx.call("items.count"), tx.ask("savepoint", "s"), tx.ask("commit"):
        assert await conflict(call) == ("failed", None)


@pytest.mark.parametrize(
    ("idle", "arguments"),
    [(0.2, {}), (60.0, {"idle_timeout": 0.2}), (0.2, {"idle_timeout": 60})],
)
@pytest_twisted.ensureDeferred
async def test_idle_transaction_is_rolled_back(
    dsn: str, idle: float, arguments: dict[str, Any]
) -> None:
    """After the idle timeout of the service or of `begin`, whichever is shorter; the connection is reused."""
    async with holding(dsn, idle=idle) as begin:
        tx = await begin(**arguments)
        pid = await tx.call("fn.pid")
        began = reactor.seconds()
        await until(lambda: not transactions(dsn))
        assert reactor.seconds() - began > 0.1
        assert await conflict(tx.ask("commit")) == ("idle_timeout", "idle")
        assert execute(dsn, f"SELECT 1 FROM pg_stat_activity WHERE pid = {pid}") == [(1,)]


@pytest_twisted.ensureDeferred
async def test_transaction_that_lasts_too_long_is_rolled_back(dsn: str) -> None:
    """Both between calls and during one, whose statement is cancelled."""
    async with holding(dsn, whole=1.5) as begin:
        tx = await begin()
        await tx.call("items.create", {"id": 1})
        assert await conflict(tx.call("slow.find")) == ("failed", "transaction")
        await until(lambda: not transactions(dsn))
        assert await conflict(tx.ask("commit")) == ("failed", "transaction")
        tx = await begin()
        await tx.call("items.create", {"id": 1})
        await until(lambda: not transactions(dsn))
        assert await conflict(tx.ask("commit")) == ("failed", "transaction")
    assert kept(dsn) == []


@pytest_twisted.ensureDeferred
async def test_statement_that_takes_too_long_fails_the_transaction(begin: Begin) -> None:
    """The operation's own limit applies; the error names the clock, as that of a lock timeout does."""
    tx = await begin()
    error = await failure_of(tx.call("slow.find", timeout=0.1))
    assert isinstance(error, StatementTimeout)
    assert error.details["clock"] == "statement"
    assert await conflict(tx.call("items.count")) == ("failed", None)
    await tx.ask("rollback")


@pytest_twisted.ensureDeferred
async def test_first_statement_waits_for_a_connection(dsn: str) -> None:
    async with serving(dsn, most=2) as db:
        db.pool.scheduler.limits = type(db.pool.scheduler.limits)(most=2, acquire_timeout=0.3)
        one, two = [
            Held(db, caller, (await db.call_as(caller, "transaction.begin"))["tx"])
            for caller in (ANN, BOB)
        ]
        await one.call("items.count")
        error = await failure_of(two.call("items.count"))
        assert isinstance(error, Unavailable)
        assert error.details["clock"] == "connection"
        await one.ask("rollback")
        await two.ask("rollback")


@pytest_twisted.ensureDeferred
async def test_transactions_beyond_the_bound_are_refused(dsn: str) -> None:
    async with holding(dsn, total=3, session=2) as begin:
        one, _, _ = await begin(), await begin(), await begin(BOB)
        for caller in (ANN, BOB):
            assert isinstance(await failure_of(begin(caller)), Unavailable)
        await one.ask("commit")
        await begin(BOB)


@pytest_twisted.ensureDeferred
async def test_statement_of_a_session_that_leaves_is_cancelled(dsn: str, begin: Begin) -> None:
    """Its transactions are rolled back at once, running or idle; those of other sessions continue."""
    one, two, other = await begin(), await begin(), await begin(BOB)
    for each in (one, two, other):
        await each.call("fn.pid")
    running, queued = two.call("slow.find"), two.call("items.count")
    await until(lambda: any("slow" in query for _, query in transactions(dsn)))
    one.db.dispatcher.departed(1)
    await until(lambda: len(transactions(dsn)) == 1)
    assert await conflict(running) == ("session_left", None)
    assert await conflict(queued) == ("session_left", None)
    assert await conflict(one.ask("commit")) == ("session_left", None)
    await other.call("items.create", {"id": 1})
    await other.ask("commit")
    assert kept(dsn) == [1]


@pytest_twisted.ensureDeferred
async def test_transaction_that_never_existed_has_no_reason_to_have_ended(begin: Begin) -> None:
    """Check that it is not called stopped, unless another service may have had a transaction of its id."""
    tx = await begin()
    process, _, secret = tx.name.removeprefix("tx.").partition(".")
    other = "0" * 16
    for id, reason in (
        (f"{process}.{'x' * 24}", None),
        (process, None),
        (f"{process}.x", None),
        ("x", None),
        ("", None),
        (f"x.{secret}", None),
        (f"{other}.x", None),
        (f"{other}.{secret}", "stopped"),
    ):
        tx.name = f"tx.{id}"
        assert await conflict(tx.ask("commit")) == (reason, None), id
        assert await conflict(tx.call("items.count")) == (reason, None), id


@pytest_twisted.ensureDeferred
async def test_stop_ends_idle_transactions_and_waits_for_running_ones(
    dsn: str, begin: Begin
) -> None:
    lies, runs = await begin(), await begin()
    await lies.call("items.create", {"id": 1})
    call = runs.call("items.create", {"id": 2})
    lies.db.dispatcher.stop()
    assert await conflict(lies.ask("commit")) == ("stopped", None)
    assert (await call)["id"] == 2
    assert await conflict(runs.ask("commit")) == ("stopped", None)
    assert isinstance(await failure_of(begin()), Unavailable)
    assert kept(dsn) == []


@pytest_twisted.ensureDeferred
async def test_cancelled_call_fails_the_transaction(dsn: str, begin: Begin) -> None:
    """A running call is cancelled on the server; cancelling a waiting one affects no other call."""
    tx = await begin()
    await tx.call("items.create", {"id": 1})
    running, waiting, behind = (
        tx.call("slow.find"),
        tx.call("items.count"),
        tx.call("items.count"),
    )
    await until(lambda: any("slow" in query for _, query in transactions(dsn)))
    waiting.cancel()
    assert await failure_of(waiting) is not None
    running.cancel()
    assert await failure_of(running) is not None
    assert await conflict(behind) == ("failed", None)
    await tx.ask("rollback")
    assert transactions(dsn) == []


@pytest_twisted.ensureDeferred
async def test_lost_connection_ends_in_an_error_and_nothing_is_kept(dsn: str, begin: Begin) -> None:
    tx = await begin()
    await tx.call("items.create", {"id": 1})
    pid = await tx.call("fn.pid")
    execute(dsn, f"SELECT pg_terminate_backend({pid})")
    assert isinstance(await failure_of(tx.call("items.count")), Unavailable)
    assert await conflict(tx.ask("commit")) == ("failed", None)
    assert kept(dsn) == []
    again = await begin()
    await again.call("items.create", {"id": 1})
    await again.ask("commit")
    assert kept(dsn) == [1]
