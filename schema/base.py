"""
What all declared tables share: names of constraints, an identity column, and times.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, DateTime, Identity, MetaData, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# Every constraint has a predictable name: Alembic's autogenerate stays stable, and an error of the
# database can be reported in terms of columns.
NAMES = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
}


class Base(DeclarativeBase):
    """Base class of all declared tables."""

    metadata = MetaData(naming_convention=NAMES)


class Identified:
    """Adds an `id` that the database generates."""

    id: Mapped[int] = mapped_column(
        BigInteger,
        Identity(always=False),
        primary_key=True,
        sort_order=-1,
        comment="given by the database",
    )


class Timed:
    """Adds the times of a row's creation and last change; a trigger maintains the latter."""

    created_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True),
        server_default=func.now(),
        sort_order=1,
        comment="when the row was made",
    )
    updated_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True),
        server_default=func.now(),
        sort_order=2,
        comment="when the row was last changed; kept by the database",
    )
