"""
The number of bytes that the router buffers for a session.

Crossbar reads all that a callee sends, and keeps in memory what a slow caller has not read.
"""


def held(session):
    """Return how many bytes are buffered for a session's client; 0 if its transport has no buffer."""
    transport = getattr(session._transport, "transport", None)
    count = 0
    # A TLS transport wraps that of TCP; both have buffers.
    while transport is not None:
        count += len(getattr(transport, "dataBuffer", b"")) - getattr(transport, "offset", 0)
        count += getattr(transport, "_tempDataLen", 0)
        count += sum(map(len, getattr(transport, "_appSendBuffer", ())))
        transport = getattr(transport, "transport", None)
    return count
