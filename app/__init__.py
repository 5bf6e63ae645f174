"""
Rules and procedures of the tables that come with the project; the pattern for those of your own.

The service imports what `ROWCAST_APP` names, a package with all modules in it, and takes the
models and procedures that it finds there. `make run` names this one.
"""
