"""Tests of the client kits that need no service."""
