"""
Demo rows, so that a first call returns some.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import psycopg2
from psycopg2.extensions import cursor
from psycopg2.extras import execute_values

ERRANDS = [
    ("deliver parcel", "/berlin/mitte"),
    ("collect parcel", "/berlin/mitte"),
    ("deliver parcel", "/berlin/pankow"),
    ("charge battery", "/berlin/depot"),
    ("change tires", "/berlin/depot"),
    ("deliver pallet", "/hamburg/hafen"),
    ("collect pallet", "/hamburg/hafen"),
    ("wash vehicle", "/hamburg/depot"),
    ("deliver parcel", "/hamburg/altona"),
    ("drive shuttle", "/hamburg/airport"),
]
ROUNDS = 4

DRIVERS = [
    ("Ada Lovelace", "+49 30 5550101"),
    ("Grace Hopper", "+49 30 5550102"),
    ("Edsger Dijkstra", "+49 40 5550103"),
    ("Barbara Liskov", None),
    ("Donald Knuth", "+49 40 5550105"),
    ("Radia Perlman", "+49 30 5550106"),
]

VEHICLES = [
    ("B-RC 101", "Volkswagen ID. Buzz", 5, "Ada Lovelace"),
    ("B-RC 102", "Mercedes-Benz eSprinter", 3, "Ada Lovelace"),
    ("B-RC 103", "Ford Transit", 3, "Grace Hopper"),
    ("HH-RC 201", "MAN Lion's City", 88, "Edsger Dijkstra"),
    ("HH-RC 202", "Renault Kangoo", 2, "Barbara Liskov"),
    ("HH-RC 203", "Volvo FH", 2, "Donald Knuth"),
    ("B-RC 104", "Fiat Ducato", 3, "Radia Perlman"),
    ("B-RC 105", "Opel Vivaro", 9, None),
]

# Most actions of older rounds are done; the times differ, so that ordering by them shows something.
ACTIONS = [
    (action, f"{path}/{number + 1}", number > 0 and (place + number) % 3 != 0, age)
    for number in range(ROUNDS)
    for place, (action, path) in enumerate(ERRANDS)
    for age in [number * 60 * 24 + place * 7]
]

DEMO: Mapping[str, tuple[str, Sequence[tuple[object, ...]]]] = {
    "drivers": ("INSERT INTO drivers (name, phone) VALUES %s", DRIVERS),
    "vehicles": (
        "INSERT INTO vehicles (plate, model, seats, driver_id)"
        " SELECT plate, model, seats, d.id FROM (VALUES %s) v (plate, model, seats, driver)"
        " LEFT JOIN (SELECT name, min(id) AS id FROM drivers GROUP BY name) d ON d.name = v.driver",
        VEHICLES,
    ),
    "actions": (
        "INSERT INTO actions (action, path, status, created_at)"
        " SELECT action, path, done, now() - make_interval(mins => age)"
        " FROM (VALUES %s) v (action, path, done, age) ORDER BY age DESC",
        ACTIONS,
    ),
}
"""For each demo table the statement that fills it, and the rows."""


class SeedRefused(Exception):
    """The demo tables do not exist, or the role may not fill them; the message says why."""


def sow(dsn: str) -> str:
    """
    Fill the demo tables that are empty; return a sentence about what was done.

    Raises:
        SeedRefused: The database refused the rows.
    """
    try:
        connection = psycopg2.connect(dsn)
        try:
            with connection, connection.cursor() as rows:
                made = [f"{count} {table}" for table in DEMO if (count := _fill(rows, table))]
        finally:
            connection.close()
    except psycopg2.errors.UndefinedTable as error:
        raise SeedRefused("the demo tables are not there → alembic upgrade head") from error
    except psycopg2.Error as error:
        raise SeedRefused(str(error).strip().splitlines()[0]) from error
    return f"made {', '.join(made)}" if made else "nothing to do: the demo tables hold rows already"


def _fill(rows: cursor, table: str) -> int:
    """Fill a table if it is empty; return the number of new rows."""
    rows.execute(f"SELECT NOT EXISTS (SELECT FROM {table})")
    if rows.fetchone() != (True,):
        return 0
    statement, values = DEMO[table]
    execute_values(rows, statement, values)
    return len(values)
