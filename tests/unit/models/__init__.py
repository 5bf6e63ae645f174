"""Tests of models that need no database."""
