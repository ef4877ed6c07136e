"""Pools for tests: one that leaves no trace, one that tells who kept a connection; and what may happen to a pool."""
