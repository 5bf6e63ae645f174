"""Tests of the schema's own parts."""
