"""
TLS to a router: verification of its certificate, and reasons of failed handshakes.

Twisted's own check accepts a certificate that it cannot read (without subjectAltName, or with a malformed
name): its callback catches the exception, logs it, and continues. This check refuses any certificate that it
cannot verify, and says why.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from cryptography.x509 import Certificate
from OpenSSL.SSL import VERIFY_FAIL_IF_NO_PEER_CERT, VERIFY_PEER, Error
from service_identity import VerificationError
from service_identity.hazmat import DNS_ID, IPAddress_ID, verify_service_identity
from service_identity.pyopenssl import extract_patterns
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import optionsForClientTLS
from twisted.python.failure import Failure
from zope.interface import implementer

from service.errors import clip

NAMES = 5
"""Maximum number of a certificate's names in a log line."""

NOT_YET, EXPIRED, SELF_SIGNED, WRONG_PURPOSE = 9, 10, 18, 26
UNKNOWN = {2, 19, 20, 21, 27}
"""OpenSSL's error codes of certificate chains, X509_V_ERR_…"""

PLAIN = ("wrong version number", "http request", "unknown protocol", "packet length too long")
"""OpenSSL's messages for an answer that is not TLS."""


class CertificateRefused(Exception):
    """A certificate was refused; the message says why."""


@implementer(IOpenSSLClientConnectionCreator)
class TlsEndpoint:
    """
    Makes TLS connections to one host.

    Args:
        host: Host name or IP address, which the certificate must have in its subjectAltName.
    """

    def __init__(self, host: str) -> None:
        self._options = optionsForClientTLS(host)
        self._host = host

    def clientConnectionForTLS(self, tls: Any) -> Any:
        """Build the TLS connection for a protocol."""
        connection = self._options.clientConnectionForTLS(tls)
        mode = VERIFY_PEER | VERIFY_FAIL_IF_NO_PEER_CERT
        connection.set_verify(mode, partial(self._verify, tls))
        return connection

    def _verify(self, tls: Any, _: Any, certificate: Any, code: int, depth: int, ok: int) -> bool:
        """Return whether a certificate is valid; OpenSSL calls this for each one of the chain."""
        try:
            if not ok:
                raise CertificateRefused(_flaw(certificate.to_cryptography(), code, depth))
            if depth == 0:
                self._named(certificate)
        except CertificateRefused as error:
            tls.failVerification(Failure(error))
            return False
        except Exception as error:  # an exception would be lost in OpenSSL's callback
            tls.failVerification(
                Failure(CertificateRefused(f"certificate cannot be read: {error}"))
            )
            return False
        return True

    def _named(self, certificate: Any) -> None:
        patterns = extract_patterns(certificate)
        if not patterns:
            raise CertificateRefused(
                f"certificate has no subjectAltName, and so is not for {self._host}"
                f" (its subject, {_subject(certificate.to_cryptography())}, does not count)"
            )
        address = isIPAddress(self._host) or isIPv6Address(self._host)
        wanted = IPAddress_ID(self._host) if address else DNS_ID(_ascii(self._host))
        try:
            verify_service_identity(patterns, [wanted], [])
        except VerificationError:
            names = [_words(pattern) for pattern in patterns]
            more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
            listed = clip(", ".join(names[:NAMES]), 300) + more
            raise CertificateRefused(f"certificate is for {listed}, not {self._host}") from None


def reason(error: BaseException) -> str:
    """Return why a connection was lost, if because of TLS; else an empty string."""
    if isinstance(error, CertificateRefused):
        return str(error)
    if not isinstance(error, Error):
        return ""
    reasons = ", ".join(str(each[-1]) for each in error.args[0]) if error.args else ""
    if any(each in reasons for each in PLAIN):
        return "what answers there does not speak TLS (ws:// and rs:// go without)"
    return f"TLS failed: {reasons or type(error).__name__}"


def _flaw(certificate: Certificate, code: int, depth: int) -> str:
    """Return OpenSSL's error code as a sentence."""
    whose = "certificate" if depth == 0 else f"certificate of authority {_subject(certificate)}"
    if code == EXPIRED:
        return f"{whose} expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    if code == NOT_YET:
        return f"{whose} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
    if code == SELF_SIGNED:
        return "certificate is self-signed, and not trusted here (SSL_CERT_FILE names what is)"
    if code in UNKNOWN:
        issuer = clip(certificate.issuer.rfc4514_string(), 200)
        return f"{whose} is of an unknown authority, {issuer} (SSL_CERT_FILE names the known)"
    if code == WRONG_PURPOSE:
        return f"{whose} is not one for servers"
    return f"{whose} is not valid (OpenSSL's verdict {code})"


def _subject(certificate: Certificate) -> str:
    return clip(certificate.subject.rfc4514_string(), 200) or "which is empty"


def _words(pattern: Any) -> str:
    value = pattern.pattern
    return value.decode("ascii", "backslashreplace") if isinstance(value, bytes) else str(value)


def _ascii(host: str) -> str:
    return host if host.isascii() else host.encode("idna").decode()
