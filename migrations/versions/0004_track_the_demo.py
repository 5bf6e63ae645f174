"""
The changes of the demo's tables are logged.

Revision: 0004
Follows: 0003
Made: 2026-11-29
"""

from __future__ import annotations

from alembic import op

from schema.changes import install, track, untrack

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TABLES = ("actions", "drivers", "vehicles")


def upgrade() -> None:
    op.execute(install())  # 0002 may have been run by an earlier version of the functions
    for table in TABLES:
        track(table)


def downgrade() -> None:
    for table in TABLES:
        untrack(table)
