"""Tests of procedures written by hand that need no database."""
