"""Mutation testing: change the package in one place at a time, and see whether a test notices."""
