"""
Idempotency keys under mapped roles: no role but the service's has a right on them, or needs one.
"""

from __future__ import annotations

import pytest
import pytest_twisted
from psycopg2.extensions import make_dsn

from schema.own import MAKE
from service.api.idempotency import Pruner
from service.api.roles import Roles
from service.errors import InvalidArgument, NotAuthorized, ServiceError
from service.request.arguments import Caller
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller, serving
from tests.deferreds import failure_of

SCHEMA = (
    MAKE
    + """;
CREATE ROLE keys_clerk; CREATE ROLE keys_boss; CREATE ROLE keys_poor LOGIN;
CREATE TABLE notes (id serial PRIMARY KEY, note text, by text DEFAULT current_user);
CREATE TABLE fired (who text, under text);
CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO fired VALUES (current_user, current_setting('rowcast.authid', true)); RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON notes DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION fire();
CREATE FUNCTION peek() RETURNS bigint LANGUAGE sql AS
    'SELECT count(*) FROM rowcast.idempotency_keys';
CREATE FUNCTION forge() RETURNS void LANGUAGE sql AS
    $$ INSERT INTO rowcast.idempotency_keys VALUES ('\\x00', '\\x00', '\\xf6') $$;
CREATE FUNCTION wipe() RETURNS void LANGUAGE sql AS 'DELETE FROM rowcast.idempotency_keys';
CREATE FUNCTION whoami() RETURNS text LANGUAGE sql AS
    $$ SELECT current_user || ' ' || current_setting('rowcast.authid') || ' ' || random() $$;
CREATE FUNCTION litter() RETURNS float LANGUAGE plpgsql AS $$ BEGIN
    CREATE TEMP TABLE idempotency_keys (id bytea, call bytea, result bytea);
    CREATE FUNCTION pg_temp.decode(text, text) RETURNS bytea LANGUAGE sql AS 'SELECT NULL::bytea';
    CREATE DOMAIN pg_temp.bytea AS text CHECK (false);
    PERFORM set_config('search_path', 'pg_temp, public', true);
    PERFORM set_config('standard_conforming_strings', 'off', true);
    RETURN random();
END $$;
GRANT ALL ON notes, fired TO keys_clerk, keys_boss, keys_poor;
GRANT ALL ON SEQUENCE notes_id_seq TO keys_clerk, keys_boss, keys_poor;
"""
)
pytestmark = pytest.mark.serving(
    roles=Roles({"clerk": "keys_clerk", "boss": "keys_boss"}, "keys_boss")
)
BEFORE_EACH = "TRUNCATE notes, fired, rowcast.idempotency_keys RESTART IDENTITY"

ANN, BOSS, GUEST = (
    Caller(1, "ann", "clerk", "realm1"),
    Caller(2, "ann", "boss", "realm1"),
    Caller(3, "J3X", "guest", "realm1"),
)


@pytest.mark.parametrize("batch", [False, True])
@pytest_twisted.ensureDeferred
async def test_write_runs_as_the_role_and_the_key_is_kept_as_the_service(
    db: DirectCaller, dsn: str, batch: bool
) -> None:
    """A deferred trigger too, which without a key fires at COMMIT."""
    for _ in range(2):
        if batch:
            call = {"call": "notes.create", "args": [{"note": "x"}]}
            found = (await db.call_as(ANN, "transaction", [call], idempotency_key="k"))[0]
        else:
            found = await db.call_as(ANN, "notes.create", {"note": "x"}, idempotency_key="k")
        assert found == {"id": 1, "note": "x", "by": "keys_clerk"}
    assert execute(dsn, "SELECT by FROM notes") == [("keys_clerk",)]
    assert execute(dsn, "SELECT * FROM fired") == [("keys_clerk", "ann")]
    assert execute(dsn, "SELECT count(*) FROM rowcast.idempotency_keys") == [(1,)]


@pytest_twisted.ensureDeferred
async def test_function_is_called_as_the_role_and_with_the_claims(db: DirectCaller) -> None:
    one, two = [await db.call_as(ANN, "fn.whoami", idempotency_key="k") for _ in range(2)]
    assert one == two
    assert one.startswith("keys_clerk ann ")


