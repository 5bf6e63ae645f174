"""The catalog of a database: all that the role may use, without what is hidden."""

from __future__ import annotations

import time

import psycopg2
import pytest
from psycopg2.extensions import TRANSACTION_STATUS_INTRANS, connection

from service.catalog import Catalog, ForeignKey, Relation, UniqueKey
from service.db.connection import PgConnection
from service.db.introspect import catalog_txn
from service.errors import NoSuchProcedure
from tests.conftest import execute

SCHEMA = r"""
CREATE SCHEMA app;
CREATE SCHEMA away;
CREATE TYPE app."Mood" AS ENUM ('sad', 'ok');
ALTER TYPE app."Mood" ADD VALUE 'fine' BEFORE 'ok';
CREATE DOMAIN app.short AS varchar(5) DEFAULT 'x' NOT NULL;
CREATE DOMAIN app.shorter AS app.short;
CREATE TYPE away.pair AS (x int, y app."Mood"[]);
CREATE TYPE away.unused AS ENUM ('secret');
CREATE TYPE app.span AS RANGE (subtype = numeric);

CREATE TABLE app.makers (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text UNIQUE);
CREATE TABLE app.cars (
    id bigserial PRIMARY KEY,
    maker_id int NOT NULL REFERENCES app.makers,
    plate app.shorter,
    "Name" varchar(40) DEFAULT 'none' CONSTRAINT named CHECK ("Name" <> ''),
    fixed char(3),
    mood app."Mood",
    pairs away.pair[],
    span app.span,
    doc jsonb,
    code text,
    secret text UNIQUE,
    twice int GENERATED ALWAYS AS (maker_id * 2) STORED,
    removed int,
    CONSTRAINT plate_mood UNIQUE (plate, mood),
    CONSTRAINT apart EXCLUDE USING gist (span WITH &&),
    CONSTRAINT hushed CHECK (secret <> code)
);
ALTER TABLE app.cars DROP COLUMN removed;
CREATE UNIQUE INDEX cars_code ON app.cars (code) INCLUDE (fixed);
CREATE UNIQUE INDEX cars_partial ON app.cars (fixed) WHERE fixed > 'a';
CREATE UNIQUE INDEX cars_expression ON app.cars (lower(code));
COMMENT ON TABLE app.cars IS E'Cars.\n@tracked\nAnd vans.';
COMMENT ON COLUMN app.cars.doc IS 'Papers';
COMMENT ON COLUMN app.cars.secret IS E'Not shown\n  @hidden  ';

CREATE TABLE app.keyed (id int PRIMARY KEY, secret_car text REFERENCES app.cars (secret));
COMMENT ON COLUMN app.keyed.id IS '@hidden';
CREATE TABLE app.hidden (id int PRIMARY KEY);
COMMENT ON TABLE app.hidden IS '@hidden';
CREATE TABLE app.pointing (id int REFERENCES app.hidden, almost int);
COMMENT ON COLUMN app.pointing.almost IS 'the word @hidden within a line';

CREATE TABLE app.days (day date, n int, PRIMARY KEY (day, n)) PARTITION BY RANGE (day);
CREATE TABLE app.days_2026 PARTITION OF app.days FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE TABLE app.notes (id int PRIMARY KEY, day date, n int,
                        CONSTRAINT noted FOREIGN KEY (n, day) REFERENCES app.days (n, day));
ALTER TABLE app.notes ENABLE ROW LEVEL SECURITY;

CREATE VIEW app.names AS SELECT id, "Name" AS name, upper("Name") AS upper FROM app.cars;
CREATE MATERIALIZED VIEW app.counts AS SELECT count(*) AS n FROM app.cars;
CREATE VIEW app.totals AS SELECT count(*) AS n FROM app.cars;
CREATE VIEW app.doors AS SELECT count(*) AS n FROM app.cars;
CREATE FUNCTION app.nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER through INSTEAD OF INSERT ON app.doors
    FOR EACH ROW EXECUTE FUNCTION app.nothing();
CREATE VIEW app.posts AS SELECT n + 1 AS next, n FROM app.days;
CREATE RULE posting AS ON INSERT TO app.posts DO INSTEAD
    INSERT INTO app.days VALUES ('2026-01-01', new.next);
CREATE VIEW app.hooked AS SELECT n + 1 AS next, n FROM app.days;
CREATE TRIGGER hooking INSTEAD OF INSERT ON app.hooked
    FOR EACH ROW EXECUTE FUNCTION app.nothing();
CREATE VIEW app.joined AS SELECT a.n AS next, b.n FROM app.days a, app.days b;
CREATE RULE joining AS ON INSERT TO app.joined DO INSTEAD
    INSERT INTO app.days VALUES ('2026-01-01', new.next);
CREATE RULE changing AS ON UPDATE TO app.joined DO INSTEAD NOTHING;
CREATE TABLE app."odd "".% näme" ("co.l %s" int PRIMARY KEY, "UPPER" int);
CREATE TABLE app."self" (id int PRIMARY KEY, parent int REFERENCES app."self");
"""


