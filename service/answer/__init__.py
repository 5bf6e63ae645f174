"""One call, whole: request, plan, statement, rows, result. Read hub.py first."""