@pytest.mark.parametrize("name", ["fn.peek", "fn.forge", "fn.wipe"])
@pytest.mark.parametrize("key", [None, "other"])
@pytest_twisted.ensureDeferred
async def test_served_function_has_no_access_to_keys(
    db: DirectCaller, dsn: str, name: str, key: str | None
) -> None:
    """This includes the transaction that stores a key."""
    await db.call_as(ANN, "notes.create", {"note": "x"}, idempotency_key="k")
    for kwargs in ({}, {"args": {}}):
        error = await failure_of(db.call_as(BOSS, name, **kwargs, idempotency_key=key))
        assert isinstance(error, ServiceError)
        assert error.details["sqlstate"] == "42501"
    call = [{"call": name}]
    error = await failure_of(db.call_as(BOSS, "transaction", call, idempotency_key=key))
    assert isinstance(error, ServiceError)
    assert error.details["sqlstate"] == "42501"
    assert execute(dsn, "SELECT count(*) FROM rowcast.idempotency_keys") == [(1,)]


@pytest.mark.parametrize("batch", [False, True])
@pytest_twisted.ensureDeferred
async def test_objects_left_by_a_function_are_not_taken_for_stored_results(
    db: DirectCaller, dsn: str, batch: bool
) -> None:
    name, args = ("transaction", [[{"call": "fn.litter"}]]) if batch else ("fn.litter", [])
    one, two = [await db.call_as(ANN, name, *args, idempotency_key="k") for _ in range(2)]
    assert one == two


@pytest_twisted.ensureDeferred
async def test_key_used_under_another_role_is_refused(db: DirectCaller, dsn: str) -> None:
    """The authid is the same, but the role may be allowed to read less."""
    await db.call_as(ANN, "notes.create", {"note": "x"}, idempotency_key="k")
    error = await failure_of(db.call_as(BOSS, "notes.create", {"note": "x"}, idempotency_key="k"))
    assert isinstance(error, InvalidArgument)
    assert error.details["path"] == "idempotency_key"
    assert execute(dsn, "SELECT count(*) FROM notes") == [(1,)]


@pytest_twisted.ensureDeferred
async def test_caller_without_a_role_of_its_own_is_anonymous(db: DirectCaller) -> None:
    await db.call_as(GUEST, "notes.create", {"note": "x"})
    error = await failure_of(db.call_as(GUEST, "notes.create", {"note": "x"}, idempotency_key="k"))
    assert isinstance(error, NotAuthorized)


@pytest_twisted.ensureDeferred
async def test_missing_right_on_the_table_is_refused_with_the_grant(dsn: str) -> None:
    """Another role may have run the migrations."""
    execute(dsn, "TRUNCATE notes, fired, rowcast.idempotency_keys RESTART IDENTITY")
    async with serving(make_dsn(dsn, user="keys_poor")) as db:
        for name, args in (("notes.create", {"note": "x"}), ("transaction", [])):
            error = await failure_of(db.call_as(ANN, name, args, idempotency_key="k"))
            assert isinstance(error, NotAuthorized)
            assert error.details["hint"].startswith("GRANT USAGE ON SCHEMA rowcast, and SELECT, ")
        assert execute(dsn, "SELECT count(*) FROM notes") == [(0,)]
        execute(
            dsn,
            "GRANT USAGE ON SCHEMA rowcast TO keys_poor;"
            "GRANT SELECT, INSERT, UPDATE, DELETE ON rowcast.idempotency_keys TO keys_poor",
        )
        for _ in range(2):
            await db.call_as(ANN, "notes.create", {"note": "x"}, idempotency_key="k")
        assert execute(dsn, "SELECT count(*) FROM notes") == [(1,)]
        execute(dsn, "UPDATE rowcast.idempotency_keys SET kept_at = 'epoch'")
        await Pruner(db.database, 60).prune()
        assert execute(dsn, "SELECT count(*) FROM rowcast.idempotency_keys") == [(0,)]