@pytest.fixture(scope="module")
def catalog(connected: connection) -> Catalog:
    return catalog_txn(connected, ("app",), 7)


@pytest.fixture(scope="module")
def cars(catalog: Catalog) -> Relation:
    return catalog.relation("app", "cars")


def test_relations_of_any_kind_but_hidden_are_served(catalog: Catalog) -> None:
    """Partitions are not served either."""
    kinds = {name: each.kind for (_, name), each in catalog.relations.items()}
    assert kinds == {
        "cars": "table",
        "counts": "materialized view",
        "days": "table",
        "doors": "view",
        "hooked": "view",
        "joined": "view",
        "keyed": "table",
        "makers": "table",
        "names": "view",
        "notes": "table",
        'odd ".% näme': "table",
        "pointing": "table",
        "posts": "view",
        "self": "table",
        "totals": "view",
    }
    assert (catalog.version, catalog.schemas) == (7, ("app",))


def test_schemas_without_served_relations_are_listed_in_the_catalog(connected: connection) -> None:
    """The hint of an unknown relation in an empty schema names the one in another schema."""
    catalog = catalog_txn(connected, ("away", "app", "nowhere"), 1)
    assert catalog.empty_schemas == ("away", "nowhere")
    with pytest.raises(NoSuchProcedure) as refused:
        catalog.relation("away", "cars")
    assert refused.value.details["hint"] == 'did you mean "app.cars"?'


def test_columns_of_a_relation_have_type_default_and_limits(cars: Relation) -> None:
    """Hidden and dropped columns are missing."""
    assert list(cars.columns) == [
        *("id", "maker_id", "plate", "Name", "fixed", "mood", "pairs", "span", "doc", "code"),
        "twice",
    ]
    assert cars.columns["id"].default == "nextval('app.cars_id_seq'::regclass)"
    assert cars.columns["Name"].default == "'none'::character varying"
    assert cars.columns["plate"].default == "'x'::character varying"
    assert cars.columns["mood"].declared == 'app."Mood"'
    assert cars.columns["Name"].declared == "character varying(40)"
    assert [cars.columns[n].max_length for n in ("Name", "fixed", "plate", "code")] == [
        *(40, 3, 5),
        None,
    ]
    required = [name for name, column in cars.columns.items() if not column.nullable]
    assert required == ["id", "maker_id", "plate"]
    assert (cars.columns["twice"].generated, cars.columns["twice"].default) == ("s", None)
    assert cars.columns["doc"].comment == "Papers"


def test_identity_column_has_no_default(catalog: Catalog) -> None:
    identity = catalog.relation("app", "makers").columns["id"]
    assert (identity.identity, identity.default, identity.has_default) == ("a", None, True)


def test_primary_key_is_the_first_key_of_a_relation(catalog: Catalog, cars: Relation) -> None:
    """Only unique constraints and indexes without a condition are keys."""
    assert cars.primary_key == ("id",)
    assert cars.unique_keys == (
        UniqueKey("cars_pkey", ("id",)),
        UniqueKey("plate_mood", ("plate", "mood")),
        UniqueKey("cars_code", ("code",)),
    )
    assert catalog.relation("app", "days").primary_key == ("day", "n")


def test_keys_with_a_hidden_column_are_not_shown(catalog: Catalog) -> None:
    """Nor are foreign keys with one."""
    keyed = catalog.relation("app", "keyed")
    assert (keyed.primary_key, keyed.unique_keys, keyed.foreign_keys) == ((), (), ())
    assert list(keyed.columns) == ["secret_car"]
    pointing = catalog.relation("app", "pointing")
    assert pointing.foreign_keys == ()
    assert pointing.columns["almost"].comment == "the word @hidden within a line"


def test_foreign_keys_of_partitions_are_not_repeated(catalog: Catalog, cars: Relation) -> None:
    """Foreign keys pair columns; those cloned to partitions are left out."""
    assert cars.foreign_keys == (
        ForeignKey("cars_maker_id_fkey", ("maker_id",), ("app", "makers"), ("id",)),
    )
    notes = catalog.relation("app", "notes")
    assert notes.foreign_keys == (ForeignKey("noted", ("n", "day"), ("app", "days"), ("n", "day")),)


