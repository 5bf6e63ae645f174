"""The only room that knows psycopg2 and adbapi."""
