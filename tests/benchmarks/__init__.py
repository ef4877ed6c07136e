"""How fast it is, beside what else one could take: `python -m tests.benchmarks`."""
