import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scrape import Pair, figures

ROOT = Path(__file__).parents[2]


def pairs(slower=1.0, count=20, seed=1):
    """Seconds of 500 requests each around 1 ms; those with a scrape took so many times as long."""
    random = np.random.default_rng(seed)
    machine = random.uniform(1, 3, count)  # how slow it is differs from pair to pair, and not within one
    return [Pair(slower * s * random.gamma(9, 1e-4, 500), s * random.gamma(9, 1e-4, 500)) for s in machine]


def test_seconds_that_are_alike_have_a_ratio_of_one():
    found = figures(pairs())
    assert found["ratio_low"] < 1 < found["ratio_high"]
    assert found["ratio"] == pytest.approx(1, abs=0.1)
    assert (found["scraped_requests"], found["quiet_requests"]) == (10_000, 10_000)
    assert found["quiet_p50_us"] == pytest.approx(1e6 * np.median(np.concatenate([p.quiet for p in pairs()])), rel=0.01)


def test_a_scrape_that_disturbs_is_seen_although_the_machine_is_noisy():
    found = figures(pairs(1.3))
    assert found["ratio"] == pytest.approx(1.3, abs=0.1)
    assert found["ratio_low"] > 1.1


def test_a_run_from_end_to_end(tmp_path):
    results = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, ROOT / "loadtest/scrape.py", "--pairs", "2", "--second", "0.2", "--warm", "0.1",
         "--models", "2", "--connections", "2", "--results", results],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(results.read_text())
    assert json.loads(done.stdout) == told
    assert (told["pairs"], told["models"], told["connections"]) == (2, 2, 2)
    assert min(told["scraped_requests"], told["quiet_requests"]) > 10
    assert told["scrape_octets"] > 10_000
    assert told["scrape_ms"] > 0