def test_constraints_with_a_hidden_column_are_omitted(cars: Relation) -> None:
    """Others have their columns."""
    shown = {"apart": ("span",), "named": ("Name",), "cars_maker_id_fkey": ("maker_id",)}
    assert shown.items() <= cars.constraints.items()
    assert "secret" not in str(cars.constraints)
    assert "hushed" not in cars.constraints


def test_comments_for_the_service_are_not_shown(catalog: Catalog, cars: Relation) -> None:
    """Lines that begin with "@" are left out."""
    assert cars.comment == "Cars.\nAnd vans."
    assert catalog.relation("app", "notes").comment is None


def test_row_security_of_a_relation_is_known(catalog: Catalog, cars: Relation) -> None:
    assert catalog.relation("app", "notes").row_security
    assert not cars.row_security


def test_view_has_the_writes_that_postgresql_accepts(catalog: Catalog) -> None:
    """PostgreSQL writes through a view itself, by a trigger, or not at all."""
    names, totals, doors = (catalog.relation("app", n) for n in ("names", "totals", "doors"))
    assert (names.insertable, names.updatable, names.deletable) == (True, True, True)
    assert [c.updatable for c in names.columns.values()] == [True, True, False]
    assert [c.insertable for c in names.columns.values()] == [True, True, False]
    assert [c.generated for c in names.columns.values()] == ["", "", "v"]
    assert (totals.insertable, totals.updatable, totals.deletable) == (False, False, False)
    assert (doors.insertable, doors.updatable, doors.deletable) == (True, False, False)
    assert doors.columns["n"].insertable
    assert not doors.columns["n"].generated
    assert not totals.columns["n"].generated
    assert not catalog.relation("app", "counts").insertable
    for name in ("posts", "hooked", "joined"):
        columns = catalog.relation("app", name).columns.values()
        assert all(each.insertable and not each.generated for each in columns)
    assert catalog.relation("app", "joined").accepted_writes == {"insert", "update"}


def test_relation_of_an_odd_name_is_served(catalog: Catalog) -> None:
    odd = catalog.relation("app", 'odd ".% näme')
    assert list(odd.columns) == ["co.l %s", "UPPER"]
    assert odd.primary_key == ("co.l %s",)


def test_types_of_columns_come_with_their_parts(catalog: Catalog, cars: Relation) -> None:
    """With the types that they consist of, in any schema."""
    mood = catalog.type(cars.columns["mood"].type)
    assert (mood.sql, mood.kind, mood.labels) == ('app."Mood"', "enum", ("sad", "fine", "ok"))
    pairs = catalog.type(cars.columns["pairs"].type)
    assert (pairs.kind, pairs.sql) == ("array", "away.pair[]")
    pair = catalog.type(pairs.element)
    assert [name for name, _ in pair.fields] == ["x", "y"]
    assert catalog.type(catalog.type(pair.fields[1][1]).element) == mood
    span = catalog.type(cars.columns["span"].type)
    assert (span.kind, catalog.type(span.base).name) == ("range", "numeric")
    assert catalog.plain(catalog.type(cars.columns["plate"].type)).name == "varchar"
    assert catalog.type_named("app.Mood") == mood
    assert catalog.type_named("timestamptz[]").kind == "array"
    assert catalog.type_named("bpchar").sql == "bpchar"
    assert catalog.type_named("box").delimiter == ";"
    names = {each.name for each in catalog.types.values()}
    assert "unused" not in names
    assert "hidden" not in names
    assert "pg_class" not in names


def test_row_type_keeps_the_position_of_hidden_columns(catalog: Catalog) -> None:
    """A composite type has a field without a name for each hidden column."""
    row = catalog.type_named("app.keyed")
    assert [name for name, _ in row.fields] == ["", "secret_car"]


@pytest.mark.parametrize(
    ("name", "comparable"),
    [
        *[("varchar", True), ("cidr", True), ("json", False), ("point", False), ("xml", False)],
        *[("app.Mood", True), ("app.shorter", True), ("app.span", True), ("int[]", True)],
        *[("json[]", False), ("away.pair", True), ("app.cars", True), ("jsonb", True)],
    ],
)
def test_type_that_postgresql_can_sort_is_comparable(
    catalog: Catalog, name: str, comparable: bool
) -> None:
    assert catalog.type_named(name).comparable is comparable


