"""Tokens of pages."""

from __future__ import annotations

import gc
import json
from base64 import urlsafe_b64encode
from weakref import ref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidArgument
from service.request.read_request import digest_of, read_token, write_token

KEYS = st.lists(st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0")))


@given(KEYS | st.integers(0, 2**63 - 1))
def test_token_of_the_same_query_has_its_keys(keys):
    assert read_token(write_token("d", keys), "d") == keys


def test_token_of_another_query_is_refused():
    with pytest.raises(InvalidArgument, match="another query"):
        read_token(write_token(digest_of("a"), ["1"]), digest_of("b"))


class Shape:
    """A shape of a query."""

    def __init__(self, text):
        self.text = text

    def __repr__(self):
        return self.text


def test_digest_of_a_large_shape_keeps_no_reference():
    """A caller chooses the shapes, of up to megabytes each."""
    shape = Shape("x" * 1_000_000)
    known = ref(shape)
    assert digest_of(shape) == digest_of(shape) != digest_of(Shape("x"))
    del shape
    gc.collect()
    assert known() is None


@given(st.none() | st.integers() | st.text() | st.binary() | st.lists(st.text()))
def test_malformed_token_is_refused(token):
    """No other error is raised."""
    with pytest.raises(InvalidArgument):
        read_token(token, "d")


@pytest.mark.parametrize("keys", ["a", [1], ["a\0"], ["\ud800"], -1, True, 2**63, {}, None, 1.5])
def test_forged_token_is_refused(keys):
    """A well-formed token with other contents."""
    with pytest.raises(InvalidArgument):
        read_token(_forge(keys), "d")


def _forge(keys):
    return urlsafe_b64encode(json.dumps(["d", keys]).encode()).decode()
