"""Timestamps truncated to a unit, with and without a time zone, compared with SQL."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from service.errors import InvalidArgument
from service.request.select_list import UNITS
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller
from tests.deferreds import failure_of

SCHEMA = """
CREATE TABLE places (id int PRIMARY KEY, opened timestamptz);
CREATE TABLE visits (id int PRIMARY KEY, place int REFERENCES places, at timestamptz, plain timestamp,
    day date, took interval, doc jsonb, secret timestamptz, noon time);
COMMENT ON COLUMN visits.secret IS '@hidden';
INSERT INTO places SELECT i, '2026-03-28 22:30Z'::timestamptz + i * '1h'::interval FROM generate_series(1, 3) i;
INSERT INTO visits SELECT i, i % 4, t, t AT TIME ZONE 'UTC', t::date, i * '17 min'::interval,
    jsonb_build_object('at', t), t, '12:00'
    FROM (SELECT i, nullif('2026-03-28 20:00Z'::timestamptz + i * '97 min'::interval, '2026-03-29 00:02Z') t
          FROM generate_series(1, 40) i WHERE i % 4 > 0) rows;
"""
BERLIN = "Europe/Berlin"


def utc(sql: str) -> str:
    """Return a timestamptz in wire form."""
    return f"""to_char({sql} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')"""


def local(sql: str) -> str:
    """Return a timestamp in wire form."""
    return f"""to_char({sql}, 'YYYY-MM-DD"T"HH24:MI:SS')"""


CUT: list[tuple[dict[str, Any], str, str]] = [
    ({"column": "at", "trunc": "day"}, "date_trunc('day', at, 'UTC')", "z"),
    ({"column": "at", "trunc": "day", "zone": BERLIN}, f"date_trunc('day', at, '{BERLIN}')", "z"),
    ({"column": "at", "trunc": "month", "zone": "Asia/Tokyo"}, "date_trunc('month', at, 'Asia/Tokyo')", "z"),
    ({"column": "at", "trunc": "hour", "zone": "Asia/Kathmandu"}, "date_trunc('hour', at, 'Asia/Kathmandu')", "z"),
    ({"column": "plain", "trunc": "week"}, "date_trunc('week', plain)", "t"),
    ({"column": "day", "trunc": "month"}, "date_trunc('month', day::timestamp)::date::text", ""),
    ({"column": "day", "trunc": "hour"}, "day::text", ""),
    ({"column": "doc->>at::timestamptz", "trunc": "day", "zone": BERLIN},
     f"date_trunc('day', (doc->>'at')::timestamptz, '{BERLIN}')", "z"),
    ({"column": "at::date", "trunc": "month"}, "date_trunc('month', (at AT TIME ZONE 'UTC')::date::timestamp)::date::text", ""),
    ({"column": "place.opened", "trunc": "day", "zone": BERLIN},
     f"(SELECT date_trunc('day', opened, '{BERLIN}') FROM places p WHERE p.id = place)", "z"),
    *(({"column": "at", "trunc": unit, "zone": BERLIN}, f"date_trunc('{unit}', at, '{BERLIN}')", "z")
      for unit in UNITS),
]  # fmt: skip


@pytest.mark.parametrize(("item", "sql", "kind"), CUT)
@pytest_twisted.ensureDeferred
async def test_truncated_time_equals_its_sql_in_every_clause(
    db: DirectCaller, dsn: str, item: dict[str, Any], sql: str, kind: str
) -> None:
    """In select, in ascending and descending order, in groups and in embeds."""
    shown = {"z": utc, "t": local}.get(kind, str)(sql)
    expected = execute(dsn, f"SELECT id, {shown} FROM visits ORDER BY id")
    found = await db.call("visits.find", select=["id", {**item, "as": "cut"}], order=["id"])
    assert [(row["id"], row["cut"]) for row in found["rows"]] == expected
    by = {"trunc": item["trunc"], "by": item["column"], "desc": True, "zone": item.get("zone")}
    ids = [id for (id,) in execute(dsn, f"SELECT id FROM visits ORDER BY {sql} DESC, id")]
    first = await db.call("visits.find", select=["id"], order=[by], limit=12)
    second = await db.call("visits.find", select=["id"], order=[by], limit=99, after=first["next"])
    assert [row["id"] for row in first["rows"] + second["rows"]] == ids
    back = await db.call("visits.find", select=["id"], order=[by], limit=99, before=second["prev"])
    assert back["rows"] == first["rows"]
    groups = await db.call("visits.aggregate", {"n": {"count": "*"}}, group=[{**item, "as": "cut"}])
    counts = execute(dsn, f"SELECT {shown}, count(*) FROM visits GROUP BY {sql} ORDER BY {sql}")
    assert [(each["cut"], each["n"]) for each in groups] == counts
    turned = await db.call(
        "visits.aggregate", {"n": {"count": "*"}}, group=[{**item, "as": "cut"}], order=["-cut"]
    )
    assert turned == groups[::-1]
    embed = {"visits": {"measures": {"n": {"count": "*"}}, "group": [{**item, "as": "cut"}]}}
    if not item["column"].startswith("place"):
        places = await db.call("places.find", embed=embed)
        total = sum(each["n"] for row in places["rows"] for each in row["visits"])
        assert total == sum(
            row[0] is not None for row in execute(dsn, "SELECT nullif(place, 0) FROM visits")
        )


@pytest_twisted.ensureDeferred
async def test_interval_is_truncated(db: DirectCaller, dsn: str) -> None:
    """Without a time zone; measures accept truncated values, too."""
    (row,) = (
        await db.call("visits.find", where={"id": 9}, select=[{"column": "took", "trunc": "hour"}])
    )["rows"]
    assert row == {"took": "PT2H"}
    measure = {"count": {"column": "at", "trunc": "day", "zone": BERLIN}, "distinct": True}
    ((n,),) = execute(dsn, f"SELECT count(DISTINCT date_trunc('day', at, '{BERLIN}')) FROM visits")
    assert await db.call("visits.aggregate", {"days": measure}) == [{"days": n}]


@pytest.mark.parametrize(
    ("item", "path"),
    [
        ({"column": "at", "trunc": "fortnight"}, "trunc"),
        ({"column": "at", "trunc": 5}, "trunc"),
        ({"column": "at", "trunc": ["day"]}, "trunc"),
        ({"column": "at", "trunc": "day'); DROP TABLE visits; --"}, "trunc"),
        ({"column": "at", "zone": BERLIN}, "zone"),
        ({"column": "at", "trunc": "day", "zone": 5}, "zone"),
        ({"column": "at", "trunc": "day", "zone": ""}, "zone"),
        ({"column": "at", "trunc": "day", "zone": "a\0"}, "zone"),
        ({"column": "at", "trunc": "day", "zone": "Mars/Olympus"}, "zone"),
        ({"column": "at", "trunc": "day", "zone": "'); DROP TABLE visits; --"}, "zone"),
        ({"column": "plain", "trunc": "day", "zone": BERLIN}, "zone"),
        ({"column": "day", "trunc": "month", "zone": BERLIN}, "zone"),
        ({"column": "at", "trunc": "day", "cast": "text"}, "cast"),
        ({"column": "noon", "trunc": "hour"}, "column"),
        ({"column": "id", "trunc": "day"}, "column"),
        ({"column": "doc->>at", "trunc": "day"}, "column"),
        ({"column": "secret", "trunc": "day"}, "column"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_invalid_truncation_is_refused_with_its_path(
    db: DirectCaller, item: dict[str, Any], path: str
) -> None:
    refused = await failure_of(db.call("visits.find", select=[item]))
    assert isinstance(refused, InvalidArgument), refused
    assert refused.details["path"] == f"select.0.{path}"
    if path == "trunc":
        assert "day, week, month" in f"{refused.message} {refused.details.get('hint')}"
    rest = {name: value for name, value in item.items() if name not in ("column", "cast")}
    if path != "cast":
        refused = await failure_of(db.call("visits.find", order=[{"by": item["column"], **rest}]))
        assert isinstance(refused, InvalidArgument), refused
        assert refused.details["path"] == f"order.0.{path.replace('column', 'by')}"
    assert await db.call("visits.count") == 30
