"""
Tables that are tracked have the triggers of today, which log the same and cost less.

Revision: 0005
Follows: 0004
Made: 2026-11-30
"""

from __future__ import annotations

from alembic import op

from schema.changes import TRACK_AGAIN, install

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(install())
    op.execute(TRACK_AGAIN)


def downgrade() -> None:
    pass  # the triggers are right for any version
