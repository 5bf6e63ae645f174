"""Tests of service/changes."""
