"""
Arguments of calls to frozen requests.

Each function raises InvalidArgument, with a path, for input that does not follow the grammar; docstrings
name only what else is raised.
"""
