"""Tests of service/describe."""
