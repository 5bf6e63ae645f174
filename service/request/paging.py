"""
The `next` and `prev` tokens: where a page ended and began, bound to the query that it answers.

A token holds the sort keys of the last or the first row as PostgreSQL's text, or an offset where
rows have no key to go by, and a digest of the query, so that it cannot be used with
another one by mistake. It is no secret and no proof: what it holds is bound as
parameters, like any value of a call.
"""

from __future__ import annotations

import binascii
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from service.errors import InvalidArgument
from service.request.arguments import UNSTORABLE

MAX_TOKEN = 1 << 20
"""Characters; sort keys may be long strings."""


def digest_of(*query: Any) -> str:
    """
    Return a digest of a query: the same order and filter give the same one.

    Raises:
        InvalidArgument: A value in it is nested too deep to be looked at.
    """
    try:
        text = repr(query)
    except RecursionError:
        raise InvalidArgument("a value of this call is nested too deep") from None
    # A caller's string may hold half a surrogate pair, which has no UTF-8.
    return blake2b(text.encode(errors="replace"), digest_size=9).hexdigest()


def write_token(digest: str, keys: Sequence[str | None] | int) -> str:
    """Return a token for the last row's sort keys, or for an offset."""
    page = keys if isinstance(keys, int) else list(keys)
    text = json.dumps([digest, page], ensure_ascii=False, separators=(",", ":"))
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_token(token: Any, digest: str, name: str = "after") -> list[str | None] | int:
    """
    Parse a token into the sort keys, or the offset, that it holds.

    Args:
        token: As it came.
        digest: Of the query of the call.
        name: Of the argument: "after" or "before".

    Raises:
        InvalidArgument: It is none of ours, or of another query.
    """
    if not isinstance(token, str) or len(token) > MAX_TOKEN:
        raise _not_a_token(name)
    try:
        found = json.loads(urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        theirs, keys = found
    # Any text may come for a token: `json` answers brackets without end with RecursionError.
    except (ValueError, TypeError, binascii.Error, RecursionError):
        raise _not_a_token(name) from None
    if theirs != digest:
        raise InvalidArgument(
            "this token belongs to another query",
            path=name,
            hint="a token goes with the same where, order and distinct as the page before",
        )
    if isinstance(keys, list) and all(map(_is_key, keys)):
        return keys
    if isinstance(keys, int) and not isinstance(keys, bool) and 0 <= keys < 2**63:
        return keys
    raise _not_a_token(name)


def _is_key(key: Any) -> bool:
    return key is None or (isinstance(key, str) and not UNSTORABLE.search(key))


def _not_a_token(name: str) -> InvalidArgument:
    hint = '"after" takes the "next", and "before" the "prev", of another page'
    return InvalidArgument("not a token", path=name, hint=hint)
