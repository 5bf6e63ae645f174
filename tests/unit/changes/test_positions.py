"""Positions as clients send them back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.changes.log import PgSnapshot
from service.changes.positions import Position, SnapshotPosition, TickPosition, parse_position
from service.errors import InvalidArgument

numbers = st.integers(min_value=0, max_value=2**31 - 1)


@st.composite
def snapshots(draw: st.DrawFn) -> PgSnapshot:
    """Draw a snapshot as PostgreSQL writes it."""
    xmin = draw(st.integers(min_value=3, max_value=2**62))
    width = draw(st.integers(min_value=0, max_value=40))
    running = draw(st.sets(st.integers(min_value=xmin, max_value=xmin + width)))
    return PgSnapshot(xmin, xmin + width + 1, tuple(sorted(running)))


positions = st.one_of(
    st.builds(TickPosition, numbers, numbers, numbers),
    st.builds(SnapshotPosition, numbers, snapshots()),
)


@given(positions)
def test_position_written_and_parsed_is_the_same(position: Position) -> None:
    assert parse_position(str(position)) == position


@given(snapshots(), st.integers(min_value=0, max_value=50))
def test_snapshot_shows_the_transactions_that_had_ended(snapshot: PgSnapshot, above: int) -> None:
    xid = snapshot.xmin + above
    assert snapshot.sees(xid) == (xid < snapshot.xmax and xid not in snapshot.running)
    assert snapshot.sees(snapshot.xmin - 1)


@pytest.mark.parametrize(
    "value",
    [
        None,
        1,
        "",
        "1",
        "1.2",
        "1.2.3.4",
        "-1.2.3",
        "1.2.٣",
        "1.5:4:",
        "1.4:5:6",
        "1.4:9:7,5",
        "1.4:9:5,5",
        f"1.4:{2**63}:",
        f"{2**31}.1.1",
        "1.1.1\n",
        "1.4:9:5\n",
        "1.4:9:" + ",".join(str(xid) for xid in range(4, 200_000)),
        ["1.2.3"],
        b"1.2.3",
    ],
)
def test_invalid_position_is_refused(value: object) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse_position(value)
    assert refused.value.details["path"] == "since"
    assert len(str(refused.value)) < 300
