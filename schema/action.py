"""
Actions: what is to be done, and where.
"""

from __future__ import annotations

from sqlalchemy import Boolean, CheckConstraint, Index, String, text
from sqlalchemy.orm import Mapped, mapped_column

from schema.base import Base, Identified, Timed


class Action(Identified, Timed, Base):
    """One thing to be done."""

    __tablename__ = "actions"
    __table_args__ = (
        CheckConstraint("btrim(action) <> ''", name="action_not_blank"),
        CheckConstraint("path LIKE '/%'", name="path_absolute"),
        # Open actions are queried most, and are the smaller part.
        Index("ix_actions_open", "created_at", postgresql_where=text("NOT status")),
        {"comment": "What is to be done, and where"},
    )

    action: Mapped[str] = mapped_column(String(255), comment="what is to be done")
    path: Mapped[str] = mapped_column(String(255), index=True, comment="where, from the root on")
    status: Mapped[bool] = mapped_column(
        Boolean, server_default=text("false"), comment="whether it is done"
    )
