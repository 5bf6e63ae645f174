"""URIs are put together and taken apart in one way."""

from __future__ import annotations

import pytest

from service.wamp.errors import name_of, pattern, procedure_uri


def test_uri_of_odd_names_is_encoded() -> None:
    """Components are encoded where WAMP forbids a character."""
    assert procedure_uri("rowcast", "app", "my table", "get") == "rowcast.app.my%20table.get"
    assert pattern("com.example.db") == "com.example.db."


def test_name_behind_the_prefix_is_as_it_came() -> None:
    """A name is what stands behind the prefix, as it came."""
    assert name_of("rowcast.actions.get", "rowcast") == "actions.get"
    assert name_of("com.example.db.a%2Eb.get", "com.example.db") == "a%2Eb.get"
    with pytest.raises(ValueError, match="not below"):
        name_of("rowcaster.actions.get", "rowcast")
