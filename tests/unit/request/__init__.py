"""Tests of service/request."""
