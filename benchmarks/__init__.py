"""Measurements of the provider: ``make pacing``, ``make bench`` and ``make bench-airflow``."""
