"""
Validations that several models share, beside twistar's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def not_blank(*names: str) -> Callable[[Any], None]:
    """Build a validation that text is there, and not white space alone."""

    def validate(subject: Any) -> None:
        for name in names:
            value = getattr(subject, name)
            if value is None or not str(value).strip():
                subject.errors.add(name, "cannot be blank")

    return validate
