"""
`service.testing`, for tests of applications: its sessions behave like those behind a router.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import CallOptions
from twistar.registry import Registry
from twisted.internet import reactor
from twisted.internet.defer import CancelledError

from app.actions import Action
from service.testing import FakeSession, Service, postgres, serving
from tests.conftest import Router, execute
from tests.db.ticks import Ticks
from tests.deferreds import until
from tests.wamp import scenario
from tests.wamp.callers import join
from tests.wamp.scenario import FILE, read, run
from tests.wamp.service import served

MODULES = ("app", "tests.wamp.written")
ROW = {"action": "go", "path": "/home"}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Run an embedded server with migrations and some tables, as an application's tests do."""
    with postgres(sql=scenario.SCHEMA) as dsn:
        yield dsn


@pytest_twisted.async_yield_fixture
async def service(server: str) -> AsyncIterator[Service]:
    async with serving(reactor, server, *MODULES) as service:
        yield service


@pytest_twisted.async_yield_fixture(params=["fake", "real"])
async def session(
    request: pytest.FixtureRequest, server: str, migrated: str, router: Router
) -> AsyncIterator[Any]:
    """Call with a session of either kind."""
    if request.param == "fake":
        async with serving(reactor, server, *MODULES) as service:
            yield service.join()
    else:
        execute(migrated, "TRUNCATE actions")
        async with served(migrated, router, app=MODULES):
            caller = await join(router, "rawsocket cbor")
            yield caller
            await caller.close()


async def refusal(call: Any) -> tuple[str, list[Any], dict[str, Any]]:
    """Return the error of a call: its URI, arguments and keyword arguments."""
    with pytest.raises(ApplicationError) as caught:
        await call
    return caught.value.error, list(caught.value.args), caught.value.kwargs


@pytest_twisted.ensureDeferred
async def test_scenario_in_the_fake_session_has_the_expected_results(service: Service) -> None:
    """The fake session gives the same results as each transport and language."""
    wrong = await run(service.join(), "rowcast", read(FILE.read_text()))  # type: ignore[arg-type]
    assert wrong == [], "\n".join(wrong)


@pytest_twisted.ensureDeferred
async def test_call_of_a_model_with_rules_is_validated(session: Any) -> None:
    row = await session.call("rowcast.actions.create", ROW)
    assert (await session.call("rowcast.actions.complete", key=row["id"]))["status"] is True
    assert await refusal(session.call("rowcast.actions.create", {**ROW, "action": " "})) == (
        "rowcast.error.invalid_row",
        ['not a valid row of "actions": action cannot be blank'],
        {"relation": "actions", "fields": {"action": ["cannot be blank"]}, "path": "values"},
    )


