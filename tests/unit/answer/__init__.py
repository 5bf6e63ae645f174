"""Tests of service/answer."""
