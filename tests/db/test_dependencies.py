"""
What a statement reads, by EXPLAIN under the caller's role and by the catalog.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg2
import pytest

from schema.changes import install
from service.catalog import Type
from service.changes.dependencies import Dependencies, dependencies_txn
from service.changes.log import tracked_txn
from service.db.connection import PgConnection
from service.db.session_settings import SessionSettings, open_session
from service.plan.plans import Bound
from service.sql.statement import Statement

SCHEMA = f"""
CREATE TABLE parents (id int PRIMARY KEY, region int, name text);
CREATE TABLE children (id int PRIMARY KEY, parent int REFERENCES parents, amount int);
CREATE TABLE members (who text, region int, PRIMARY KEY (who, region));
CREATE TABLE hidden (id int PRIMARY KEY, region int);
CREATE TABLE quiet (id int);
CREATE TABLE parts (id int, at timestamptz, day int) PARTITION BY RANGE (day);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (10) TO (20);
CREATE TABLE times (at timestamptz) PARTITION BY RANGE (at);
CREATE TABLE times_1 PARTITION OF times FOR VALUES FROM ('2000-01-01') TO ('2001-01-01');
CREATE TABLE times_2 PARTITION OF times FOR VALUES FROM ('2001-01-01') TO ('2900-01-01');
CREATE VIEW shown AS SELECT * FROM parents;
CREATE VIEW barrier WITH (security_barrier) AS SELECT * FROM shown WHERE region > 0;
CREATE MATERIALIZED VIEW kept AS SELECT * FROM parents;

CREATE FUNCTION inlined(int) RETURNS int LANGUAGE sql STABLE AS 'SELECT $1 + current_setting(''a.b'')::int';
CREATE FUNCTION rows_inlined() RETURNS SETOF hidden LANGUAGE sql STABLE AS 'SELECT * FROM hidden';
CREATE FUNCTION parsed() RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER
    BEGIN ATOMIC SELECT count(*) FROM hidden JOIN barrier USING (id); END;
CREATE FUNCTION counted() RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER
    BEGIN ATOMIC SELECT count(*) FROM quiet; END;
CREATE FUNCTION twice() RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER
    BEGIN ATOMIC SELECT counted() * 2; END;
CREATE FUNCTION closed() RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER AS 'SELECT count(*) FROM hidden';
CREATE FUNCTION procedural(int) RETURNS boolean LANGUAGE plpgsql STABLE AS
    'BEGIN RETURN EXISTS (SELECT FROM hidden WHERE id = $1); END';
