"""
How the service authenticates itself to the router.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from autobahn.wamp.types import Challenge
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_ssh_private_key,
)

NO_KEY = "not an Ed25519 private key → ssh-keygen -t ed25519 -N '' -f FILE makes one"
LOCKED = "the key has a passphrase → ssh-keygen -p -N '' -f FILE takes it off"


class Login(Protocol):
    """One WAMP authentication method."""

    @property
    def method(self) -> str:
        """Name of the method."""

    @property
    def authid(self) -> str | None:
        """Authid to log in with."""

    def extra(self) -> dict[str, Any] | None:
        """Return the `authextra` of the HELLO."""

    def answer(self, challenge: Challenge) -> str:
        """Answer the router's challenge."""


@dataclass(frozen=True)
class Anonymous:
    """Anonymous login; the router assigns authid and authrole."""

    method: str = "anonymous"
    authid: str | None = None

    def extra(self) -> dict[str, Any] | None:
        """Return nothing."""
        return None

    def answer(self, challenge: Challenge) -> str:
        """
        Raise an error, because an anonymous client has no credentials.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"the router asks for {challenge.method}; no credentials are set")


@dataclass(frozen=True)
class Ticket:
    """
    Login with a shared secret.

    Args:
        authid: Authid of the service.
        ticket: The secret.
    """

    authid: str
    ticket: str = field(repr=False)
    method: str = "ticket"

    def extra(self) -> dict[str, Any] | None:
        """Return nothing."""
        return None

    def answer(self, challenge: Challenge) -> str:
        """Return the secret."""
        return self.ticket


@dataclass(frozen=True)
class Cryptosign:
    """
    Login with an Ed25519 key.

    Args:
        authid: Authid of the service; None lets the router find it by the public key.
        key_file: File of the private key: OpenSSH or PEM without a passphrase; 64 hexadecimal digits,
            alone or in Crossbar's `key.priv`; or 32 raw bytes.
    """

    authid: str | None
    key_file: Path
    method: str = "cryptosign"

    @cached_property
    def _key(self) -> Ed25519PrivateKey:
        data = self.key_file.read_bytes()
        if len(data) == 32:
            return Ed25519PrivateKey.from_private_bytes(data)
        # By label, because Crossbar's `key.priv` also has the public key, with as many digits.
        digits = re.search(
            rb"(?:\A|^private-key-ed25519:)\s*([0-9a-fA-F]{64})\s*(?:\Z|^)", data, re.M
        )
        if digits:
            return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(digits[1].decode()))
        try:
            load = load_ssh_private_key if b"BEGIN OPENSSH" in data else load_pem_private_key
            key = load(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            # cryptography has no exception class for a key with a passphrase; only the message tells.
            locked = "password" in str(error).lower()
            raise ValueError(LOCKED if locked else NO_KEY) from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError(NO_KEY)
        return key

    def extra(self) -> dict[str, Any] | None:
        """Return the public key."""
        return {"pubkey": self._key.public_key().public_bytes_raw().hex()}

    def answer(self, challenge: Challenge) -> str:
        """Return the signature and what was signed, in hexadecimal digits."""
        # Not autobahn's signer, which needs five more packages; autobahn depends on cryptography anyway.
        asked = bytes.fromhex(challenge.extra["challenge"])
        return self._key.sign(asked).hex() + asked.hex()
