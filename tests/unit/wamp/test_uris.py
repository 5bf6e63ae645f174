"""URIs are parsed in one place."""

from __future__ import annotations

import pytest

from service.wamp.application_errors import name_of


def test_name_after_the_prefix_is_unchanged() -> None:
    """The part after the prefix is not decoded."""
    assert name_of("rowcast.actions.get", "rowcast") == "actions.get"
    assert name_of("com.example.db.a%2Eb.get", "com.example.db") == "a%2Eb.get"
    with pytest.raises(ValueError, match="not below"):
        name_of("rowcaster.actions.get", "rowcast")
