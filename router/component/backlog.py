"""
How much the router still holds for a session, for whoever sends it much.

Crossbar takes what a callee sends, and keeps in memory what a slow caller does not take.
"""


def held(session):
    """Return the bytes that wait for a session's client; 0 where its transport has no buffer."""
    transport = getattr(session._transport, "transport", None)
    count = 0
    # TLS is a transport around that of TCP, each with buffers of its own.
    while transport is not None:
        count += len(getattr(transport, "dataBuffer", b"")) - getattr(transport, "offset", 0)
        count += getattr(transport, "_tempDataLen", 0)
        count += sum(map(len, getattr(transport, "_appSendBuffer", ())))
        transport = getattr(transport, "transport", None)
    return count
