"""
The log of changes, and actions, drivers and vehicles in it.

Revision: 0002
Follows: 0001
Made: 2026-11-29
"""

from __future__ import annotations

from alembic import op

from schema.changes import install, remove, track

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(install())
    for table in ("actions", "drivers", "vehicles"):
        track(table)


def downgrade() -> None:
    op.execute(remove())
