"""Unit, database and WAMP tests."""
