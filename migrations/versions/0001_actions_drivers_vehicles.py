"""
Actions, drivers and vehicles.

Revision: 0001
Follows: nothing
Made: 2026-11-21
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = ("actions", "drivers", "vehicles")

# A BEFORE trigger overrides the client's value, so no client can forget or forge the time.
TOUCH = """
CREATE FUNCTION touch_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := pg_catalog.now();
    RETURN NEW;
END $$
"""


def upgrade() -> None:
    op.create_table(
        "actions",
        identity(),
        sa.Column("action", sa.String(255), nullable=False, comment="what is to be done"),
        sa.Column("path", sa.String(255), nullable=False, comment="where, from the root on"),
        sa.Column(
            "status",
            sa.Boolean,
            nullable=False,
            server_default=sa.false(),
            comment="whether it is done",
        ),
        *times(),
        sa.PrimaryKeyConstraint("id", name="pk_actions"),
        sa.CheckConstraint("btrim(action) <> ''", name=op.f("ck_actions_action_not_blank")),
        sa.CheckConstraint("path LIKE '/%'", name=op.f("ck_actions_path_absolute")),
        comment="What is to be done, and where",
    )
    op.create_index("ix_actions_path", "actions", ["path"])
    op.create_index(
        "ix_actions_open", "actions", ["created_at"], postgresql_where=sa.text("NOT status")
    )
    op.create_table(
        "drivers",
        identity(),
        sa.Column("name", sa.String(255), nullable=False, comment="as the driver is called"),
        sa.Column("phone", sa.String(32), comment="number to call, if known"),
        *times(),
        sa.PrimaryKeyConstraint("id", name="pk_drivers"),
        sa.CheckConstraint("btrim(name) <> ''", name=op.f("ck_drivers_name_not_blank")),
        comment="People who drive",
    )
    op.create_index("ix_drivers_name", "drivers", ["name"])
    op.create_table(
        "vehicles",
        identity(),
        sa.Column(
            "plate", sa.String(16), nullable=False, comment="number plate, in upper case"
        ),
        sa.Column("model", sa.String(255), nullable=False, comment="maker and model"),
        sa.Column(
            "seats",
            sa.SmallInteger,
            nullable=False,
            server_default=sa.text("4"),
            comment="how many can sit in it",
        ),
        sa.Column("driver_id", sa.BigInteger, comment="who drives it; null: nobody"),
        *times(),
        sa.PrimaryKeyConstraint("id", name="pk_vehicles"),
        sa.UniqueConstraint("plate", name="uq_vehicles_plate"),
        sa.CheckConstraint(
            "plate = upper(plate) AND btrim(plate) <> ''", name=op.f("ck_vehicles_plate_upper_case")
        ),
        sa.CheckConstraint("seats BETWEEN 1 AND 100", name=op.f("ck_vehicles_seats_in_range")),
        sa.ForeignKeyConstraint(
            ["driver_id"],
            ["drivers.id"],
            name="fk_vehicles_driver_id_drivers",
            ondelete="RESTRICT",
        ),
        comment="What is driven, and by whom",
    )
    op.create_index("ix_vehicles_driver_id", "vehicles", ["driver_id"])
    op.execute(TOUCH)
    for table in TABLES:
        op.execute(
            f"CREATE TRIGGER touch BEFORE UPDATE ON {table} FOR EACH ROW "
            "WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION touch_updated_at()"
        )


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(table)
    op.execute("DROP FUNCTION touch_updated_at()")


def identity() -> sa.Column:
    return sa.Column(
        "id", sa.BigInteger, sa.Identity(always=False), nullable=False, comment="given by the database"
    )


def times() -> list[sa.Column]:
    made = "when the row was made"
    changed = "when the row was last changed; kept by the database"
    return [
        sa.Column(
            name,
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.func.now(),
            comment=comment,
        )
        for name, comment in (("created_at", made), ("updated_at", changed))
    ]
