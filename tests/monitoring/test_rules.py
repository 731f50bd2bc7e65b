"""The configuration of Prometheus and its rules, by promtool."""

import re
import shutil
import subprocess

import pytest
from monitoring.tools import PROMTOOL, ROOT, needs

DIRECTORY = ROOT / "deploy" / "prometheus"
ALERTS = (DIRECTORY / "headrace.alerts.yml").read_text()
pytestmark = needs(PROMTOOL, "promtool")


def promtool(*arguments, cwd=DIRECTORY):
    return subprocess.run([PROMTOOL, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def test_the_configuration_is_valid():
    done = promtool("check", "config", "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_do_what_their_tests_say():
    done = promtool("test", "rules", "headrace.test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_has_a_test():
    text = (DIRECTORY / "headrace.test.yml").read_text()
    names = re.findall(r"- (?:alert|record): (\S+)", ALERTS + (DIRECTORY / "headrace.rules.yml").read_text())
    assert len(names) > 20
    assert [name for name in names if name not in text] == []
    assert [name for name in re.findall(r"alert: (\S+)", ALERTS) if f"alertname: {name}\n" not in text] == []


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("headrace.alerts.yml", "> 0.01", "> 0.5"),
        ("headrace.alerts.yml", 'state="failed"', 'state="ready"'),
        ("headrace.alerts.yml", "> 0.9", "> 0.3"),
        ("headrace.alerts.yml", "[30m]) > 2.5", "[30m]) > 2"),
        ("headrace.alerts.yml", "headrace_grpc_workers == 0", "headrace_grpc_workers == 2"),
        ("headrace.alerts.yml", "< headrace_grpc_workers_wanted", "<= headrace_grpc_workers_wanted"),
        ("headrace.rules.yml", "histogram_quantile(0.99", "histogram_quantile(0.9"),
        ("headrace.rules.yml", "avg by", "max by"),
    ],
)
def test_a_wrong_rule_fails_its_test(tmp_path, file, right, wrong):
    for path in DIRECTORY.glob("*.yml"):
        shutil.copy(path, tmp_path)
    text = (tmp_path / file).read_text()
    assert right in text
    (tmp_path / file).write_text(text.replace(right, wrong))
    assert promtool("test", "rules", "headrace.test.yml", cwd=tmp_path).returncode != 0
