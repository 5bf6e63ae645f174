"""
Validations for several models, in addition to twistar's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from service.models.record import Record


def not_blank(*names: str) -> Callable[[Any], None]:
    """
    Build a validation that a text is present and is not white space only.

    A value that the row has already and that does not change is not checked, so the row need not be read.
    """

    def validate(subject: Record) -> None:
        for name in names:
            if subject.is_untouched(name):
                continue
            value = getattr(subject, name)
            if value is None or not str(value).strip():
                subject.errors.add(name, "cannot be blank")

    return validate
