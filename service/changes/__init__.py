"""Committed changes: the log's reader, what is published of it, and live queries."""
