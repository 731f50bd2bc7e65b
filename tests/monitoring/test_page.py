"""The page at `/`: its figures by Node, and the whole of it in headless Chromium, before a server under load."""

import json
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from e2e.server_process import Server, eventually
from monitoring.browser import Browser
from monitoring.load import Load, write_models
from monitoring.tools import CHROMIUM, ROOT, needs

from headrace.telemetry.recorder import REQUEST_EDGES

PAGE = ROOT / "server" / "headrace" / "transport" / "rest" / "page.html"
NODE = shutil.which("node")
HOSTILE = "<img src=x onerror=alert(1)>"
EDGES = [edge / 1e9 for edge in REQUEST_EDGES.tolist()]


# --- the figures ------------------------------------------------------------------------------------------------------


def compute(expression):
    """The value of an expression in the page's script, which without a document is functions alone."""
    (script,) = re.findall(r"<script>(.*?)</script>", PAGE.read_text(), re.DOTALL)
    program = f"{script}\nconsole.log(JSON.stringify({expression}))"
    done = subprocess.run([NODE, "-"], input=program, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def call(function, *arguments):
    return compute(f"{function}({', '.join(map(json.dumps, arguments))})")


def version(seconds, **changes):
    """What /status.json says of a version to which nothing has happened."""
    told = {
        "seconds": seconds, "requests": 0, "rows": 0, "refused": {}, "queue": {"requests": 0, "rows": 0, "wait_s": 0},
        "latency": [0, 0, 0], "phases_s": dict.fromkeys(("decode", "execute"), 0), "phase_requests": 0, "batches": {},
        "busy_s": {},
    }  # fmt: skip
    return told | changes


@needs(NODE, "node")
def test_quantiles_are_those_of_prometheus():
    assert call("quantile", [1, 2, 4], [0, 10, 0, 0], 0.5) == 1.5
    assert call("quantile", [1, 2, 4], [10, 10, 0, 0], 0.5) == 1
    assert call("quantile", [1, 2, 4], [5, 0, 5, 0], 0.9) == pytest.approx(3.6)
    assert call("quantile", [1, 2, 4], [0, 0, 0, 3], 0.5) == 4  # above the last bound nobody knows
    assert call("quantile", [1, 2, 4], [0, 0, 0, 0], 0.5) is None


@needs(NODE, "node")
def test_rates_are_differences_over_the_servers_own_time():
    then = version(10, requests=100, rows=200, refused={"queue_full": 1}, latency=[100, 0, 0], batches={"2": 50})
    now = version(
        14, requests=140, rows=280, refused={"queue_full": 3, "cancelled": 2}, latency=[120, 20, 0],
        batches={"2": 60, "4": 15}, phases_s={"decode": 1, "execute": 3}, phase_requests=40, busy_s={"0": 2, "1": 1},
    )  # fmt: skip
    found = call("change", now, then, [1, 2])
    assert (found["requests"], found["rows"], found["errors"], found["busy"]) == (10, 20, 1, 0.75)
    assert (found["latency"], found["batches"]) == ([20, 20, 0], {"2": 10, "4": 15})
    assert found["meanBatch"] == pytest.approx(80 / 25)
    assert (found["p50"], found["phases"], found["phased"]) == (1, {"decode": 1, "execute": 3}, 40)


@needs(NODE, "node")
def test_a_version_that_is_new_or_was_loaded_again_has_no_rate_below_zero():
    assert call("change", version(10, requests=100), None, [1, 2])["requests"] == 0
    found = call("change", version(14, requests=8), version(10, requests=100), [1, 2])
    assert found["requests"] == 2


@needs(NODE, "node")
def test_several_models_are_one_as_well():
    then = version(10)
    one = version(12, requests=4, latency=[4, 0, 0], batches={"1": 4}, queue={"requests": 0, "rows": 0, "wait_s": 0.5})
    two = version(14, requests=4, latency=[0, 4, 0], batches={"1": 1, "3": 1})
    script = ", ".join(f"change({json.dumps(now)}, {json.dumps(then)}, [1, 2])" for now in (one, two))
    found = compute(f"together([{script}], [1, 2])")
    assert (found["requests"], found["p50"], found["wait"]) == (3, 1, 0.5)
    assert found["batches"] == {"1": 5, "3": 1}


@needs(NODE, "node")
def test_many_batch_sizes_are_put_together():
    assert call("bars", {"4": 1, "1": 2, "2": 0}, 16) == [["1", 2], ["4", 1]]
    many = {str(size): 1 for size in range(1, 65)}
    assert call("bars", many, 16) == [
        ["1", 1],
        ["2", 1],
        ["3-4", 2],
        ["5-8", 4],
        ["9-16", 8],
        ["17-32", 16],
        ["33-64", 32],
    ]


@needs(NODE, "node")
def test_figures_are_short():
    times = [None, 0, 12e-6, 0.0123, 0.5, 12]
    assert [call("time", value) for value in times] == ["-", "0 µs", "12 µs", "12.3 ms", "500 ms", "12.00 s"]
    assert [call("number", value) for value in (None, 0, 3, 0.5, 12.34, 1234.5)] == [
        "-",
        "0",
        "3",
        "0.50",
        "12.3",
        "1,235",
    ]


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    models = write_models(tmp_path_factory.mktemp("models"))
    with Server(models, "--response-cache-bytes", 100_000) as server, Load(server):
        yield server


@pytest.fixture
def browser(tmp_path):
    with Browser(tmp_path) as browser:
        yield browser


def size(png):
    """Width and height (PNG, 11.2.2)."""
    return struct.unpack(">II", png.read_bytes()[16:24])


@needs(CHROMIUM, "chromium")
def test_the_page_shows_a_server_under_load(server, browser, tmp_path):
    browser.scheme("light")
    browser.open(server.http)

    def text(selector="body"):
        return browser.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def rate(row):
        """Requests a second in the row of a model."""
        rows = "[...document.querySelectorAll('#models tbody tr')]"
        cells = browser.run(f"{rows}.map((row) => [...row.cells].map((cell) => cell.innerText))")
        (found,) = [cells[2] for cells in cells if cells[0] == row]
        return found

    eventually(lambda: "plain 1" in text() and rate("plain 1") not in ("0", "-"), 30)
    assert text("#state") == "ready"
    assert re.search(r"broken 1\s+failed", text("#models"))
    assert re.search(r"tight 1\s+ready\s+0\s+[\d.]+", text("#models"))  # all of its requests are errors
    phases = text("#phases")
    assert [phase for phase in ("decode", "admit", "queue", "batch", "execute", "encode") if phase not in phases] == []
    assert "100 %" not in phases
    assert "%" in browser.run("document.querySelector('#batches svg').getAttribute('aria-label')")
    eventually(lambda: browser.run("document.querySelectorAll('#rate svg path, #p99 svg path').length") == 2, 30)
    cells = r"watched 1\s+x \(inputs\)\s+0\s+psi\s+[\d.]+ \(by chance [\d.]+\)\s+(not judged|as trained)"
    eventually(lambda: re.search(cells, text("#drift")), 60)

    eventually(lambda: re.search(r"guarded 2\s+1\s+[\d.]+\s+1\.0000\s+0\.99\s+keeps its limits", text("#guards")), 60)

    browser.run("(() => { const it = document.querySelector('#choice'); it.value = 'plain 1'; "
                "it.dispatchEvent(new Event('change')); })()")  # fmt: skip
    assert (
        browser.run("document.querySelector('#batches svg').getAttribute('aria-label')") == "rows of a batch: 2: 100 %"
    )

    shots = {}
    for scheme in ("light", "dark"):
        browser.scheme(scheme)
        shots[scheme] = browser.screenshot(Path(os.environ.get("HEADRACE_SCREENSHOTS", tmp_path)) / f"{scheme}.png")
    assert size(shots["light"]) == size(shots["dark"])
    assert shots["light"].read_bytes() != shots["dark"].read_bytes()
    assert browser.errors == []
    assert {url.removeprefix(server.http) for url in browser.requests} == {"/", "/status.json", "/v2/health/ready"}


@needs(CHROMIUM, "chromium")
def test_what_a_model_or_a_feature_is_called_is_text(server, browser):
    """Names are a repository's; the page must show them, and not run them."""
    browser.open(server.http)
    eventually(lambda: browser.run("document.querySelectorAll('#models tbody tr').length") or 0, 30)
    told = server.get_json("/status.json")[1]
    told["models"][0]["name"] = HOSTILE
    told["drift"] = [
        {
            "model": HOSTILE,
            "version": "1",
            "tensor": "x",
            "direction": "inputs",
            "feature": HOSTILE,
            "score": "psi",
            "value": v,
            "by_chance": 0.2 if state == "quiet" else None,
            "state": state,
        }
        for v, state in ((0.1, "quiet"), (0.3, "alarm"), (0.5, "not judged"))
    ]
    told["guards"] = [
        {
            "model": HOSTILE,
            "version": "2",
            "reference": "1",
            "state": state,
            "requests": 9,
            "agreement": None,
            "limit": 1,
        }
        for state in ("watching", "fallen_back")
    ]
    browser.run(
        f"(() => {{ const told = {json.dumps(told)}; "
        "window.fetch = async () => ({ok: true, json: async () => structuredClone(told)}); })()"
    )
    eventually(lambda: HOSTILE in browser.run("document.querySelector('#drift').innerText"), 30)
    assert HOSTILE in browser.run("document.querySelector('#models').innerText")
    rows = browser.run("[...document.querySelectorAll('#drift tbody tr')].map((row) => row.cells[5].innerText)")
    assert rows == ["drifted", "not judged", "as trained"]
    values = browser.run("[...document.querySelectorAll('#drift tbody tr')].map((row) => row.cells[4].innerText)")
    assert ["by chance" in value for value in values] == [False, False, True]
    assert HOSTILE in browser.run("document.querySelector('#guards').innerText")
    assert "moved back to the reference" in browser.run("document.querySelector('#guards').innerText")
    assert browser.run("document.images.length") == 0
    assert browser.errors == []


@needs(CHROMIUM, "chromium")
def test_a_server_that_goes_away_is_said_to_be(browser, tmp_path_factory):
    models = tmp_path_factory.mktemp("none")
    with Server(models) as server:
        browser.open(server.http)
        eventually(lambda: browser.run("document.querySelector('#state').innerText") == "ready", 30)
        assert "No model is compared" in browser.run("document.querySelector('#drift').innerText")
    eventually(lambda: "no answer" in browser.run("document.querySelector('#state').innerText"), 30)


@needs(CHROMIUM, "chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(server, browser, scheme):
    """At least 4.5 to 1 (WCAG 2.2, 1.4.3)."""
    browser.scheme(scheme)
    browser.open(server.http)
    eventually(lambda: browser.run("document.querySelectorAll('#phases tbody tr').length") or 0, 30)
    pairs = browser.run("""(() => {
      const luminance = (colour) => {
        const linear = (v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
        const [r, g, b] = colour.match(/[\\d.]+/g).map((v) => linear(v / 255));
        return .2126 * r + .7152 * g + .0722 * b;
      };
      const ground = (element) => {
        for (let it = element; it; it = it.parentElement) {
          const colour = getComputedStyle(it).backgroundColor;
          if (!/, 0\\)$|transparent/.test(colour)) return colour;
        }
      };
      const texts = document.querySelectorAll("h1, h1 span, a, dt, dd, th, td, td span:not(.key), p, label");
      return [...texts].filter((it) => it.innerText).map((it) => {
        const [low, high] = [luminance(getComputedStyle(it).color), luminance(ground(it))].sort((a, b) => a - b);
        return [it.innerText.slice(0, 20), (high + .05) / (low + .05)];
      });
    })()""")
    assert len(pairs) > 40
    assert [pair for pair in pairs if pair[1] < 4.5] == []
