"""The command `asyncdb-guard`, one module for each of its commands. Needs the extra `cli`."""