def test_privileges_of_a_role_are_known_by_column(connected: connection, dsn: str) -> None:
    execute(
        dsn,
        """
        CREATE ROLE clerk;
        CREATE SCHEMA shut;
        CREATE TABLE shut.inside (id int);
        GRANT SELECT ON shut.inside TO clerk;
        GRANT USAGE ON SCHEMA app TO clerk;
        GRANT SELECT ON app.makers TO clerk;
        GRANT SELECT (id, code), UPDATE (code) ON app.cars TO clerk;
        GRANT DELETE ON app.days TO clerk;
        """,
    )
    with connected.cursor() as cursor:
        cursor.execute("SET ROLE clerk")
        try:
            catalog = catalog_txn(connected, ("app", "shut"), 1)
        finally:
            cursor.execute("RESET ROLE")
            cursor.execute("DROP OWNED BY clerk; DROP ROLE clerk; DROP SCHEMA shut CASCADE")
    assert {name for _, name in catalog.relations} == {"cars", "days", "makers"}
    cars, days = catalog.relation("app", "cars"), catalog.relation("app", "days")
    assert [n for n, c in cars.columns.items() if c.selectable] == ["id", "code"]
    assert [n for n, c in cars.columns.items() if c.updatable] == ["code"]
    assert (cars.selectable, cars.insertable, cars.updatable, cars.deletable) == (
        *(True, False),
        *(True, False),
    )
    assert (days.selectable, days.deletable) == (False, True)


@pytest.mark.parametrize("autocommit", [True, False])
def test_session_is_unchanged_after_reading_the_catalog(
    dsn: str, connected: connection, autocommit: bool
) -> None:
    """The search path and an open transaction are unchanged."""
    made = psycopg2.connect(dsn, options="-c search_path=app,away")
    made.autocommit = autocommit
    try:
        with made.cursor() as cursor:
            cursor.execute("CREATE TEMP TABLE mine (id int)")
            catalog_txn(made, ("app",), 1)
            cursor.execute("SELECT current_setting('search_path'), to_regclass('mine') IS NULL")
            assert cursor.fetchone() == ("app,away", False)
    finally:
        made.close()


def test_catalog_read_in_a_transaction_leaves_it_open(dsn: str, connected: connection) -> None:
    """Also a transaction whose BEGIN was not sent yet."""
    made = PgConnection(dsn)
    try:
        made.prepare()
        made.begin("BEGIN")
        assert catalog_txn(made, ("app",), 1).relations
        assert made.info.transaction_status == TRANSACTION_STATUS_INTRANS
    finally:
        made.close()


def test_schema_without_relations_has_an_empty_catalog(connected: connection) -> None:
    """Also one that does not exist."""
    catalog = catalog_txn(connected, ("nowhere",), 1)
    assert catalog.relations == {}
    assert catalog.type_named("int").name == "int4"


def test_views_that_refer_to_each_other_are_listed(dsn: str) -> None:
    """PostgreSQL refuses to read views that refer to each other."""
    execute(
        dsn,
        """
        CREATE SCHEMA round;
        CREATE TABLE round.base (id int PRIMARY KEY);
        CREATE VIEW round.one AS SELECT id FROM round.base;
        CREATE VIEW round.two AS SELECT id FROM round.one;
        CREATE VIEW round.lone AS SELECT id FROM round.base;
        CREATE OR REPLACE VIEW round.one AS SELECT id FROM round.two;
        CREATE OR REPLACE VIEW round.lone AS SELECT id FROM round.lone;
        """,
    )
    made = psycopg2.connect(dsn)
    try:
        catalog = catalog_txn(made, ("round",), 1)
    finally:
        made.close()
    assert {name for _, name in catalog.relations} == {"base", "one", "two", "lone"}


def test_catalog_of_a_thousand_relations_is_read_in_seconds(
    dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a few statements, in a second or two."""
    execute(
        dsn,
        """
        CREATE SCHEMA big;
        DO $$ BEGIN FOR i IN 1..1000 LOOP
            EXECUTE format('CREATE TABLE big.t%s (id int PRIMARY KEY, up int REFERENCES big.t%s,
                a text DEFAULT ''x'', b text, c numeric(10,2), d timestamptz, e jsonb, f uuid,
                g bool, h int CHECK (h > 0))', i, greatest(i - 1, 1));
        END LOOP; END $$
        """,
    )
    made = psycopg2.connect(dsn)
    try:
        started = time.monotonic()
        catalog = catalog_txn(made, ("big",), 1)
        took = time.monotonic() - started
    finally:
        made.close()
    with capsys.disabled():
        print(f"\ncatalog of {len(catalog.relations)} relations: {took:.2f} s")
    assert len(catalog.relations) == 1000
    assert catalog.relation("big", "t500").foreign_keys[0].target == ("big", "t499")
    assert took < 30  # on a machine with other load
