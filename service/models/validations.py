"""
Validations that several models share, beside twistar's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from service.models.record import Record


def not_blank(*names: str) -> Callable[[Any], None]:
    """
    Build a validation that text is there, and not white space alone.

    What a row has by now, and nobody changes, is left alone: such a row need not be read.
    """

    def validate(subject: Record) -> None:
        for name in names:
            if subject.left_alone(name):
                continue
            value = getattr(subject, name)
            if value is None or not str(value).strip():
                subject.errors.add(name, "cannot be blank")

    return validate
