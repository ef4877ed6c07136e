"""The demo: what a fleet of default pools does to a database, and what a guarded one does not."""
