"""Functions called by each client through a router: names, arguments and results."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import CallOptions

from tests.conftest import Router
from tests.deferreds import failure_of
from tests.wamp.callers import KINDS, join
from tests.wamp.service import served

SCHEMA = """
CREATE SCHEMA app;
CREATE FUNCTION add(a int, b int DEFAULT 2) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT a + b';
CREATE FUNCTION echo(jsonb) RETURNS jsonb IMMUTABLE LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION bytes(bytea) RETURNS bytea IMMUTABLE LANGUAGE sql AS $$SELECT $1 || '\\x00'$$;
CREATE FUNCTION app."odd. #%name"(timeout int) RETURNS TABLE (n int, half numeric) IMMUTABLE
    LANGUAGE sql AS 'SELECT i, i / 2.0 FROM generate_series(1, timeout) i';
CREATE FUNCTION angry() RETURNS void LANGUAGE plpgsql AS $$BEGIN RAISE 'no'; END$$;
"""


@pytest.mark.parametrize("how", KINDS)
@pytest_twisted.ensureDeferred
async def test_function_called_by_any_transport_has_the_same_result(
    how: str, dsn: str, router: Router
) -> None:
    async with served(dsn, router, schemas="public,app"):
        caller = await join(router, how)
        try:
            assert await caller.call("rowcast.fn.add", a=1) == 3
            doc = {"a": [1, None, "é"]}
            assert await caller.call("rowcast.fn.echo", doc) == doc
            assert await caller.call("rowcast.fn.bytes", b"\1\xff") == b"\1\xff\0"
            odd = "rowcast.app.fn.odd%2E%20%23%25name"
            assert await caller.call(odd, timeout=1) == [{"n": 1, "half": "0.50000000000000000000"}]
            page = await caller.call(f"{odd}.find", args={"timeout": 9}, limit=1, order=["-n"])
            assert page["rows"][0]["n"] == 9
            parts: list[Any] = []
            options = CallOptions(on_progress=parts.append)
            rows = caller.call(f"{odd}.stream", args={"timeout": 900}, options=options)
            assert await rows == {"rows": 900}
            assert [row["n"] for part in parts for row in part] == [*range(1, 901)]
            refused = await failure_of(caller.call("rowcast.fn.angry"))
            assert isinstance(refused, ApplicationError)
            assert refused.error == "rowcast.error.raised"
            unknown = await failure_of(caller.call("rowcast.fn.ad"))
            assert isinstance(unknown, ApplicationError)
            assert unknown.error == "wamp.error.no_such_procedure"
        finally:
            await caller.close()
