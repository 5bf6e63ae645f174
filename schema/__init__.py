"""What the database is: SQLAlchemy models for Alembic."""
