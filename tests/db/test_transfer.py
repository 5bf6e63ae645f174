"""The money transfer of docs/twistar.md: concurrent callers, and what remains if one fails."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from types import ModuleType

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from twisted.internet import reactor
from twisted.internet.defer import gatherResults

from service.testing import Service, postgres, serving
from tests.conftest import ROOT
from tests.test_docs import code

ACCOUNTS = """
CREATE TABLE accounts (id int PRIMARY KEY, balance int NOT NULL CHECK (balance >= 0));
INSERT INTO accounts SELECT i, 100 FROM generate_series(1, 4) i;
CREATE SEQUENCE attempts;
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF nextval('attempts') <= TG_ARGV[0]::int THEN RAISE SQLSTATE '40001'; END IF;
    RETURN new;
END $$;
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres(migrate=False, sql=ACCOUNTS) as dsn:
        yield dsn


@pytest_twisted.async_yield_fixture
async def service(server: str) -> AsyncIterator[Service]:
    """Serve the procedure as the page shows it."""
    (shown,) = [each for each in code(ROOT / "docs/twistar.md", "python") if "transfer" in each]
    module = sys.modules["bank"] = ModuleType("bank")
    exec(compile(shown, "docs/twistar.md", "exec"), vars(module))
    try:
        async with serving(reactor, server, "bank", pool_max=10) as service:
            yield service
    finally:
        del sys.modules["bank"]


def balances(service: Service) -> list[int]:
    return [row[0] for row in service.execute("SELECT balance FROM accounts ORDER BY id")]


@pytest_twisted.ensureDeferred
async def test_transfer_by_contending_callers_keeps_the_sum(service: Service) -> None:
    """Each succeeds, although they read and write the same rows."""
    callers = [service.join() for _ in range(8)]
    for at in range(5):
        pairs = [(1 + (at + n) % 4, 1 + (at + n + 1 + n % 3) % 4) for n in range(8)]
        moved = await gatherResults(
            [
                caller.call("rowcast.accounts.transfer", *pair, 1)
                for caller, pair in zip(callers, pairs, strict=True)
            ]
        )
        assert [row["id"] for row in moved] == [source for source, _ in pairs]
        assert sum(balances(service)) == 400


@pytest_twisted.ensureDeferred
async def test_transfer_that_is_refused_moves_nothing(service: Service) -> None:
    with pytest.raises(ApplicationError, match="not enough money"):
        await service.join().call("rowcast.accounts.transfer", 1, 2, 101)
    assert balances(service) == [100] * 4


@pytest_twisted.ensureDeferred
async def test_transfer_that_fails_in_the_middle_is_run_again_from_its_beginning(
    service: Service,
) -> None:
    """It runs five times more, each rolled back; then the caller receives the error."""
    fails = "CREATE TRIGGER fail BEFORE UPDATE ON accounts FOR EACH ROW WHEN (old.id = 2)"
    service.execute(f"{fails} EXECUTE FUNCTION fail(5)")
    session = service.join()
    row = await session.call("rowcast.accounts.transfer", 1, 2, 10)
    assert (row["balance"], balances(service)) == (90, [90, 110, 100, 100])
    assert service.execute("SELECT last_value FROM attempts") == [(6,)]
    service.execute(f"DROP TRIGGER fail ON accounts; {fails} EXECUTE FUNCTION fail(1000)")
    with pytest.raises(ApplicationError) as caught:
        await session.call("rowcast.accounts.transfer", 1, 2, 10)
    assert caught.value.error == "rowcast.error.conflict"
    assert (caught.value.kwargs["attempts"], caught.value.kwargs["retry"]) == (6, True)
    assert balances(service) == [90, 110, 100, 100]


@pytest_twisted.ensureDeferred
async def test_transfer_in_a_batch_is_committed_or_rolled_back_with_it(service: Service) -> None:
    """It is a savepoint of the batch, whose isolation must be that of the transfer."""
    session = service.join()
    transfer = {"call": "accounts.transfer", "args": [1, 2, 10]}
    broken = {"call": "accounts.update", "args": [3, {"balance": -1}]}
    with pytest.raises(ApplicationError, match="is to run serializable") as caught:
        await session.call("rowcast.transaction", [transfer])
    assert caught.value.kwargs["operation"] == 0
    with pytest.raises(ApplicationError) as caught:
        await session.call("rowcast.transaction", [transfer, broken], isolation="serializable")
    assert (caught.value.kwargs["operation"], balances(service)) == (1, [100] * 4)
    await session.call("rowcast.transaction", [transfer] * 2, isolation="serializable")
    assert balances(service) == [80, 120, 100, 100]
