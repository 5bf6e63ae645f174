"""The WAMP edge, without a router."""
