"""
An oracle for live queries: it compares the rows of watchers with the results of `find`.

Generated queries are watched while several writers work. At random steps, the watchers' rows are
sampled. Each sample has a position, so the oracle rebuilds the tables at that position from the log,
in a second database, and runs `find` there. The comparison uses none of the code of live queries.
"""
