"""Tests against PostgreSQL and Crossbar."""
