"""
Live queries of the Python kit on fake sessions: steps, resuming, optimistic effects, timeouts.
"""

from __future__ import annotations

from typing import Any

import pytest
import txaio
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import CallResult
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tests.deferreds import result_of
from tests.kits import kit


class Session:
    """A fake session that records calls, which the test answers."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any], Deferred[Any]]] = []
        self.aborted = False

    def call(self, uri: str, *args: Any, **kwargs: Any) -> Deferred[Any]:
        """Record a call."""
        self.calls.append((uri, args, kwargs, Deferred()))
        return self.calls[-1][3]

    @property
    def transport(self) -> Session:
        """The session itself, which has `abort`."""
        return self

    def abort(self) -> None:
        """Record that the session was aborted."""
        self.aborted = True

    def tell(self, at: int, **message: Any) -> None:
        """Send a progressive result of a call."""
        self.calls[at][2]["options"].on_progress(message)


def rows(*names: str, position: str = "1", **more: Any) -> dict[str, Any]:
    shown = [{"id": at, "name": name} for at, name in enumerate(names, 1)]
    whole = {"type": "snapshot", "rows": shown, "key": ["id"], "complete": True}
    return {**whole, "position": position, **more}


def delta(id: int, name: str, position: str, **more: Any) -> dict[str, Any]:
    row = {"id": id, "name": name}
    return {
        **{"type": "delta", "enter": [], "update": [row], "leave": [], "position": position},
        **more,
    }


@pytest.fixture
def clock() -> Clock:
    txaio.use_twisted()
    return Clock()


@pytest.fixture
def db(clock: Clock) -> Any:
    return kit().Rowcast(later=clock.callLater, now=clock.seconds)


@pytest.fixture
def session(db: Any) -> Session:
    session = Session()
    db.joined(session)
    return session


def names(live: Any) -> list[str]:
    return [row["name"] for row in live.rows]


def test_live_queries_change_together_when_their_step_is_complete(
    db: Any, session: Session
) -> None:
    one, two = db.live("a"), db.live("b")
    session.tell(0, **rows("x"))
    session.tell(1, **rows("x", step=True))
    changes: list[tuple[list[str], list[str]]] = []
    for live in (one, two):
        live.subscribe(lambda _, change: change and changes.append((names(one), names(two))))
    session.tell(0, **delta(1, "y", "2"))
    assert (changes, names(one)) == ([], ["x"])
    session.tell(1, **delta(1, "z", "2", step=True))
    assert changes == [(["y"], ["z"])] * 2


def test_step_whose_end_does_not_come_is_applied_with_the_next_message(
    db: Any, session: Session
) -> None:
    one, two = db.live("a"), db.live("b")
    session.tell(0, **rows("x"))
    session.tell(1, **rows("x", step=True))
    session.tell(0, **delta(1, "y", "2"))
    session.tell(0, **delta(1, "z", "3"))
    assert names(one) == ["y"]
    two.close()
    assert names(one) == ["z"]
    # a message still in flight to a closed live query may end the step
    session.tell(0, **delta(1, "end", "4"))
    session.tell(1, **delta(1, "end", "4", step=True))
    assert names(one) == ["end"]


def test_step_that_other_kits_wait_for_is_not_cut_short(
    clock: Clock, db: Any, session: Session
) -> None:
    """The other live query of the kit is closed, or fails."""
    other = kit().Rowcast(later=clock.callLater, now=clock.seconds)
    other.joined(session)
    closed, fails = other.live("c"), other.live("d")
    one, two = db.live("a"), db.live("b")
    for at in range(4):
        session.tell(at, **rows("x", step=at == 3))
    session.tell(0, **delta(1, "y", "2"))
    session.tell(2, **delta(1, "y", "2"))
    closed.close()
    session.calls[1][3].errback(ApplicationError("rowcast.error.forbidden", "no"))
    assert fails.error is not None
    assert (names(one), names(two)) == (["x"], ["x"])
    session.tell(3, **delta(1, "y", "2", step=True))
    assert (names(one), names(two)) == (["y"], ["y"])


def test_lost_session_keeps_the_rows_and_the_next_one_resumes(db: Any, session: Session) -> None:
    live = db.live("a", where={"id": 1})
    session.tell(0, **rows("x", step=True))
    session.tell(0, **{**rows("lost", position="2"), "complete": False})
    db.left(session)
    assert names(live) == ["x"]
    following = Session()
    db.joined(following)
    uri, _, kwargs, _ = following.calls[0]
    assert (uri, kwargs["where"], kwargs["since"]) == ("rowcast.a.watch", {"id": 1}, "1")
    session.tell(0, **rows("late", step=True))  # of a lost session
    following.tell(0, **delta(1, "y", "3", step=True))
    assert (names(live), live.position) == (["y"], "3")


def test_watch_ended_by_a_stopping_service_is_repeated_at_once_and_others_with_backoff(
    db: Any, session: Session, clock: Clock
) -> None:
    live = db.live("a")
    waited = []
    for at in range(8):
        error = ApplicationError("rowcast.error.unavailable", "stopping", retry=True, retry_after=0)
        session.calls[at][3].errback(error)
        began = clock.seconds()
        while len(session.calls) == at + 1:
            clock.advance(0.01)
        waited.append(clock.seconds() - began)
    assert waited[0] < 0.2
    assert max(waited) < 7.6
    assert waited[-1] > 2
    session.tell(8, **rows("x", step=True))
    session.calls[8][3].errback(ApplicationError("wamp.error.canceled", "the callee is gone"))
    clock.advance(0.16)
    assert len(session.calls) == 10
    assert live.error is None


def test_router_without_a_service_is_waited_for(db: Any, session: Session, clock: Clock) -> None:
    live = db.live("a")
    words = "no callee registered for procedure <rowcast.a.watch>"
    session.calls[0][3].errback(ApplicationError("wamp.error.no_such_procedure", words))
    clock.advance(1)
    assert (len(session.calls), live.error) == (2, None)
    unknown = ApplicationError("wamp.error.no_such_procedure", 'no relation "a" is served')
    session.calls[1][3].errback(unknown)
    clock.advance(60)
    assert (len(session.calls), live.error) == (2, unknown)


def test_position_that_is_gone_is_not_asked_for_again(
    db: Any, session: Session, clock: Clock
) -> None:
    db.live("a")
    session.tell(0, **rows("x", step=True))
    session.calls[0][3].errback(ApplicationError("rowcast.error.position_gone", "pruned"))
    clock.advance(1)
    assert "since" not in session.calls[1][2]


def test_copy_with_wrong_checksum_is_requested_again(
    db: Any, session: Session, clock: Clock
) -> None:
    live = db.live("a")
    session.tell(0, **rows("x", step=True))
    session.tell(0, type="alive", position="2", checksum=1)
    assert live.mismatches == 1
    assert names(live) == ["x"]
    clock.advance(1)
    assert "since" not in session.calls[1][2]
    session.tell(1, **rows("y", position="3", step=True))
    assert names(live) == ["y"]


def test_copy_that_stays_wrong_is_requested_with_backoff(
    db: Any, session: Session, clock: Clock
) -> None:
    live = db.live("a")
    for call in range(10):
        session.tell(call, **rows("x", checksum=1, step=True))
        clock.advance(7.5)  # the longest pause plus half of it
        assert len(session.calls) == call + 2
    session.tell(10, **rows("x", checksum=1, step=True))
    clock.advance(2.4)  # half of it
    assert len(session.calls) == 11
    clock.advance(5.1)
    session.tell(11, **rows("y", step=True))
    assert names(live) == ["y"]


def test_silent_session_is_given_up(db: Any, session: Session, clock: Clock) -> None:
    db.live("a")
    session.tell(0, **rows("x", step=True))
    for at in range(4):
        clock.pump([5] * 3)
        session.tell(0, type="alive", position=f"{at}", checksum=db_checksum(("x",)))
    assert not session.aborted
    clock.pump([5] * 12)
    assert session.aborted
    assert db.session is None


def db_checksum(shown: tuple[str, ...]) -> int:
    copy = kit().Copy({})
    copy.take(rows(*shown))
    return int(copy.checksum)


def test_effect_lasts_until_the_rows_cover_it(db: Any, session: Session) -> None:
    live = db.live("a")
    session.tell(0, **rows("x", "y", step=True))
    done = live.update(1, {"name": "mine"})
    assert names(live) == ["mine", "y"]
    uri, args, kwargs, answer = session.calls[1]
    assert (uri, args, kwargs) == ("rowcast.a.update", (1, {"name": "mine"}), {"receipt": True})
    answer.callback(CallResult({"id": 1, "name": "mine"}, tx="700"))
    assert result_of(done) == {"id": 1, "name": "mine"}
    session.tell(0, **delta(2, "other", "2", step=True))
    assert names(live) == ["mine", "other"]
    session.tell(0, **delta(1, "theirs", "3", step=True, covers=["700"]))
    assert names(live) == ["theirs", "other"]


def test_effect_covered_before_its_result_is_removed_with_it(db: Any, session: Session) -> None:
    live = db.live("a")
    session.tell(0, **rows("x", step=True))
    live.delete(1)
    assert names(live) == []
    session.tell(0, **delta(1, "again", "2", step=True, covers=["700"]))
    session.calls[1][3].callback(CallResult(None, tx="700"))
    assert names(live) == ["again"]


def test_effect_has_the_known_values_of_the_columns_of_the_query(db: Any, session: Session) -> None:
    """Not those that the service computes; several created rows are several rows."""
    live = db.live("a")
    live.create({"id": 9, "more": 1})
    session.tell(0, **rows("x", step=True))
    live.create([{"id": 2, "name": "two", "more": 1}, {"id": 3, "name": {"$default": True}}])
    assert live.rows == [{"id": 1, "name": "x"}, {"id": 9}, {"id": 2, "name": "two"}, {"id": 3}]
    live.update(1, {"name": {"$append": ["y"]}, "name->z": 1, "more": 2})
    live.update(2, {"name": {"first": 1}})
    live.write("update", where={}, changes={"name": "z"})
    assert [row.get("name") for row in live.rows] == ["x", None, {"first": 1}, None]


def test_effect_never_confirmed_expires(db: Any, session: Session, clock: Clock) -> None:
    live = db.live("a")
    session.tell(0, **rows("x", step=True))
    live.create({"id": 2, "name": "new"})
    live.create({"id": 3, "name": "nothing"})
    session.calls[1][3].callback(CallResult(None, tx="700"))
    session.calls[2][3].callback(CallResult(None, tx=None))
    assert names(live) == ["x", "new"]
    clock.advance(29)
    assert names(live) == ["x", "new"]
    clock.advance(2)
    assert names(live) == ["x"]


def test_failing_listener_does_not_stop_others(db: Any, session: Session) -> None:
    live = db.live("a")
    changes: list[Any] = []
    live.subscribe(lambda rows, change: 1 / 0)
    live.subscribe(lambda rows, change: changes.append(change))
    session.tell(0, **rows("x", step=True))
    assert len(changes) == 1


def test_call_waits_for_a_session_and_ends_without_one(db: Any, clock: Clock) -> None:
    failures: list[Any] = []
    db.call("a.count", patience=3.0).addErrback(lambda why: failures.append(why.value.error))
    clock.advance(2)
    counting = db.call("a.count")
    clock.advance(2)
    assert failures == ["rowcast.client.timeout"]
    session = Session()
    db.joined(session)
    ((uri, _, _, answer),) = session.calls
    assert uri == "rowcast.a.count"
    answer.callback(5)
    assert result_of(counting) == 5


def test_closing_leaves_no_timer(db: Any, session: Session, clock: Clock) -> None:
    live = db.live("a")
    session.tell(0, **rows("x", step=True))
    live.update(1, {"name": "y"}).addErrback(lambda _: None)
    db.live("b")
    session.calls[2][3].errback(ApplicationError("rowcast.error.unavailable", "x", retry=True))
    db.call("a.count").addErrback(lambda _: None)
    db.close()
    assert clock.getDelayedCalls() == []
