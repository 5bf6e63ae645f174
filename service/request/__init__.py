"""Keyword arguments to frozen requests."""
