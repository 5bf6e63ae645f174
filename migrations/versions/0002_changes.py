"""
The log of changes. No table is tracked by it: `track` in a later revision does that.

Revision: 0002
Follows: 0001
Made: 2026-11-29
"""

from __future__ import annotations

from alembic import op

from schema.changes import install, remove

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(install())


def downgrade() -> None:
    op.execute(remove())
