"""A throw-away PostgreSQL, and databases of one's own on it."""
