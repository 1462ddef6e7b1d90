"""The options of Airflow's configuration, and of ours: what a document may name."""

from __future__ import annotations

from configparser import RawConfigParser
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import yaml

#: Options that only other versions of Airflow have than the newest one.
OF_OTHER_VERSIONS = {
    ("scheduler", "dag_dir_list_interval"),
    ("triggerer", "default_capacity"),
    ("webserver", "web_server_host"),
}

#: Options without a default, of providers that are not installed with the newest Airflow.
OF_OTHER_PROVIDERS = {("celery", "result_backend")}


def known_options() -> set[tuple[str, str]]:
    """Return section and name of each option of Airflow and of its providers, this one with them."""
    spec = find_spec("airflow")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "config_templates"
    configs = [yaml.safe_load((folder / "config.yml").read_text())]
    configs += [provider.load()().get("config", {}) for provider in entry_points(group="apache_airflow_provider")]
    found = {(section, name) for config in configs for section in config for name in config[section]["options"]}
    # Those of Celery and Kubernetes, also where their providers are not installed.
    of_providers = RawConfigParser()
    of_providers.read(folder / "provider_config_fallback_defaults.cfg")
    found |= {(section, name) for section in of_providers.sections() for name in of_providers.options(section)}
    return found | OF_OTHER_VERSIONS | OF_OTHER_PROVIDERS


def option_of(variable: str) -> tuple[str, str]:
    """
    Return section and name of the option that an environment variable sets.

    :param variable: Such as ``AIRFLOW__CORE__EXECUTOR``.
    """
    _, section, name = variable.lower().split("__", 2)
    return section, name
