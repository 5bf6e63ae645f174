"""
Topics at the router, and column privileges.
"""

from __future__ import annotations

import pytest_twisted

from schema.changes import install
from tests.conftest import Router, execute
from tests.deferreds import until
from tests.wamp.conftest import Join
from tests.wamp.service import served
from tests.wamp.test_topics_sources import heard_by

SCHEMA = f"""
CREATE ROLE topics_reader; CREATE ROLE topics_guest;
CREATE TABLE granted (id int PRIMARY KEY, name text, phone text);
CREATE TABLE open (id int PRIMARY KEY);
GRANT SELECT ON granted, open TO topics_reader;
GRANT SELECT (id, name) ON granted TO topics_guest;
GRANT SELECT ON open TO topics_guest;
{install()}
SELECT rowcast.track('granted'), rowcast.track('open');
"""


@pytest_twisted.ensureDeferred
async def test_event_is_delivered_only_to_roles_that_may_read_all_of_its_columns(
    dsn: str, router: Router, call_from: Join
) -> None:
    async with served(dsn, router, roles="service=topics_reader", anonymous="topics_guest"):
        guest = await heard_by(await call_from(), "granted", "open")
        reader = await heard_by(await call_from("service cbor"), "granted", "open")
        execute(dsn, "INSERT INTO granted VALUES (1, 'a', '555')")
        execute(dsn, "INSERT INTO open VALUES (1)")
        await until(lambda: guest and len(reader) == 2)
        assert [each["relation"] for each in guest] == ["open"]
        assert reader[0]["row"] == {"id": 1, "name": "a", "phone": "555"}
        execute(dsn, "GRANT SELECT (phone) ON granted TO topics_guest")
        execute(dsn, "INSERT INTO granted VALUES (2, 'b', '556')")
        execute(dsn, "REVOKE SELECT (phone) ON granted FROM topics_guest")
        execute(dsn, "INSERT INTO granted VALUES (3, 'c', '557')")
        execute(dsn, "INSERT INTO open VALUES (2)")
        # The number of earlier events of `granted` depends on the ticks: each tick has at most one reset.
        last = {"id": 2}
        await until(lambda: all(each[-1]["row"] == last for each in (guest, reader)))
        assert reader[2]["relation"] == "granted"
        assert "557" not in repr(guest), "its right had ended before the row was written"
        assert [each["relation"] for each in guest][-1] == "open"
