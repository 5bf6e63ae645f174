"""
The Crossbar node of the embedded router, as its own configuration file has it.

Two doors: a private Unix socket, where whoever can open it is the service, and one TCP port
on 127.0.0.1, where everyone is `anonymous` and may call and subscribe below the prefix. No
client is given the empty prefix: it would include `wamp.session.kill` and `register`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

SERIALIZERS = ["cbor", "msgpack", "json"]

# A page from elsewhere must not reach the database through its reader's browser.
ORIGINS = ["http://127.0.0.1:*", "http://localhost:*"]

# RawSocket allows 16 MiB; a WebSocket takes as much, so that every client can read every answer.
LARGEST_MESSAGE = 16 * 1024 * 1024


def node(
    realm: str, prefix: str, port: int, socket: Path, bridge: str = "", code: str = ""
) -> dict[str, Any]:
    """
    Spell the configuration of a node.

    Args:
        realm: The one realm.
        prefix: What the URIs of procedures and topics begin with, without the dot.
        port: TCP port on 127.0.0.1 for WebSocket (`/ws`), RawSocket and HTTP.
        socket: Where the service connects, with RawSocket and CBOR.
        bridge: Path of the HTTP bridge, a secret: it answers every origin. Without one, no HTTP.
        code: Directory of `component`, which guards the router; unset: it is in PYTHONPATH.
    """
    component = {
        "type": "class",
        "classname": "component.Component",
        "realm": realm,
        "role": "service",
        "extra": {"prefix": prefix},
    }
    return {
        "version": 2,
        "controller": {},
        "workers": [
            {
                "type": "router",
                **({"options": {"pythonpath": [code]}} if code else {}),
                "components": [component],
                "realms": [{"name": realm, "roles": [_service(), _anonymous(prefix)]}],
                "transports": [_private(socket), _public(realm, port, bridge)],
            }
        ],
    }


def _service() -> dict[str, Any]:
    return _role("service", "", "call", "register", "publish", "subscribe")


def _anonymous(prefix: str) -> dict[str, Any]:
    return _role("anonymous", f"{prefix}.", "call", "subscribe")


def _role(name: str, prefix: str, *allowed: str) -> dict[str, Any]:
    permission = {
        "uri": prefix,
        "match": "prefix",
        "allow": dict.fromkeys(allowed, True),
        "disclose": {"caller": True, "publisher": True},
        "cache": True,
    }
    return {"name": name, "permissions": [permission]}


def _private(socket: Path) -> dict[str, Any]:
    return {
        "type": "rawsocket",
        "endpoint": {"type": "unix", "path": str(socket)},
        "serializers": ["cbor"],
        "auth": _as("service"),
    }


def _public(realm: str, port: int, bridge: str) -> dict[str, Any]:
    websocket = {
        "type": "websocket",
        "serializers": SERIALIZERS,
        "auth": _as("anonymous"),
        "options": {
            "allowed_origins": ORIGINS,
            "allow_null_origin": False,
            "auto_ping_interval": 20_000,
            "auto_ping_timeout": 10_000,
            "max_frame_size": LARGEST_MESSAGE,
            "max_message_size": LARGEST_MESSAGE,
        },
    }
    public: dict[str, Any] = {
        "type": "universal",
        "endpoint": {"type": "tcp", "port": port, "interface": "127.0.0.1"},
        "rawsocket": {"serializers": SERIALIZERS, "auth": _as("anonymous")},
        "websocket": {"ws": websocket},
    }
    if bridge:
        # No page at "/": Crossbar's `nodeinfo` there would answer for every path below it too.
        caller = {"type": "caller", "realm": realm, "role": "anonymous"}
        public["web"] = {"paths": {bridge: caller}}
    return public


def _as(role: str) -> dict[str, Any]:
    return {"anonymous": {"type": "static", "role": role}}
