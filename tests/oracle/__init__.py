"""
An oracle for live queries: what a watcher has been sent, against what `find` answers.

Generated queries are watched while several writers are at work. Copies are taken at random steps;
each has a position, so the tables are made again from the log as they were then, in a database
beside it, and asked. Nothing of what keeps the copies takes part in that.
"""
