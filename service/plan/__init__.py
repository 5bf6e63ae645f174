"""Requests and the catalog to frozen plans."""
