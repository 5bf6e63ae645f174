"""
The change log. It tracks no table yet: `track` in later revisions does.

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
