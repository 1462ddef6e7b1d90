"""The dashboard, the alerts and the mapping of names are about metrics that there are."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from statsd import StatsClient

from airflow_provider_whisul import metrics
from airflow_provider_whisul.decorators.whisul import _WhisulDecoratedOperator
from airflow_provider_whisul.decorators.whisul_batch import _WhisulBatchDecoratedOperator
from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator
from airflow_provider_whisul.sensors.whisul import WhisulJobSensor
from airflow_provider_whisul.transfers.whisul_to_object_storage import WhisulToObjectStorageOperator
from tests.support.every_metric import send_every_metric

DOCS = Path(__file__).resolve().parents[3] / "docs"
FOLDER = DOCS / "grafana"
PAGE = (DOCS / "metrics.md").read_text()
MAPPINGS: list[dict[str, Any]] = yaml.safe_load((FOLDER / "statsd_mapping.yaml").read_text())["mappings"]
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "whisul.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES = [rule for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]] + [rule["expr"] for rule in RULES]
OPERATORS = [
    WhisulGenerateOperator,
    WhisulGenerateBatchOperator,
    WhisulJobSensor,
    WhisulToObjectStorageOperator,
    _WhisulDecoratedOperator,
    _WhisulBatchDecoratedOperator,
]

#: All other words of a query are metrics.
WORDS = {"sum", "increase", "vector", "rate", "histogram_quantile", "max", "min", "by", "or", "unless", "offset"}
_SECONDS = {"timer": "ms", "counter": "c"}


def mapping_of(name: str) -> tuple[dict[str, Any], dict[str, str]] | None:
    """Return the first rule that fits a name that StatsD gets, and the labels; None if none does."""
    for mapping in MAPPINGS:
        pattern = mapping["match"]
        if mapping.get("match_type") != "regex":
            pattern = "^" + re.escape(pattern).replace(r"\*", r"([^.]*)") + "$"
        if match := re.search(pattern, name):
            labels = {key: match.expand(value.replace("$", "\\")) for key, value in mapping.get("labels", {}).items()}
            return mapping, labels
    return None


def metrics_of(query: str) -> set[str]:
    """Return the metrics that a query names."""
    query = re.sub(r'"[^"]*"', "", query)
    query = re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(?:by|without) \([^)]*\)|\boffset \w+|\$\w+", "", query)
    return set(re.findall(r"[a-zA-Z_]\w*", query)) - WORDS


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What Airflow's own client for StatsD sends of our metrics: the type by the name."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(5)
        client = StatsClient("127.0.0.1", listener.getsockname()[1], prefix="airflow")
        monkeypatch.setattr(metrics, "Stats", client)
        send_every_metric()
        client.incr("the.last.one")
        found: dict[str, str] = {}
        while "airflow.the.last.one" not in found:
            name, _, value = listener.recv(65_536).decode().partition(":")
            found[name] = value.partition("|")[2]
        client.close()
    del found["airflow.the.last.one"]
    return found


def exposed() -> Iterator[str]:
    """Yield each metric that Prometheus gets by the mapping."""
    for mapping in MAPPINGS:
        if mapping.get("observer_type") == "histogram":
            yield from (f"{mapping['name']}_{part}" for part in ("bucket", "sum", "count"))
        else:
            yield mapping["name"]


def test_every_metric_is_mapped_by_its_kind(sent: dict[str, str]) -> None:
    documented = dict(re.findall(r"^\| `(whisul\.\w+)` \| (\w+) \|", PAGE, re.MULTILINE))
    assert sent == {f"airflow.{name}": _SECONDS[kind] for name, kind in documented.items()}
    for name, kind in sent.items():
        found = mapping_of(name)
        assert found is not None, name
        mapping, labels = found
        assert labels == {}
        assert mapping["name"].removesuffix("_total").removesuffix("_seconds") == name.split(".", 1)[1].replace(
            ".", "_"
        )
        if kind == "c":
            assert mapping["name"].endswith("_total")
            assert "observer_type" not in mapping
        else:
            assert mapping["name"].endswith("_seconds")
            buckets = mapping["histogram_options"]["buckets"]
            assert mapping["observer_type"] == "histogram"
            assert buckets == sorted(buckets)


def test_no_rule_of_the_mapping_is_about_a_metric_that_there_is_not(sent: dict[str, str]) -> None:
    ours = {id(found[0]) for name in sent if (found := mapping_of(name))}
    others = [mapping["name"] for mapping in MAPPINGS if id(mapping) not in ours]
    assert others == [
        "airflow_triggerer_triggers",
        "airflow_triggerer_capacity_left",
        "airflow_operator_successes",
        "airflow_operator_failures",
    ]


def test_the_prefix_may_be_another_one() -> None:
    assert mapping_of("night.whisul.polls") is not None
    assert mapping_of("airflow.dag.whisul.polls") is None


@pytest.mark.parametrize(
    ("legacy_name", "values", "name", "label"),
    [
        ("triggers.running.{hostname}", {"hostname": "one.example"}, "airflow_triggerer_triggers", "triggerer"),
        ("triggerer.capacity_left.{hostname}", {"hostname": "one"}, "airflow_triggerer_capacity_left", "triggerer"),
        ("operator_successes_{operator_name}", {"operator_name": "X"}, "airflow_operator_successes", "operator"),
        ("operator_failures_{operator_name}", {"operator_name": "X"}, "airflow_operator_failures", "operator"),
    ],
)
def test_airflow_has_the_names_that_are_mapped(legacy_name: str, values: dict[str, str], name: str, label: str) -> None:
    spec = find_spec("airflow")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    template = Path(spec.submodule_search_locations[0], "_shared", "observability", "metrics", "metrics_template.yaml")
    known = {metric["legacy_name"] for metric in yaml.safe_load(template.read_text())["metrics"]}
    assert legacy_name in known
    found = mapping_of(f"airflow.{legacy_name.format(**values)}")
    assert found is not None
    assert (found[0]["name"], found[1]) == (name, {label: next(iter(values.values()))})


def test_every_query_names_metrics_that_there_are() -> None:
    assert {name for query in QUERIES for name in metrics_of(query)} <= set(exposed())


def test_the_dashboard_shows_every_metric() -> None:
    shown = {name for panel in PANELS for target in panel["targets"] for name in metrics_of(target["expr"])}
    missing = {mapping["name"] for mapping in MAPPINGS if not any(name.startswith(mapping["name"]) for name in shown)}
    assert missing == set()


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_panel_of_the_tasks_has_every_operator(operator: type) -> None:
    (panel,) = [panel for panel in PANELS if panel["title"] == "Tasks of this provider per hour"]
    for target in panel["targets"]:
        (pattern,) = re.findall(r'operator=~"([^"]+)"', target["expr"])
        assert re.fullmatch(pattern, operator.__name__)
        assert not re.fullmatch(pattern, "HttpOperator")


def test_the_panels_lie_beside_one_another() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        covered = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert cells.isdisjoint(covered), panel["title"]
        assert max(x for x, _ in covered) < 24
        cells |= covered
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_every_query_is_for_the_prometheus_that_the_viewer_chooses() -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    assert all(panel["datasource"] == chosen for panel in PANELS)
    assert all(target["datasource"] == chosen for panel in PANELS for target in panel["targets"])
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    own = {"__range", "__rate_interval"}
    assert {name for query in QUERIES for name in re.findall(r"\$(\w+)", query)} <= variables | own


def test_the_page_has_every_panel_and_every_alert() -> None:
    table = PAGE.partition("## The dashboard")[2].partition("## Alerts")[0]
    titles = {title for cell in re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE) for title in cell.split(", ")}
    assert {panel["title"] for panel in PANELS} == titles - {"panel", "---"}
    alerts = PAGE.partition("## Alerts")[2]
    assert set(re.findall(r"^\| `(\w+)` \|", alerts, re.MULTILINE)) == {rule["alert"] for rule in RULES}
    named = set(re.findall(r"`((?:whisul|airflow)_\w+)`", table))
    assert named == {mapping["name"] for mapping in MAPPINGS}


def test_prometheus_and_grafana_find_what_they_are_given() -> None:
    prometheus = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    assert [(FOLDER / name).is_file() for name in prometheus["rule_files"]] == [True]
    (job,) = prometheus["scrape_configs"]
    services = yaml.safe_load((DOCS / "compose" / "compose.yaml").read_text())["services"]
    assert {target.partition(":")[0] for config in job["static_configs"] for target in config["targets"]} <= set(
        services
    )
    (source,) = yaml.safe_load((FOLDER / "provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((FOLDER / "provisioning/dashboards/whisul.yaml").read_text())["providers"]
    (mount,) = services["grafana"]["volumes"][:1]
    assert mount == f"../grafana:{provider['options']['path']}:ro"
    assert services["grafana"]["environment"]["GF_PATHS_PROVISIONING"] == f"{provider['options']['path']}/provisioning"
