"""The defaults that make one command enough."""
