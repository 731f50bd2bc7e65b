from compare.rows import rows

ISSUE = {
    "tab-h2load": [("throughput", ">= 4.5x"), ("cpu_us_per_request", "<= 0.2x")],
    "tab-perf-32": [("throughput", ">= 2x"), ("p99_us", "<= 0.6x")],
    "tab-perf-1": [("p50_us", "<= 0.4x")],
    "mid-perf-32": [("throughput", ">= 2x")],
    "img-h2load": [("throughput", ">= 1.8x"), ("cpu_us_per_request", "<= 0.5x")],
    "http-h2load": [("throughput", ">= 0.9x"), ("cpu_us_per_request", "<= 1x")],
    "http-fastapi": [("throughput", ">= 3x")],
    "timeout-same": [("cpu_us_per_request", "<= 1.3x")],
    "timeout-varying": [("cpu_us_per_request", "<= 1.3x")],
    "reference": [("throughput", ">= 8x")],
    "tls": [("cpu_us_per_request", "<= 1.6x")],
    "rules": [("cpu_us_per_request", "<= 1.05x")],
    "drift": [("throughput", ">= 0.9x")],
    "guard": [("throughput", ">= 0.97x")],
    "traces": [("throughput", ">= 0.9x")],
    "shared-memory": [("throughput", ">= 2x")],
    "stream": [("throughput", ">= 4x")],
    "reload": [("p99_us", "<= 2x")],
    "reload-mid": [("p99_us", "<= 2x")],
    "mid-one-core": [("rows_per_second", ">= 0.7x")],
    "memory": [("rss_peak_mib", "<= 1.05x")],
}


def test_the_targets_are_those_agreed():
    assert {row.name: [(t.figure, str(t)) for t in row.targets] for row in rows()} == ISSUE


def test_ours_comes_first():
    sides = {row.name: [side.name for side in row.sides] for row in rows()}
    assert sides["tab-h2load"] == ["headrace", "triton"]
    assert sides["timeout-varying"] == ["with timeout", "without"]
    assert sides["http-fastapi"] == ["headrace", "fastapi"]
    assert sides["reference"] == ["native", "reference"]
    assert sides["tls"] == ["over TLS", "plain text"]
    assert sides["rules"] == ["with rules", "without"]
    assert sides["drift"] == ["watched", "not watched"]
    assert sides["guard"] == ["guarded", "not guarded"]
    assert sides["traces"] == ["traced", "not traced"]
    assert sides["mid-one-core"] == ["headrace", "bare ORT"]
    assert sides["memory"] == ["headrace"]
