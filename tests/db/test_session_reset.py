"""
No call leaves state behind in its PostgreSQL session.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from twisted.internet.defer import gatherResults

from service.api.roles import Roles
from service.db.connection import PgConnection
from service.db.statements import value_txn
from service.request.arguments import Caller
from service.sql.statement import Statement
from tests.conftest import execute
from tests.db.dispatchers import ANYONE, DirectCaller, serving
from tests.db.relay import Relay
from tests.deferreds import failure_of, until

ROLES = Roles({"clerk": "left_clerk"}, "postgres")
CLERK = Caller(7, "p1", "clerk", "realm1")

SCHEMA = """
CREATE ROLE left_clerk; GRANT pg_read_all_data TO left_clerk;
CREATE SEQUENCE numbers;
CREATE TABLE todo (words text);
CREATE FUNCTION leave() RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE words text := (SELECT t.words FROM public.todo t);
BEGIN EXECUTE words; RETURN true; END$$;
CREATE FUNCTION leave_and_fail() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN PERFORM leave(); RAISE 'failed'; END$$;
CREATE FUNCTION leave_and_sleep() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN PERFORM leave(); PERFORM pg_sleep(20); RETURN true; END$$;
CREATE FUNCTION leave_rows() RETURNS SETOF todo LANGUAGE plpgsql AS $$
BEGIN PERFORM leave(); RETURN QUERY SELECT * FROM public.todo; END$$;
CREATE PROCEDURE leave_and_commit() LANGUAGE plpgsql AS $$
BEGIN COMMIT; PERFORM public.leave(); COMMIT; END$$;
CREATE FUNCTION leave_of_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM public.leave(); RETURN NEW; END$$;
CREATE TABLE triggered (id int);
CREATE TRIGGER leave BEFORE INSERT ON triggered FOR EACH ROW EXECUTE FUNCTION leave_of_row();
CREATE TABLE deferred (id int);
CREATE CONSTRAINT TRIGGER leave AFTER INSERT ON deferred DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION leave_of_row();
CREATE TABLE plain (id int PRIMARY KEY);
INSERT INTO plain VALUES (1);
CREATE FUNCTION leaving(plain) RETURNS boolean LANGUAGE sql AS 'SELECT public.leave()';
CREATE TABLE defaulted (id int, left_it boolean DEFAULT leave());
CREATE TABLE ruled (id int);
CREATE RULE leave AS ON INSERT TO ruled DO ALSO SELECT leave();
CREATE TABLE policed (id int);
INSERT INTO policed VALUES (1);
ALTER TABLE policed ENABLE ROW LEVEL SECURITY; ALTER TABLE policed FORCE ROW LEVEL SECURITY;
CREATE POLICY leave ON policed USING (leave());
CREATE VIEW viewed AS SELECT leave() AS left_it;
CREATE DOMAIN checked AS int CHECK (leave());
CREATE TABLE of_checked (id checked);
CREATE TABLE parents (id int PRIMARY KEY);
CREATE TABLE children (id int PRIMARY KEY, parent int REFERENCES parents ON DELETE CASCADE);
CREATE FUNCTION leave_of_old() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM public.leave(); RETURN OLD; END$$;
CREATE TRIGGER leave BEFORE DELETE ON children FOR EACH ROW EXECUTE FUNCTION leave_of_old();
CREATE TABLE numbered (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, tenant text);
INSERT INTO numbered (tenant) VALUES ('red'), ('blue');
CREATE TABLE tenants (id int PRIMARY KEY, tenant text);
INSERT INTO tenants VALUES (1, 'red'), (2, 'blue');
ALTER TABLE tenants ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON tenants USING (tenant = current_setting('app.tenant', true));
GRANT ALL ON ALL TABLES IN SCHEMA public TO left_clerk;
GRANT USAGE ON SEQUENCE numbers TO left_clerk;
CREATE FUNCTION set_all() RETURNS int8 LANGUAGE plpgsql AS $$
DECLARE each record; value text;
BEGIN
  FOR each IN SELECT * FROM pg_settings WHERE context IN ('user', 'superuser')
              AND name !~ '^(transaction_|plpgsql|debug_discard_caches|exit_on|role$|session_auth)' LOOP
    FOREACH value IN ARRAY ARRAY['on', 'off', each.min_val, each.max_val, 'German', 'LATIN1', 'C',
                                 'elsewhere', '1', '2', 'UTC', 'Asia/Tokyo'] || each.enumvals LOOP
      BEGIN
        PERFORM set_config(each.name, value, false);
        EXIT WHEN current_setting(each.name) <> each.reset_val;
      EXCEPTION WHEN OTHERS THEN NULL;
      END;
    END LOOP;
  END LOOP;
  PERFORM set_config('statement_timeout', '70s', false), set_config('lock_timeout', '70s', false);
  RETURN (SELECT count(*) FROM pg_settings WHERE setting <> reset_val AND name !~ '^transaction_');
