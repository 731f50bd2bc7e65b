"""Every expression of every panel, rule and alert, asked of a real Prometheus that has scraped a server under load."""

import json
import math
import re
import subprocess
import sys

import pytest
from e2e.server_process import Server, eventually
from monitoring.load import Load, write_models
from monitoring.stand_in import StandIn
from monitoring.tools import PROMETHEUS, ROOT, Prometheus, needs

GRAFANA = ROOT / "deploy" / "grafana"
RULES = ROOT / "deploy" / "prometheus"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}

NOT_FROM_A_SERVER_HERE = {
    "nv_gpu_": "no GPU",
    "nv_energy_consumption": "no GPU",
    "headrace_model_memory_bytes": "no GPU",
    "headrace_model_nodes": "no GPU",
}
"""Beginnings of names of which a stand-in shows samples, and why. Their panels have never seen a server's."""


def expressions():
    """(dashboard, panel, expression) of all."""
    return [
        (name, panel["title"], target["expr"])
        for name, made in DASHBOARDS.items()
        for panel in made["panels"]
        for target in panel["targets"]
    ]


def stood_in(expr):
    """Whether a server on this machine cannot show what an expression asks for."""
    return any(name in expr for name in NOT_FROM_A_SERVER_HERE)


def filled_in(expr, job):
    """As Grafana sends it."""
    for variable, value in {"$__rate_interval": "10s", "$job": job, "$instance": ".*"}.items():
        expr = expr.replace(variable, value)
    expr = re.sub(r"\$(model|version)\b", ".*", expr)
    assert "$" not in expr
    return expr


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory):
    """It has scraped a server under load, and the stand-in, for long enough to know rates."""
    models = write_models(tmp_path_factory.mktemp("models"))
    data = tmp_path_factory.mktemp("prometheus")
    config = (RULES / "prometheus.yml").read_text()
    with Server(models, "--response-cache-bytes", 100_000, "--grpc-workers", 1) as server, StandIn() as stand_in:
        wanted = {
            '["127.0.0.1:8000"]': f'["{server.http.removeprefix("http://")}"]',
            "scrape_interval: 5s": "scrape_interval: 1s",
            "scrape_timeout: 4s": "scrape_timeout: 1s",
            "evaluation_interval: 15s": "evaluation_interval: 1s",
            "- headrace.": f"- {RULES}/headrace.",
        }
        for text, mine in wanted.items():
            assert text in config
            config = config.replace(text, mine)
        more = f'\n  - job_name: stand-in\n    static_configs:\n      - targets: ["{stand_in.target}"]\n'
        (data / "prometheus.yml").write_text(config + more)
        with Load(server), Prometheus(data / "prometheus.yml", data) as prometheus:
            eventually(lambda: all(v >= 4 for _, v in prometheus.samples("count_over_time(up[1m])")) and
                       len(prometheus.samples("up == 1")) == 2, 30)  # fmt: skip
            eventually(lambda: prometheus.samples("headrace_drift_score"), 60)
            yield prometheus
        assert server.stop() == 0, server.log


def test_the_dashboards_are_what_the_code_makes():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "generate_dashboards.py", "--check"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"run: python scripts/generate_dashboards.py\n{done.stderr}"


def test_there_are_all_dashboards():
    assert set(DASHBOARDS) == {"overview", "model", "latency", "batching", "drift", "guard", "gpu"}
    assert len({made["uid"] for made in DASHBOARDS.values()}) == len(DASHBOARDS)
    page = (ROOT / "docs" / "monitoring.md").read_text()
    for made in DASHBOARDS.values():
        assert f"\n| {made['title'].removeprefix('Headrace / ')} | " in page
    assert len(expressions()) > 60


@needs(PROMETHEUS, "prometheus")
@pytest.mark.parametrize(
    "expr",
    [pytest.param(expr, id=f"{name}: {panel} {number}") for number, (name, panel, expr) in enumerate(expressions())],
)
def test_a_panel_has_data(prometheus, expr):
    job = "stand-in" if stood_in(expr) else "headrace"
    found = eventually(lambda: prometheus.samples(filled_in(expr, job)))
    assert any(math.isfinite(value) for _, value in found), found


@needs(PROMETHEUS, "prometheus")
@pytest.mark.parametrize("dashboard", sorted(DASHBOARDS))
def test_every_label_of_a_legend_is_there(prometheus, dashboard):
    for panel in DASHBOARDS[dashboard]["panels"]:
        for target in panel["targets"]:
            wanted = set(re.findall(r"{{(\w+)}}", target.get("legendFormat", "")))
            job = "stand-in" if stood_in(target["expr"]) else "headrace"
            found = prometheus.samples(filled_in(target["expr"], job))
            assert any(wanted <= set(labels) for labels, _ in found), (panel["title"], wanted, found)


@needs(PROMETHEUS, "prometheus")
def test_every_variable_has_values(prometheus):
    for made in DASHBOARDS.values():
        for variable in made["templating"]["list"]:
            if variable["type"] == "query":
                series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]).groups()
                found = prometheus.samples(filled_in(series, "headrace"))
                assert {labels[label] for labels, _ in found}, variable["query"]


@needs(PROMETHEUS, "prometheus")
def test_every_recording_rule_records(prometheus):
    for group in prometheus.ask("rules", type="record")["groups"]:
        for rule in group["rules"]:
            assert rule.get("lastError", "") == ""
            found = eventually(lambda name=rule["name"]: prometheus.samples(name))
            assert any(labels["job"] == "headrace" for labels, _ in found), rule["name"]


@needs(PROMETHEUS, "prometheus")
def test_the_failed_model_alone_alarms(prometheus):
    def alerts():
        """Those of the server, pending or firing."""
        found = prometheus.ask("alerts")["alerts"]
        return {(a["labels"]["alertname"], a["labels"].get("model")) for a in found if a["labels"]["job"] == "headrace"}

    rules = [rule for group in prometheus.ask("rules", type="alert")["groups"] for rule in group["rules"]]
    assert [rule["name"] for rule in rules if rule.get("lastError")] == []
    assert len(rules) > 8
    eventually(lambda: ("HeadraceModelFailed", "broken") in alerts())
    assert alerts() == {("HeadraceModelFailed", "broken")}
