"""Runs a real Airflow on this machine, for tests, benchmarks and the demo."""
