"""
Procedure URIs and the router's own error URIs, spelled once.

The error URIs that the service answers with stand on the classes of `service.errors`.
"""

from __future__ import annotations

from service.request.names import encode

PROCEDURE_EXISTS = "wamp.error.procedure_already_exists"
PROCEDURE_EXISTS_OTHERWISE = "wamp.error.procedure_exists_with_different_invocation_policy"
"""Registered already, and shared when ours is single or single when ours is shared."""
CANNOT_AUTHENTICATE = "wamp.error.cannot_authenticate"
INVALID_PAYLOAD = "wamp.error.invalid_payload"


def pattern(prefix: str) -> str:
    """Give the prefix pattern that every procedure of a service matches."""
    return f"{prefix}."


def procedure(prefix: str, *components: str) -> str:
    """Spell the URI of a procedure, each component encoded."""
    return ".".join([prefix, *map(encode, components)])


def name_of(uri: str, prefix: str) -> str:
    """
    Give a procedure's name, still encoded: its URI without the prefix.

    Raises:
        ValueError: The URI is of another prefix.
    """
    head = pattern(prefix)
    if not uri.startswith(head):
        raise ValueError(f"not below {head!r}: {uri!r}")
    return uri[len(head) :]
