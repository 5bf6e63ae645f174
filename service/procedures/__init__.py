"""Procedures written by hand with twistar models, and the modules that they come from."""
