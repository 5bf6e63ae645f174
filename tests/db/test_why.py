"""
`why`: a line for each reason why a table's changes do not arrive, with the remedy.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import pytest
import pytest_twisted
from psycopg2.extensions import make_dsn

from schema.changes import remove, track_table
from service.api.roles import Roles
from service.changes.leader import Duty, duty_txn, prepare_txn
from service.changes.why import (
    Check,
    NoTestRow,
    WhyProcedure,
    service_checks,
    table_checks_txn,
    try_txn,
)
from service.db.session_settings import SessionSettings, open_session
from service.errors import UnknownName
from service.request.arguments import Caller
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller
from tests.deferreds import failure_of

SCHEMA = """
CREATE TABLE things (id int PRIMARY KEY, note text);
CREATE TABLE keyless (n int);
CREATE VIEW seen AS SELECT * FROM things;
CREATE MATERIALIZED VIEW stored AS SELECT * FROM things;
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child () INHERITS (parent);
CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER elsewhere FOREIGN DATA WRAPPER nothing;
CREATE FOREIGN TABLE remote (id int) SERVER elsewhere;
CREATE UNLOGGED TABLE fleeting (id int PRIMARY KEY);
CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY LIST (id);
CREATE TABLE part PARTITION OF parts FOR VALUES IN (1);
DO $$ BEGIN
    IF to_regrole('why_reader') IS NULL THEN CREATE ROLE why_reader; END IF;
    IF to_regrole('why_nobody') IS NULL THEN CREATE ROLE why_nobody; END IF;
END $$;
GRANT SELECT ON things TO why_reader;
"""

ROLES = Roles({"reader": "why_reader", "nobody": "why_nobody"})
pytestmark = pytest.mark.serving(roles=ROLES)


@pytest.fixture
def tracked(dsn: str) -> Iterator[str]:
    """Track only `things`."""
    track_table(dsn, "things", "full", True)
    yield dsn
    execute(dsn, remove())


def checks(dsn: str, name: str, role: str | None = None) -> list[Check]:
    connection = open_session(dsn, SessionSettings())
    try:
        return table_checks_txn(connection, "public", name, role)
    finally:
        connection.close()


def failing(dsn: str, name: str, role: str | None = None) -> list[str]:
    return [check.line() for check in checks(dsn, name, role) if check.ok is False]


def test_why_of_a_database_without_a_log_names_the_command(dsn: str) -> None:
    assert failing(dsn, "things") == [
        "[-] there is no log of changes → rowcast track public.things"
    ]


def test_why_of_a_log_of_another_role_names_its_owner(tracked: str) -> None:
    execute(tracked, "CREATE ROLE why_service LOGIN; GRANT SELECT ON things TO why_service")
    mine = make_dsn(tracked, user="why_service")
    ((owner,),) = execute(tracked, "SELECT current_user::text")
    line = (
        "[-] the log of changes is {}'s, and the service, which is why_service, may not read it → "
    )
    anew = (
        "or, without the changes and idempotency keys so far, DROP SCHEMA rowcast CASCADE, "
        "then rowcast track public.things as why_service"
    )
    nobody_reads = ["[-] nobody has read the log yet → start a service (make run)"]
    try:
        cure = f'GRANT "{owner}" TO "why_service"'
        risk = " (which may then do what a superuser may)"
        assert failing(mine, "things") == [f"{line.format(owner)}{cure}{risk}; {anew}"]
        execute(tracked, cure)
        assert failing(mine, "things") == nobody_reads
        execute(tracked, f'REVOKE "{owner}" FROM why_service')
        execute(tracked, f"{remove()} CREATE ROLE why_owner LOGIN")
        ((name,),) = execute(tracked, "SELECT current_database()")
        execute(tracked, f"GRANT CREATE ON DATABASE {name} TO why_owner")
        execute(tracked, "GRANT TRIGGER ON things TO why_owner")
        track_table(make_dsn(tracked, user="why_owner"), "things", "full", True)
        cure = 'GRANT "why_owner" TO "why_service"'
        assert failing(mine, "things") == [f"{line.format('why_owner')}{cure}; {anew}"]
        execute(tracked, cure)
        assert failing(mine, "things") == nobody_reads
    finally:
        execute(tracked, "DROP SCHEMA rowcast CASCADE")
        execute(tracked, "DROP OWNED BY why_service, why_owner; DROP ROLE why_service, why_owner")
        track_table(tracked, "things", "full", True)


def test_why_of_a_tracked_table_without_a_reader_names_only_that(tracked: str) -> None:
    """The tick inserted here looks as if a service had read the log up to it."""
    assert failing(tracked, "things") == [
        "[-] nobody has read the log yet → start a service (make run)"
    ]
    execute(tracked, "INSERT INTO things VALUES (1, 'a')")
    tick = "INSERT INTO rowcast.ticks (tick, epoch, snapshot, changes) VALUES ({}, 1, pg_current_snapshot(), 1)"
    execute(tracked, tick.format(1))
    found = [check.text for check in checks(tracked, "things")]
    assert not failing(tracked, "things")
    assert any(text.startswith("its last change was logged 0.") for text in found), found

    execute(tracked, "INSERT INTO things VALUES (2, 'a')")
    assert not failing(tracked, "things")
    execute(tracked, "UPDATE rowcast.log SET at = at - interval '1 minute'")
    (line,) = failing(tracked, "things")
    assert "the log is not read: changes wait for 6" in line
    execute(tracked, "TRUNCATE things")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "seen",
            "[-] public.seen is a view, and has no changes of its own → track the tables under it",
        ),
        (
            "stored",
            "[-] public.stored is a materialized view, and REFRESH fires no trigger"
            " → watch a view of the same query, and track the tables under that",
        ),
        (
            "remote",
            "[-] public.remote is a foreign table, and what its own server writes fires no trigger here"
            " → serve the database that has it, and track it there",
        ),
        (
            "parent",
            "[-] public.parent has children by inheritance, whose rows fire no trigger of it"
            " → track the children",
        ),
        ("fleeting", "[-] public.fleeting is unlogged → ALTER TABLE public.fleeting SET LOGGED"),
        (
            "part",
            "[-] public.part is a partition: its changes are those of parts → rowcast why parts",
        ),
    ],
)
def test_why_of_an_untrackable_relation_does_not_advise_tracking(
    tracked: str, name: str, line: str
) -> None:
    """Neither a primary key nor tracking is advised, even without a log; rights are checked anyway."""
    grant = f'GRANT SELECT ON public.{name} TO "why_nobody"'
    expected = [line, f"[-] the role why_nobody may not read it → {grant}"]
    assert [check.line() for check in checks(tracked, name, "why_nobody")] == expected
    execute(tracked, remove())
    assert [check.line() for check in checks(tracked, name, "why_nobody")] == expected
    track_table(tracked, "things", "full", True)


@pytest.mark.parametrize(("name", "keyed"), [("keyless", False), ("parts", True), ("child", False)])
def test_why_of_an_untracked_table_is_untracked(tracked: str, name: str, keyed: bool) -> None:
    assert f"[-] it is not tracked → rowcast track public.{name}" in failing(tracked, name)
    advice = [check.mend for check in checks(tracked, name) if "primary key" in check.text]
    assert advice == [None if keyed else f"ALTER TABLE public.{name} ADD PRIMARY KEY (…)"]


def test_remedies_quote_the_table_for_the_shell_and_sql(tracked: str) -> None:
    execute(tracked, """CREATE TABLE "Odd it's.x" (n int)""")
    try:
        (command,) = [
            check.mend
            for check in checks(tracked, "Odd it's.x")
            if check.text == "it is not tracked"
        ]
        assert command
        assert shlex.split(command) == ["rowcast", "track", "public.Odd%20it's%2Ex"]
        assert track_table(tracked, shlex.split(command)[2], "full", True)
        grant = """GRANT SELECT ON public."Odd it's.x" TO "why_nobody\""""
        refused = f"[-] the role why_nobody may not read it → {grant}"
        assert refused in failing(tracked, "Odd it's.x", "why_nobody")
    finally:
        execute(tracked, """DROP TABLE "Odd it's.x\"""")


