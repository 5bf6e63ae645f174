"""Tests of service/sql."""
