"""
Requests and the catalog to frozen plans.

Each function raises InvalidArgument, with a path, for a name that the catalog does not have or a use that it
does not allow; docstrings name only what else is raised.
"""
