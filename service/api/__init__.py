"""One call, whole: from a name and raw arguments to an answer."""
