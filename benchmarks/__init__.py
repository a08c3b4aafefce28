"""Benchmarks: side by side with peers, in one run, against the floor."""
