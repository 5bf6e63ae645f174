"""
The one place that makes WAMP errors of exceptions; and the URIs of the router's own errors.

A `ServiceError` is sent with its URI and its details. Any other exception is a bug of the service: it is
logged under an id, and the caller is sent the id only.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

from autobahn.wamp.exception import ApplicationError
from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from service.db.worker import ORIGIN
from service.errors import Canceled, InternalError, ServiceError, causes, in_line
from service.payload import Unserializable, check

log = Logger()

PROCEDURE_EXISTS = "wamp.error.procedure_already_exists"
PROCEDURE_EXISTS_OTHERWISE = "wamp.error.procedure_exists_with_different_invocation_policy"
"""Registered by another session with another invocation policy: shared, and ours is single, or vice versa."""
CANNOT_AUTHENTICATE = "wamp.error.cannot_authenticate"
INVALID_PAYLOAD = "wamp.error.invalid_payload"


def name_of(uri: str, prefix: str) -> str:
    """
    Return the name of a procedure, percent-encoded as in its URI, without the prefix.

    Raises:
        ValueError: The URI does not begin with the prefix.
    """
    head = f"{prefix}."
    if not uri.startswith(head):
        raise ValueError(f"not below {head!r}: {uri!r}")
    return uri[len(head) :]


def application_error(error: BaseException, doing: str) -> ApplicationError:
    """
    Return the WAMP error for an exception.

    Args:
        error: The exception.
        doing: What failed, for the log: usually the URI of a procedure.
    """
    if isinstance(error, CancelledError):
        error = Canceled()
    elif not isinstance(error, ServiceError):
        error = internal(error, doing)
    return ApplicationError(error.uri, _text(error.message), **_details(error, doing))


def internal(error: BaseException, doing: str) -> InternalError:
    """Log an exception with its frames, but without data of rows; return the error that stands for it."""
    origin = ORIGIN.get()
    # The id of the call, if there is one, so that one search finds all log lines about it.
    id = origin.call if origin is not None and origin.call else uuid4().hex
    log.error(
        "failed in {doing}, id {id}: {reason}\n{frames}",
        doing=in_line(doing),
        id=id,
        kind=type(error).__qualname__,
        reason=_reason(error),
        frames="".join(_frames(error)),
    )
    return InternalError(id)


def _reason(error: BaseException) -> str:
    # PostgreSQL's messages have values of rows below the first line (DETAIL, CONTEXT).
    first = str(error).partition("\n")[0]
    return f"{type(error).__qualname__}: {in_line(first, 200)}"


def _frames(error: BaseException) -> Iterator[str]:
    # Not `format_exception`, which adds the complete message, and with it values of rows.
    for each in reversed([*causes(error, contexts=True)]):
        yield from traceback.format_tb(each.__traceback__)
        if each is not error:
            yield f"  {_reason(each)}\n"


def _details(error: ServiceError, doing: str) -> dict[str, Any]:
    details = {}
    for name, value in error.details.items():
        try:
            check(value)
        except Unserializable as unsafe:
            log.error(
                "left {name} out of {uri} in {doing}: {unsafe}",
                name=in_line(name),
                uri=error.uri,
                doing=in_line(doing),
                unsafe=unsafe,
            )
        else:
            details[name] = _plain(value)
    return details


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {_text(key): _plain(item) for key, item in value.items()}
    return value


def _text(value: str) -> str:
    # A message may quote a caller's string. In WAMP's JSON a string that begins with NUL is binary, and
    # a lone surrogate cannot be encoded as UTF-8.
    return value.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
