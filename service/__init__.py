"""Serves PostgreSQL to WAMP callers: Twisted, twistar, autobahn."""
