"""
Requests and the catalog to frozen plans.

What a call names and the catalog does not have, or has and does not allow, is refused by whichever
function meets it: InvalidArgument, with its path. Docstrings name what else is raised.
"""