CREATE FUNCTION "Odd ""name"() RETURNS int LANGUAGE plpgsql STABLE AS 'BEGIN RETURN 1; END';
CREATE FUNCTION promised(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN $1; END';
CREATE FUNCTION step(int, int) RETURNS int LANGUAGE plpgsql STABLE AS 'BEGIN RETURN $1; END';
CREATE AGGREGATE gathered(int) (SFUNC = step, STYPE = int);
CREATE FUNCTION near(int, text) RETURNS boolean LANGUAGE plpgsql STABLE AS 'BEGIN RETURN true; END';
CREATE OPERATOR <~> (LEFTARG = int, RIGHTARG = text, FUNCTION = near);

CREATE ROLE d_ann; CREATE ROLE d_bob; CREATE ROLE d_none;
GRANT SELECT ON parents, children, members, hidden, parts, shown, barrier, quiet TO d_ann, d_bob;
ALTER TABLE parents ENABLE ROW LEVEL SECURITY;
CREATE POLICY a ON parents FOR SELECT TO d_ann
    USING (region IN (SELECT region FROM members WHERE who = current_user));
CREATE POLICY b ON parents FOR SELECT TO d_bob USING (procedural(id));
ALTER TABLE children ENABLE ROW LEVEL SECURITY;
CREATE POLICY c ON children FOR SELECT TO d_ann
    USING (inlined(id) > 0 AND EXISTS (SELECT FROM rows_inlined() h WHERE h.id = children.id));
{install()}
SELECT rowcast.track('parents'), rowcast.track('children'), rowcast.track('parts');
"""


@pytest.fixture
def session(dsn: str) -> Iterator[PgConnection]:
    connection = open_session(dsn, SessionSettings())
    yield connection
    connection.close()


def _of(session: PgConnection, text: str, *values: str, role: str = "") -> Dependencies:
    type = Type(23, "pg_catalog", "int4", "integer", "base", "N")
    bounds = tuple(Bound(at, type, "") for at in range(len(values)))
    with session.cursor() as cursor:
        cursor.execute(f"BEGIN; SET LOCAL ROLE {role or 'NONE'}")
        try:
            return dependencies_txn(session, Statement(text, bounds, "x"), values)
        finally:
            cursor.execute("ROLLBACK")


def _names(found: Dependencies) -> set[str]:
    return {scan.name for scan in found.scans}


@pytest.mark.parametrize(
    ("text", "tables"),
    [
        ("SELECT * FROM parents", {"parents"}),
        ("SELECT * FROM barrier", {"parents"}),
        ("SELECT * FROM kept", {"kept"}),
        ("SELECT (SELECT count(*) FROM hidden) FROM parents", {"parents", "hidden"}),
        ("WITH q AS MATERIALIZED (SELECT * FROM hidden) SELECT * FROM q", {"hidden"}),
        ("WITH q AS (SELECT * FROM hidden) SELECT 1 FROM parents WHERE id IN (SELECT id FROM q)",
         {"parents", "hidden"}),
        ("SELECT inlined(id) FROM parents", {"parents"}),
        ("SELECT * FROM rows_inlined()", {"hidden"}),
        ("SELECT counted()", {"quiet"}),
        ("SELECT twice()", {"quiet"}),
        ("SELECT promised(id) FROM parents", {"parents"}),
        ("SELECT lower(name), now(), current_setting('a', true) FROM parents", {"parents"}),
        ("SELECT 1 FROM (VALUES (1)) v", set()),
    ],
)  # fmt: skip
def test_statement_reads_tables_under_views_functions_and_ctes(
    session: PgConnection, text: str, tables: set[str]
) -> None:
    found = _of(session, text)
    assert (_names(found), found.opaque) == (tables, ())


def test_function_that_reads_a_view_depends_on_its_tables_and_those_of_policies(
    session: PgConnection,
) -> None:
    """The policies of all roles: which of them holds depends on who runs the function."""
    found = _of(session, "SELECT parsed()")
    assert _names(found) == {"hidden", "parents", "members"}
    assert found.opaque == ("procedural(integer)",)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT * FROM parents WHERE region = CAST(%s AS int) AND CAST(%s AS int) = 1",
        "SELECT p.* FROM parents p JOIN hidden h ON CAST(%s AS int) = CAST(%s AS int)",
        "SELECT * FROM parents WHERE CASE WHEN CAST(%s AS int) = CAST(%s AS int)"
        " THEN EXISTS (SELECT FROM hidden) ELSE true END",
        "SELECT * FROM parents WHERE CAST(%s AS int) = 1 OR"
        " EXISTS (SELECT FROM hidden WHERE CAST(%s AS int) = 2)",
        "SELECT * FROM parts WHERE day = CAST(%s AS int) AND CAST(%s AS int) = 7",
    ],
)
def test_table_of_a_condition_that_values_make_constant_is_found(
    session: PgConnection, text: str
) -> None:
    names = {"parents", "hidden"} & set(text.split()) or {"parts_1", "parts_2"}
    for values in (("1", "2"), ("1", "1"), ("3", "7")):
        assert _names(_of(session, text, *values)) >= names, values


def test_condition_that_is_never_true_reads_nothing(session: PgConnection) -> None:
    assert _names(_of(session, "SELECT * FROM parents WHERE false")) == set()


def test_join_that_the_planner_removes_is_left_out(session: PgConnection) -> None:
    join = "SELECT {} FROM children c LEFT JOIN parents p ON p.id = c.parent"
    assert _names(_of(session, join.format("c.id"))) == {"children"}
    assert _names(_of(session, join.format("p.name"))) == {"children", "parents"}


def test_partitions_of_a_tracked_table_count_as_the_table(session: PgConnection) -> None:
    tracked = tracked_txn(session).values()
    (parts,) = [each for each in tracked if each.name == "parts"]
    for text in ("SELECT * FROM parts", "SELECT * FROM parts WHERE day < 5", "TABLE parts_2"):
        found = _of(session, text)
        assert found.tracked(tracked) == {parts.id}
        assert found.untracked(tracked) == ()
    # the time at which the plan is made rules out no partition
    found = _of(session, "SELECT * FROM times WHERE at > now()")
    assert _names(found) == {"times_1", "times_2"}
    assert found.untracked(tracked) == ("times_1", "times_2")


def test_tables_of_policies_are_those_of_the_role(session: PgConnection) -> None:
    everything = "SELECT * FROM parents JOIN children ON parent = parents.id"
    assert _names(_of(session, everything)) == {"parents", "children"}
    ann = _of(session, everything, role="d_ann")
    assert _names(ann) == {"parents", "children", "members", "hidden"}
    assert ann.opaque == ()
    assert _of(session, "TABLE parents", role="d_bob").opaque == ("procedural(integer)",)


def test_role_without_right_is_refused(session: PgConnection) -> None:
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        _of(session, "SELECT * FROM parents", role="d_none")


@pytest.mark.parametrize(
    "text",
    [
        "SELECT closed()",
        "SELECT * FROM parents WHERE procedural(id)",
        'SELECT "Odd ""name"()',
        "SELECT gathered(id) FROM parents",
        "SELECT * FROM parents WHERE region <~> name",
        "SELECT query_to_xml('TABLE hidden', true, true, '')",
        "SELECT * FROM parents ORDER BY procedural(id)",
    ],
)
def test_function_with_unknown_dependencies_is_opaque(session: PgConnection, text: str) -> None:
    assert _of(session, text).opaque


def test_untracked_tables_are_named(session: PgConnection, dsn: str) -> None:
    tracked = tracked_txn(session).values()
    found = _of(session, "SELECT * FROM parents, quiet, kept, pg_class")
    assert found.untracked(tracked) == ("kept", "pg_class", "quiet")
