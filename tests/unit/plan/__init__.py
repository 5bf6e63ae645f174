"""Tests of service/plan."""