def test_why_says_which_process_leads(tracked: str) -> None:
    """The name comes from the session that holds the lock, whatever application_name the operator sets."""

    def leads() -> list[str]:
        return [
            check.text for check in checks(tracked, "things") if "pg_stat_activity" in check.text
        ]

    assert leads() == []
    leader = open_session(make_dsn(tracked, application_name="ours " * 12), SessionSettings())
    try:
        prepare_txn(leader, "0123456789abcdef")
        assert duty_txn(leader, 3.0, 0) is Duty.LEAD
        (pid,) = leader.ask("SELECT pg_backend_pid()")
        said = f"process 0123456789abcdef publishes changes (backend {pid} of pg_stat_activity)"
        assert leads() == [said]
    finally:
        leader.close()


@pytest.mark.parametrize(
    ("change", "undo", "words"),
    [
        (
            "ALTER TABLE things DISABLE TRIGGER USER",
            "ALTER TABLE things ENABLE TRIGGER USER",
            "it is tracked, but its triggers are disabled → rowcast track public.things",
        ),
        (
            "ALTER ROLE why_reader SET session_replication_role = replica",
            "ALTER ROLE why_reader RESET session_replication_role",
            "session_replication_role is replica for role why_reader",
        ),
    ],
)
def test_why_finds_triggers_that_do_not_fire(
    tracked: str, change: str, undo: str, words: str
) -> None:
    assert not any(words in line for line in failing(tracked, "things"))
    execute(tracked, change)
    try:
        assert any(words in line for line in failing(tracked, "things"))
    finally:
        execute(tracked, undo)


