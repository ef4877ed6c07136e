"""The demo: what a fleet of default pools does to a database, and how guarded fleets avoid it."""
