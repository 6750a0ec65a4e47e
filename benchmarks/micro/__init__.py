"""Micro benchmarks of the hot pieces under pytest-benchmark: ``make micro``."""
