"""Random faults against a real server, by seed: `python -m tests.soak`."""
