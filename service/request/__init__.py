"""
The arguments of calls to frozen requests.

What does not follow the grammar is refused by whichever function meets it: InvalidArgument, with its
path. Docstrings name what else is raised.
"""
