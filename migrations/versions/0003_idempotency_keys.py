"""
Idempotency keys.

Revision: 0003
Follows: 0002
Made: 2026-11-29
"""

from __future__ import annotations

from alembic import op

from schema.own import DROP, MAKE

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(MAKE)


def downgrade() -> None:
    op.execute(DROP)