END$$;
CREATE FUNCTION last_number() RETURNS int8 LANGUAGE sql AS 'SELECT lastval()';
CREATE FUNCTION last_seeded() RETURNS float8 LANGUAGE sql AS 'SELECT random()';
"""

LEFT = {
    "custom setting": "SET app.tenant = 'red'",
    "statement_timeout": "SET statement_timeout = '7s'",
    "lock_timeout": "SET lock_timeout = '7s'",
    "work_mem": "SET work_mem = '7MB'",
    "extra_float_digits": "SET extra_float_digits = -10",
    "bytea_output": "SET bytea_output = 'escape'",
    "timezone": "SET timezone = 'Asia/Tokyo'",
    "datestyle": "SET datestyle = 'German'",
    "client_encoding": "SET client_encoding = 'LATIN1'",
    "standard_conforming_strings": "SET standard_conforming_strings = off",
    "row_security": "SET row_security = off",
    "session_replication_role": "SET session_replication_role = replica",
    "default_transaction_isolation": "SET default_transaction_isolation = serializable",
    "default_transaction_read_only": "SET default_transaction_read_only = on",
    "search_path": "SET search_path = elsewhere",
    "role": "SET ROLE left_clerk",
    "session authorization": "SET SESSION AUTHORIZATION left_clerk",
    "temporary table": "CREATE TEMPORARY TABLE IF NOT EXISTS plain (id int)",
    "advisory lock": "SELECT pg_advisory_lock(7)",
    "prepared statement": "PREPARE left_here AS SELECT 1",
    "listening": "LISTEN left_here",
    "cursor": "DECLARE left_here CURSOR WITH HOLD FOR SELECT 1",
    "number": "SELECT nextval('public.numbers')",
}
"""By kind of session state: a statement that leaves it behind."""

STATE = """
SELECT json_build_object(
  'settings', (SELECT json_object_agg(name, setting) FROM pg_settings
                WHERE name !~ '^(transaction|plpgsql)'),
  'custom', coalesce(current_setting('app.tenant', true), ''),
  'who', concat(session_user, ' ', current_user),
  'tables', (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()),
  'locks', (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
  'statements', (SELECT count(*) FROM pg_prepared_statements),
  'cursors', (SELECT count(*) FROM pg_cursors WHERE name = 'left_here'),
  'channels', (SELECT count(*) FROM pg_listening_channels()))
"""


async def state(db: DirectCaller) -> dict[str, Any]:
    """Return the state of a session, with `lastval` as "number"."""
    ((found,),) = await db.database.statement(STATE)
    try:
        found["number"] = await db.database.statement("SELECT lastval()")
    except psycopg2.errors.ObjectNotInPrerequisiteState:
        found["number"] = None
    return dict(found)


@pytest_twisted.async_yield_fixture
async def db(dsn: str) -> AsyncIterator[DirectCaller]:
    """Serve the database with one session for all calls."""
    async with serving(dsn, roles=ROLES, most=1) as callee:

        async def by_hand(*_: Any) -> None:
            await callee.database.statement("SELECT leave()")

        async def by_hand_in_scope(*_: Any) -> None:
            async with callee.database.transaction():
                await callee.database.statement("SELECT leave()")

        callee.dispatcher.add({"by.hand": by_hand, "by.hand_in_scope": by_hand_in_scope})
        yield callee


CODE: dict[str, tuple[str, dict[str, Any]]] = {
    "function": ("fn.leave", {}),
    "function of rows": ("fn.leave_rows.find", {"count": "exact"}),
    "procedure that commits": ("fn.leave_and_commit", {}),
    "trigger": ("triggered.create", {"values": {"id": 1}, "returning": False}),
    "deferred trigger": ("deferred.create", {"values": {"id": 1}, "returning": False}),
    "computed column": ("plain.find", {"select": ["leaving"]}),
    "filter by a computed column": ("plain.count", {"where": {"leaving": True}}),
    "column default": ("defaulted.create", {"values": {"id": 1}}),
    "rule": ("ruled.create", {"values": {"id": 1}, "returning": False}),
    "view": ("viewed.find", {}),
    "domain": ("of_checked.create", {"values": {"id": 1}}),
    "procedure by hand": ("by.hand", {}),
    "procedure by hand in a transaction": ("by.hand_in_scope", {}),
}


def order(dsn: str, words: str) -> None:
    """Store the statement that the code of the tests is to run."""
    execute(dsn, "DELETE FROM todo")
    execute(dsn, "INSERT INTO todo VALUES ($words$" + words + "$words$)")


@pytest.mark.parametrize("code", CODE)
@pytest_twisted.ensureDeferred
async def test_call_of_any_code_leaves_no_session_state(
    db: DirectCaller, dsn: str, code: str
) -> None:
    """Whatever the state and the kind of code, the next call has a clean session."""
    name, kwargs = CODE[code]
    before = await state(db)
    for left, words in LEFT.items():
        order(dsn, words)
        await db.dispatcher.answer(name, (), kwargs, ANYONE)
        assert await state(db) == before, left


@pytest_twisted.ensureDeferred
async def test_policies_and_cascades_leave_no_session_state(db: DirectCaller, dsn: str) -> None:
    """Policies run code on reads, and triggers of other tables on cascading deletes."""
    before = await state(db)
    for words in (LEFT["custom setting"], LEFT["work_mem"], LEFT["advisory lock"]):
        order(dsn, words)
        assert len((await db.dispatcher.answer("policed.find", (), {}, CLERK))["rows"]) == 1
        assert await state(db) == before, words
        await db.dispatcher.answer("parents.create", (), {"values": {"id": 1}}, ANYONE)
        await db.dispatcher.answer(
            "children.create", (), {"values": {"id": 1, "parent": 1}}, ANYONE
        )
        await db.dispatcher.answer("parents.delete", (1,), {}, ANYONE)
        assert await state(db) == before, words


@pytest.mark.parametrize("caller", [ANYONE, CLERK], ids=["superuser", "role"])
@pytest_twisted.ensureDeferred
async def test_settings_changed_by_a_call_are_reset(db: DirectCaller, caller: Caller) -> None:
    """Each setting has its initial value again for the next call."""
    before = await state(db)
    backend = await db.database.statement("SELECT pg_backend_pid()")
    changed = await db.dispatcher.answer("fn.set_all", (), {}, caller)
    assert changed > (170 if caller is ANYONE else 120)
    assert await state(db) == before
    assert await db.database.statement("SELECT pg_backend_pid()") == backend


@pytest.mark.parametrize("left", LEFT)
@pytest_twisted.ensureDeferred
async def test_failed_call_leaves_no_session_state(db: DirectCaller, dsn: str, left: str) -> None:
    """An error rolls back settings but not advisory locks; the same holds for a timeout."""
    before = await state(db)
    order(dsn, LEFT[left])
    assert await failure_of(db.dispatcher.answer("fn.leave_and_fail", (), {}, ANYONE))
    assert await state(db) == before
    late = db.dispatcher.answer("fn.leave_and_sleep", (), {"timeout": 0.05}, ANYONE)
    assert await failure_of(late)
    await until(lambda: db.pool.stats().busy == 0)
    assert await state(db) == before

    async def scope() -> None:
        async with db.database.transaction():
            await db.dispatcher.answer("fn.leave", (), {}, ANYONE)
            raise KeyError

    assert isinstance(await failure_of(scope()), KeyError)
    assert await state(db) == before


@pytest_twisted.ensureDeferred
async def test_lock_of_a_function_is_released_before_its_result(db: DirectCaller, dsn: str) -> None:
    """When the caller has the result or the error, the function's locks are released."""
    order(dsn, LEFT["advisory lock"])
    free = "SELECT pg_try_advisory_lock(7)"
    for name in ("leave", "leave_and_commit", "leave_and_fail"):
        try:
            await db.dispatcher.answer(f"fn.{name}", (), {}, ANYONE)
        except Exception:
            assert name == "leave_and_fail"
        assert execute(dsn, free) == [(True,)], name
    assert await failure_of(_failing(db))
    assert execute(dsn, free) == [(True,)]


async def _failing(db: DirectCaller) -> None:
    async with db.database.transaction():
        await db.dispatcher.answer("fn.leave", (), {}, ANYONE)
        raise KeyError


@pytest_twisted.ensureDeferred
async def test_policies_read_no_settings_of_other_callers(db: DirectCaller, dsn: str) -> None:
    """Settings made by one caller's function do not affect the policies of another caller."""
    order(dsn, "SET app.tenant = 'red'")
    await db.call_as(CLERK, "fn.leave")
    assert (await db.call_as(CLERK, "tenants.find"))["rows"] == []


@pytest_twisted.ensureDeferred
async def test_lastval_does_not_leak_to_the_next_call(db: DirectCaller) -> None:
    """`lastval` does not return the sequence value of another call."""
    assert (await db.call("numbered.create", {"tenant": "x"}))["tenant"] == "x"
    assert "lastval" in str(await failure_of(db.call("fn.last_number")))
    await db.call("numbered.create", {"tenant": "x"})
    assert "lastval" in str(await failure_of(db.call_as(CLERK, "fn.last_number")))
    await db.call("numbered.create", {"tenant": "x"})
    last = db.database.statement("SELECT lastval()")
    assert isinstance(await failure_of(last), psycopg2.errors.ObjectNotInPrerequisiteState)


@pytest_twisted.ensureDeferred
async def test_random_numbers_do_not_depend_on_other_callers(db: DirectCaller, dsn: str) -> None:
    """`setseed` in a function does not affect other callers."""
    order(dsn, "SELECT setseed(0.5)")
    found = set()
    for _ in range(3):
        await db.call("fn.leave")
        found.add(await db.call("fn.last_seeded"))
    assert len(found) == 3


@pytest_twisted.ensureDeferred
async def test_call_that_runs_no_code_needs_no_reset(dsn: str) -> None:
    """A read or write of a relation without code is one message, a function call is two."""
    with Relay(dsn) as relay:
        async with serving(relay.dsn, most=1) as db:

            async def messages(name: str, *args: Any, **kwargs: Any) -> list[bytes]:
                before = len(relay.messages)
                await db.call(name, *args, **kwargs)
                return relay.messages[before:]

            await db.call("plain.get", 1)
            for name, kwargs in (
                ("plain.find", {"where": {"id": 1}}),
                ("plain.count", {}),
                ("numbered.find", {"order": ["-id"], "limit": 1}),
                ("numbered.aggregate", {"measures": {"n": {"count": "*"}}}),
                ("numbered.create", {"values": {"tenant": "a"}, "returning": False}),
                ("numbered.update", {"key": 1, "changes": {"tenant": "b"}, "returning": False}),
            ):
                assert len(await messages(name, **kwargs)) == 1, name
            order(dsn, "SELECT 1")
            called = await messages("fn.leave")
            assert len(called) == 2
            assert called[0].startswith(b"BEGIN;DISCARD SEQUENCES;SELECT")
            assert called[1].startswith(b"SET CONSTRAINTS ALL IMMEDIATE;SET SESSION AUTH")
            assert called[1].endswith(b"COMMIT")
            assert len(await messages("viewed.find")) == 2
            assert len(await messages("plain.find", select=["leaving"])) == 2


@pytest_twisted.ensureDeferred
async def test_code_added_later_leaves_no_session_state(dsn: str) -> None:
    """After the catalog is read again, sessions are reset after the new code."""
    both = threading.Barrier(2, timeout=10)

    def unknown_txn(connection: PgConnection) -> None:
        connection.command("SET work_mem = '7MB'")  # as code that the catalog does not show
        both.wait()

    def asked_txn(connection: PgConnection) -> Any:
        both.wait()
        return connection.ask("SHOW work_mem")

    async with serving(dsn, most=2) as db:
        old = db.dispatcher.served
        await gatherResults([db.database.run(unknown_txn) for _ in range(2)])
        db.catalogs.reload()
        await until(lambda: db.dispatcher.served is not old)
        asked = [db.database.run(asked_txn) for _ in range(2)]
        assert await gatherResults(asked) == [("4MB",), ("4MB",)]


@pytest_twisted.ensureDeferred
async def test_session_is_reset_after_a_call_by_an_older_catalog(db: DirectCaller) -> None:
    """That a relation has no code is certain only with the newest catalog."""
    sets = Statement("SELECT set_config('work_mem', '7MB', false)", (), "x", ("a",), pure=True)
    old = db.dispatcher.served
    await db.database.run(value_txn, old.codec, sets, ())
    assert await db.database.statement("SHOW work_mem") == [("7MB",)]
    db.catalogs.reload()
    await until(lambda: db.dispatcher.served is not old)
    await db.database.run(value_txn, old.codec, sets, ())
    assert await db.database.statement("SHOW work_mem") == [("4MB",)]


@pytest_twisted.ensureDeferred
async def test_session_is_closed_after_code_in_a_language_with_state(
    db: DirectCaller, dsn: str
) -> None:
    """If a language can keep state that no statement resets, the session is closed."""
    execute(dsn, "CREATE LANGUAGE left_perl HANDLER plpgsql_call_handler")
    assert await db.catalogs.refresh()

    async def backend() -> Any:
        return await db.database.run(lambda connection: connection.info.backend_pid)

    first = await backend()
    assert await backend() == first
    for call in (db.call("fn.leave"), db.call("fn.leave_and_commit"), db.call("by.hand")):
        await call
        last, first = first, await backend()
        assert first != last
    await db.call("numbered.find")
    assert await backend() == first
    execute(dsn, "DROP LANGUAGE left_perl")


@pytest.mark.parametrize("lasting", [False, True])
@pytest_twisted.ensureDeferred
async def test_session_is_closed_if_an_extension_keeps_state_that_no_statement_resets(
    dsn: str, lasting: bool
) -> None:
    """The extensions of the database decide; without such an extension, sessions are reused."""
    execute(dsn, "DROP EXTENSION IF EXISTS dblink")
    execute(dsn, "CREATE OR REPLACE FUNCTION who() RETURNS int LANGUAGE plpgsql"
                 " AS 'BEGIN RETURN pg_backend_pid(); END'")  # fmt: skip
    if lasting:
        execute(dsn, "CREATE EXTENSION dblink")
    try:
        async with serving(dsn) as db:
            sessions = [await db.call("fn.who") for _ in range(9)]
        assert (len(set(sessions)) == len(sessions)) is lasting
    finally:
        execute(dsn, "DROP EXTENSION IF EXISTS dblink; DROP FUNCTION who()")
