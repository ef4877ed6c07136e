"""The demo: what a fleet of default pools does to a database, and how a guarded fleet avoids it."""
