"""Real parts to run against: a throw-away PostgreSQL and a stand-in for the Lambda Runtime API."""
