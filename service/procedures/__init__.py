"""Procedures written by hand with twistar models."""
