"""Tests without reactor or database."""
