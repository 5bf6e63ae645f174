"""Subscriptions that may match events of a relation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.wamp.publisher import concerns

HEAD = "rowcast.actions"


@pytest.mark.parametrize(
    ("uri", "match", "found"),
    [
        ("rowcast.actions.changed.update.42", "exact", True),
        ("rowcast.actions.touched", "exact", True),
        ("rowcast.actions", "exact", False),
        ("rowcast.actionsx.changed.update.42", "exact", False),
        ("rowcast.drivers.changed.update.42", "exact", False),
        ("rowcast.actions.changed.", "prefix", True),
        ("rowcast.actions.ch", "prefix", True),
        ("rowcast.act", "prefix", True),
        ("rowcast.", "prefix", True),
        ("", "prefix", True),
        ("rowcast.actionsx", "prefix", False),
        ("rowcast.drivers.", "prefix", False),
        ("rowcast.actions.changed..42", "wildcard", True),
        ("rowcast..changed..", "wildcard", True),
        ("....", "wildcard", True),
        ("rowcast.drivers.changed..", "wildcard", False),
        ("rowcast", "wildcard", False),
    ],
)
def test_subscription_concerns_a_relation(uri: str, match: str, found: bool) -> None:
    assert concerns(uri, match, HEAD) is found


def matches(topic: str, uri: str, match: str) -> bool:
    """Return whether a subscription matches a topic, by the WAMP specification."""
    if match == "wildcard":
        parts, pattern = topic.split("."), uri.split(".")
        return len(parts) == len(pattern) and all(
            one in ("", other) for one, other in zip(pattern, parts, strict=True)
        )
    return topic.startswith(uri) if match == "prefix" else topic == uri


words = st.sampled_from(["rowcast", "actions", "changed", "update", "42", "drivers"])


@given(
    st.lists(words, min_size=2, max_size=3).map(".".join),
    st.lists(words, min_size=1, max_size=3),
    st.data(),
)
def test_subscription_that_gets_an_event_is_never_left_out(
    head: str, tail: list[str], data: st.DataObject
) -> None:
    topic = ".".join([head, *tail])
    match = data.draw(st.sampled_from(["exact", "prefix", "wildcard"]))
    uri = topic
    if match == "prefix":
        uri = topic[: data.draw(st.integers(0, len(topic)))]
    if match == "wildcard":
        uri = ".".join(part if data.draw(st.booleans()) else "" for part in topic.split("."))
    assert matches(topic, uri, match)
    assert concerns(uri, match, head)
