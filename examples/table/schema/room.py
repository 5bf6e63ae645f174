"""
Rooms, where people meet.
"""

from __future__ import annotations

from sqlalchemy import CheckConstraint, SmallInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from schema.base import Base, Identified, Timed


class Room(Identified, Timed, Base):
    """Where people meet."""

    __tablename__ = "rooms"
    __table_args__ = (
        CheckConstraint("seats > 0", name="seats_positive"),
        {"comment": "Where people meet"},
    )

    name: Mapped[str] = mapped_column(String(255), unique=True, comment="as it is called")
    seats: Mapped[int] = mapped_column(SmallInteger, comment="how many can sit in it")
