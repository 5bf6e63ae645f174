"""Plans to statements."""