@pytest.mark.parametrize(
    ("uri", "args", "error"),
    [
        ("rowcast.actions.nothing", [], "wamp.error.no_such_procedure"),
        ("rowcast.nothing", [], "wamp.error.no_such_procedure"),
        ("other.actions.get", [1], "wamp.error.not_authorized"),
        ("rowcast.actions.get", [], "wamp.error.invalid_argument"),
        ("rowcast.actions.get", [2**62], "rowcast.error.not_found"),
        ("rowcast.actions.stream", [], "wamp.error.invalid_argument"),
        ("rowcast.wrong", [], "rowcast.error.internal"),
        ("rowcast.spoiled", [], "rowcast.error.internal"),
        ("rowcast.actions.complete", ["x"], "wamp.error.invalid_argument"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_refusal_has_uri_message_and_details(
    uri: str, args: list[Any], error: str, session: Any
) -> None:
    """An internal error shows only its id."""
    found, (message,), details = await refusal(session.call(uri, *args))
    assert found == error
    assert message
    assert "secret" not in f"{message} {details}"
    if uri == "rowcast.actions.get" and args:
        assert details == {"relation": "actions"}


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        ((1, [2.5, None]), [1, [2.5, None]]),
        ({"bytes": b"\0\xff", "text": "å\U0001f600"}, {"bytes": b"\0\xff", "text": "å\U0001f600"}),
        (2**64 - 1, 2**64 - 1),
        (True, True),
    ],
)
@pytest_twisted.ensureDeferred
async def test_value_arrives_as_by_a_connection(value: Any, arrives: Any, session: Any) -> None:
    found = await session.call("rowcast.echo", value)
    assert found == arrives
    assert type(found) is type(arrives)


@pytest_twisted.ensureDeferred
async def test_stream_in_a_test_arrives_in_parts(session: Any) -> None:
    await session.call("rowcast.actions.create", [ROW] * 5)
    parts: list[Any] = []
    options = CallOptions(on_progress=parts.append)
    answer = await session.call("rowcast.actions.stream", chunk=2, options=options)
    assert answer == {"rows": 5}
    assert [len(part) for part in parts] == [2, 2, 1]


@pytest_twisted.ensureDeferred
async def test_live_query_in_a_test_receives_changes(session: Any) -> None:
    messages: list[Any] = []
    options = CallOptions(on_progress=messages.append)
    live = session.call("rowcast.actions.watch", where={"path": "/live"}, options=options)
    await until(lambda: messages)
    written = await session.call("rowcast.actions.create", ROW | {"path": "/live"}, receipt=True)
    await until(lambda: any("'/live'" in str(each) for each in messages[1:]))
    assert written.kwresults["tx"]
    live.cancel()
    with pytest.raises(
        (ApplicationError, CancelledError)
    ):  # CancelledError is autobahn's, which does not wait for the answer
        await live


@pytest_twisted.ensureDeferred
async def test_changes_in_a_test_arrive_as_rows(service: Service) -> None:
    """The dispatcher returns them as CBOR."""
    ticks, session = Ticks(service.dsn), service.join()
    since = await session.call("rowcast.position")
    row = await session.call("rowcast.actions.create", ROW)
    ticks.next()
    ticks.close()
    found = await session.call("rowcast.changes", since, relations=["actions"])
    assert [(each["op"], each["row"]["id"]) for each in found["changes"]] == [("insert", row["id"])]


@pytest_twisted.ensureDeferred
async def test_changes_in_a_test_without_a_publishing_service_are_unavailable(
    service: Service,
) -> None:
    """Check that the service does not lead without a router, as docs/applications.md says."""
    await until(lambda: service.serving.feed.well)
    error, *_ = await refusal(service.join().call("rowcast.position"))
    assert error == "rowcast.error.unavailable"


@pytest_twisted.ensureDeferred
async def test_call_over_its_timeout_is_refused(session: Any) -> None:
    error, *_ = await refusal(session.call("rowcast.sleep", 30, timeout=0.1))
    assert error == "rowcast.error.timeout"


@pytest_twisted.ensureDeferred
async def test_anonymous_caller_has_role_and_realm(session: Any) -> None:
    _, *rest = await session.call("rowcast.whoami")
    assert rest == ["anonymous", "realm1"]


@pytest_twisted.ensureDeferred
async def test_sessions_of_service_have_the_given_identity(service: Service) -> None:
    clerk = service.join("ada", "clerk")
    assert await clerk.call("rowcast.whoami") == ["ada", "clerk", "realm1"]
    assert clerk.caller.session != service.join().caller.session


@pytest_twisted.ensureDeferred
async def test_cancelled_call_ends_on_the_server(service: Service) -> None:
    call = service.join().call("rowcast.sleep", 30)
    running = "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%pg_sleep(3%' AND state = 'active'"
    asked = f"{running} AND pid <> pg_backend_pid() AND datname = current_database()"
    await until(lambda: service.execute(asked))
    call.cancel()
    error, *_ = await refusal(call)
    assert error == "wamp.error.canceled"
    await until(lambda: not service.execute(asked))


@pytest_twisted.ensureDeferred
async def test_upload_ends_with_its_session(service: Service) -> None:
    one, other = service.join(), service.join()
    began = await one.call("rowcast.actions.import", [ROW], done=False)
    one.leave()
    await until(lambda: not service.serving.database.pool.stats().busy)
    call = one.call("rowcast.actions.import", [ROW], upload=began["upload"], done=True)
    assert (await refusal(call))[0] != "ok"
    assert await other.call("rowcast.actions.count") == 0


@pytest_twisted.ensureDeferred
async def test_service_after_another_has_the_initial_database(server: str) -> None:
    """Writes of an earlier test are undone, and twistar's Registry is restored."""
    before = Registry.DBPOOL
    for _ in range(2):
        async with serving(reactor, server, "app") as service:
            assert service.execute("SELECT count(*) FROM actions") == [(0,)]
            await Action(**ROW).save()
            assert await service.join().call("rowcast.actions.count") == 1
    assert Registry.DBPOOL is before
    assert Action.META is None
    with pytest.raises(psycopg2.OperationalError):
        service.execute("SELECT 1")


@pytest_twisted.ensureDeferred
async def test_applications_of_one_process_are_independent(server: str) -> None:
    """A service has the procedures and models of its own modules, not those of another one."""
    async with serving(reactor, server) as service:
        assert (await service.join().call("rowcast.actions.create", {**ROW, "action": "!"}))["id"]
        error, *_ = await refusal(service.join().call("rowcast.whoami"))
        assert error == "wamp.error.no_such_procedure"


@pytest_twisted.ensureDeferred
async def test_roles_and_settings_of_service_are_used(server: str) -> None:
    roles = {"roles": "clerk=pg_read_all_data", "anonymous": "pg_monitor"}
    async with serving(reactor, server, max_rows=1, **roles) as service:
        service.execute("INSERT INTO actions (action, path) VALUES ('go', '/'), ('go', '/')")
        found = await service.join("ada", "clerk").call("rowcast.actions.find")
        assert len(found["rows"]) == 1
        error, *_ = await refusal(service.join().call("rowcast.actions.find"))
        assert error == "wamp.error.no_such_procedure", "for pg_monitor there is no such relation"


def test_fake_session_has_only_what_calls_need() -> None:
    """It has no attributes that calls do not need."""
    assert {name for name in vars(FakeSession) if not name.startswith("_")} == {"call", "leave"}