def test_why_reports_the_rights_of_a_role(tracked: str) -> None:
    assert "[+] the role why_reader may read it" in [
        check.line() for check in checks(tracked, "things", "why_reader")
    ]
    assert (
        '[-] the role why_nobody may not read it → GRANT SELECT ON public.things TO "why_nobody"'
        in failing(tracked, "things", "why_nobody")
    )
    execute(tracked, "ALTER TABLE things ENABLE ROW LEVEL SECURITY")
    try:
        lines = [check.line() for check in checks(tracked, "things", "why_reader")]
        assert any("row-level security holds for why_reader" in line for line in lines)
        # not for its owner
        lines = [check.line() for check in checks(tracked, "things")]
        assert not any("row-level security" in line for line in lines)
    finally:
        execute(tracked, "ALTER TABLE things DISABLE ROW LEVEL SECURITY")


def test_why_reports_what_a_level_omits(tracked: str) -> None:
    for level, words in (("keys", "have keys and no rows"), ("touch", "say no more than that")):
        track_table(tracked, "things", level, True)
        (line,) = [each.line() for each in checks(tracked, "things") if "level" in each.text]
        assert words in line
        assert line.endswith("→ rowcast track public.things --level full")


def test_why_reports_triggers_of_an_older_version(tracked: str) -> None:
    track_table(tracked, "things", "keys", False)
    assert not any("older version" in each.text for each in checks(tracked, "things"))
    execute(
        tracked,
        """CREATE TRIGGER "~rowcast_wake" AFTER INSERT ON things FOR EACH STATEMENT
           EXECUTE FUNCTION rowcast.wake()""",
    )
    (line,) = [each.line() for each in checks(tracked, "things") if "older version" in each.text]
    assert line.endswith("→ rowcast track public.things --level keys --no-wake")
    track_table(tracked, "things", "keys", False)
    assert not any("older version" in each.text for each in checks(tracked, "things"))


def test_try_is_timed_until_the_log_is_read(tracked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`try` publishes no change, because the row stays the same."""
    connection = open_session(tracked, SessionSettings())
    try:
        with pytest.raises(NoTestRow):
            try_txn(connection, "public", "things", lambda _: None)
        execute(tracked, "INSERT INTO things VALUES (1, 'a')")
        monkeypatch.setattr("service.changes.why.PATIENCE", 0.05)
        unread = try_txn(connection, "public", "things", lambda _: None)
        assert (unread.ok, unread.text) == (
            False,
            "a write was not read from the log within 0.05 s",
        )

        def read(_: float) -> None:
            tick = (
                "SELECT coalesce(max(tick), 0) + 1, 1, pg_current_snapshot(), 1 FROM rowcast.ticks"
            )
            execute(tracked, f"INSERT INTO rowcast.ticks (tick, epoch, snapshot, changes) {tick}")

        assert try_txn(connection, "public", "things", read).ok
        assert execute(tracked, "SELECT * FROM things") == [(1, "a")]
        (images,) = execute(
            tracked, "SELECT old::text = new::text FROM rowcast.log WHERE op = 'U' LIMIT 1"
        )
        assert images == (True,)
    finally:
        connection.close()
        execute(tracked, "TRUNCATE things")


@pytest.mark.parametrize(
    ("reads", "polls", "refused", "leads", "reached", "failing"),
    [
        (True, False, 0, True, None, 0),
        (True, True, 0, False, True, 0),
        (False, False, 0, False, None, 1),
        (True, False, 3, True, None, 1),
        (True, False, 0, False, False, 1),
    ],
)
def test_checks_of_the_service_report_its_own_failures(
    reads: bool, polls: bool, refused: int, leads: bool, reached: bool | None, failing: int
) -> None:
    found = list(service_checks(reads, polls, refused, leads, "0123456789abcdef", reached))
    assert sum(check.ok is False for check in found) == failing
    assert all(check.mend for check in found if check.ok is not True)


@pytest_twisted.ensureDeferred
async def test_why_answers_callers_only_about_readable_relations(
    tracked: str, db: DirectCaller
) -> None:
    """A caller without SELECT on a table learns neither that it exists nor anything about the log."""
    said = Check(None, "of the service itself")
    leaders = []

    async def parts(leader: str | None) -> list[Check]:
        leaders.append(leader)
        return [said]

    procedure = WhyProcedure(db.dispatcher, db.database, parts)
    db.dispatcher.add(procedure.procedures(), once=False)
    reader, nobody = (Caller(1, None, name, "realm1") for name in ("reader", "nobody"))
    found = await db.call_as(reader, "why", "things")
    assert found["ok"] is False
    assert found["checks"][-1] == said.wire()
    assert leaders == [None]
    assert {"ok": True, "text": "the role why_reader may read it", "mend": None} in found["checks"]
    for caller, name in ((nobody, "things"), (reader, "keyless"), (reader, "thing")):
        error = await failure_of(db.call_as(caller, "why", name))
        assert isinstance(error, UnknownName)
        assert error.details["path"] == "relation"
    assert error.details["hint"] == 'did you mean "things"?'


def test_why_of_a_missing_role_reports_it(tracked: str) -> None:
    assert failing(tracked, "things", "none") == ["[-] there is no public.things, or no role none"]
