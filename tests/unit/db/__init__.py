"""What the database room does without a database."""
