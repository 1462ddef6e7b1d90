from __future__ import annotations

from importlib.metadata import version

collect_ignore = ["test_plugin_airflow_3.py"] if version("apache-airflow").startswith("2.") else []
