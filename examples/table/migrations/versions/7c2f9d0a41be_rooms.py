"""rooms

Revision ID: 7c2f9d0a41be
Revises: 0005
Create Date: 2026-11-29
"""

import sqlalchemy as sa
from alembic import op

revision = "7c2f9d0a41be"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "rooms",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False,
                  comment="given by the database"),
        sa.Column("name", sa.String(255), nullable=False, comment="as it is called"),
        sa.Column("seats", sa.SmallInteger(), nullable=False, comment="how many can sit in it"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"),
                  nullable=False, comment="when the row was made"),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"),
                  nullable=False, comment="when the row was last changed; kept by the database"),
        sa.CheckConstraint("seats > 0", name=op.f("ck_rooms_seats_positive")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rooms")),
        sa.UniqueConstraint("name", name=op.f("uq_rooms_name")),
        comment="Where people meet",
    )
    op.execute(
        "CREATE TRIGGER touch BEFORE UPDATE ON rooms FOR EACH ROW "
        "WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION touch_updated_at()"
    )


def downgrade() -> None:
    op.drop_table("rooms")
