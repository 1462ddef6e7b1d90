"""Measurements of the provider: ``python -m benchmarks.NAME``."""
