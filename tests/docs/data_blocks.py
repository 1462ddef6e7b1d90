"""How a block of configuration or data is checked: it is parsed, and the options that it sets exist."""

from __future__ import annotations

import configparser
import json
import re
import tomllib

import certifi
import yaml

from airflow_provider_whisul.api.connection import read_connection
from airflow_provider_whisul.get_provider_info import CONN_FIELDS
from airflow_provider_whisul.rate_limit.redis_connection import RedisSettings
from tests.docs.example import Example
from tests.support.pages import REPOSITORY

#: The instructions of a Dockerfile that the documents use.
_INSTRUCTIONS = re.compile(r"(FROM|USER|RUN|COPY|ENV|WORKDIR|ARG|ENTRYPOINT|CMD|EXPOSE) ")
#: A CA file of an example, which is not on this machine.
_CA_FILE = re.compile(r'"/[\w./-]+\.pem"')
_AIRFLOW_IMAGE = re.compile(r"^FROM apache/airflow:([\d.]+)", re.MULTILINE)


def check_json(example: Example) -> None:
    """Parse JSON, and read it as a connection where it is one."""
    data = json.loads(example.block.code)
    if isinstance(data, dict) and "conn_type" in data:
        check_connection(example.block.code)


def check_connection(text: str) -> None:
    """Read a connection, which is JSON or a URI, as the provider does."""
    from airflow.providers.common.compat.sdk import Connection

    text = _CA_FILE.sub(json.dumps(certifi.where()), text)
    is_json = text.startswith("{")
    connection = Connection.from_json(text) if is_json else Connection.from_uri(text, "some_id")
    if connection.conn_type == "whisul":
        unknown = set(connection.extra_dejson) - set(CONN_FIELDS)
        assert not unknown, f"A Whisul connection has no extra {sorted(unknown)}."
        read_connection("some_id", lambda _: connection)
    elif connection.conn_type == "redis":
        RedisSettings.from_connection("some_id", connection)


def check_ini(example: Example) -> None:
    """Parse a part of airflow.cfg. Airflow, or the provider, must have each option."""
    from airflow.configuration import conf

    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(example.block.code)
    for section in parser.sections():
        options = conf.configuration_description.get(section, {}).get("options", {})
        for option in parser.options(section):
            assert option in options, f"Airflow has no option [{section}] {option}."
            if options[option].get("example", "") and str(options[option]["example"]).startswith("{"):
                json.loads(parser.get(section, option))


def check_yaml(example: Example) -> None:
    """Parse YAML, of one document or several."""
    assert any(document is not None for document in yaml.safe_load_all(example.block.code))


def check_toml(example: Example) -> None:
    """Parse TOML."""
    tomllib.loads(example.block.code)


def check_dockerfile(example: Example) -> None:
    """Check the instructions of a Dockerfile, and that it begins with an Airflow that is supported."""
    for line in re.sub(r"\\\n", " ", example.block.code).splitlines():
        assert not line or line.startswith("#") or _INSTRUCTIONS.match(line), line
    for version in _AIRFLOW_IMAGE.findall(example.block.code):
        assert (REPOSITORY / "constraints" / f"airflow-{version}.txt").exists(), f"Airflow {version} is not supported."
