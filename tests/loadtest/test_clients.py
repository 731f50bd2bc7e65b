from pathlib import Path

import pytest

from compare.clients import Load, h2load_command, parse_h2load, parse_perf_analyzer, perf_analyzer_command
from compare.figures import Unmeasured

H2LOAD = """starting benchmark...
spawning thread #0: 8 total client(s). 10000 total requests
Application protocol: h2c
progress: 100% done

finished in 715.53ms, 13975.73 req/s, 1.06MB/s
requests: 10000 total, 10000 started, 10000 done, 9998 succeeded, 2 failed, 1 errored, 1 timeout
status codes: 9998 2xx, 0 3xx, 0 4xx, 1 5xx
traffic: 776.58KB (795213) total, 29.88KB (30600) headers (space savings 96.22%), 449.22KB (460000) data
                     min         max         mean         sd        +/- sd
time for request:     1.09ms     16.88ms      8.97ms      2.00ms    70.12%
"""

PERF = """*** Measurement Settings ***
  Measurement window: 1000 msec

Request concurrency: 32
  Client:
    Request count: 36820
    Throughput: 10173.6 infer/sec
    Avg latency: 3019 usec (standard deviation 948 usec)
    p50 latency: 2876 usec
    p90 latency: 4181 usec
    p99 latency: 5806 usec
    Avg gRPC time: 3016 usec ((un)marshal request/response 1 usec + response wait 3015 usec)
  Server:
    Successful request count: 36821

Concurrency: 32, throughput: 10173.6 infer/sec, latency 3019 usec
"""


def test_h2load_rate_counts_and_octets():
    report = parse_h2load(H2LOAD)
    assert (report.throughput, report.requests, report.failed, report.octets) == (13975.73, 9998, 2, 460000)


def test_h2load_finished_in_seconds():
    assert parse_h2load(H2LOAD.replace("715.53ms", "3.00s")).throughput == 13975.73


@pytest.mark.parametrize("lost", ["finished in", "requests:", "traffic:"])
def test_h2load_without_a_result_says_what_it_printed(lost):
    text = "\n".join(line for line in H2LOAD.splitlines() if not line.startswith(lost))
    with pytest.raises(Unmeasured, match="spawning thread"):
        parse_h2load(text)


def test_perf_analyzer_takes_the_clients_figures():
    report = parse_perf_analyzer(PERF)
    assert (report.throughput, report.p50_us, report.p99_us, report.requests) == (10173.6, 2876, 5806, 36820)


def test_perf_analyzer_scientific_notation():
    assert parse_perf_analyzer(PERF.replace("10173.6", "1.02e+06")).throughput == 1_020_000


@pytest.mark.parametrize("lost", ["Request count", "Throughput", "p50", "p99"])
def test_perf_analyzer_without_a_result_says_what_it_printed(lost):
    text = "\n".join(line for line in PERF.splitlines() if lost not in line)
    with pytest.raises(Unmeasured, match="Measurement Settings"):
        parse_perf_analyzer(text)


def test_perf_analyzer_that_answered_nothing_has_no_result():
    with pytest.raises(Unmeasured):
        parse_perf_analyzer(PERF.replace("Request count: 36820", "Request count: 0"))


def test_h2load_command_sends_an_exact_number_of_messages():
    load = Load("h2load", "tab", concurrency=16, connections=8)
    command = h2load_command(load, 5000, "127.0.0.1:8001", Path("/m.grpc"))
    assert command[0] == "h2load"
    assert command[-1] == "http://127.0.0.1:8001/inference.GRPCInferenceService/ModelInfer"
    options = dict(zip(command[1:-1:2], command[2:-1:2], strict=True))
    assert options == {"-t": "1", "-c": "8", "-m": "16", "-n": "5000", "-d": "/m.grpc", "-H": "te: trailers"}
    assert "content-type: application/grpc" in command
    assert not any("grpc-timeout" in word for word in command)


def test_h2load_command_with_a_deadline_and_a_processor():
    load = Load("h2load", "tab", concurrency=1, timeout="10S", pin="1")
    command = h2load_command(load, 10, "127.0.0.1:8001", Path("/m.grpc"))
    assert command[:4] == ["taskset", "-c", "1", "h2load"]
    assert command[command.index("grpc-timeout: 10S") - 1] == "-H"


def test_h2load_command_over_http():
    load = Load("h2load", "tab", concurrency=1, connections=64, http="binary", fields=("a: b", "c: d"))
    command = h2load_command(load, 10, "127.0.0.1:8000", Path("/m.binary"))
    assert command[:2] == ["h2load", "--h1"]
    assert command[-5:] == ["-H", "a: b", "-H", "c: d", "http://127.0.0.1:8000/v2/models/tab/infer"]
    assert not any("grpc" in word for word in command)


def test_perf_analyzer_command_takes_its_window_in_milliseconds():
    load = Load("perf_analyzer", "mid", concurrency=32, batch=4, seconds=1.5)
    command = perf_analyzer_command(load, "127.0.0.1:8001", Path("/bin/perf_analyzer"))
    for option, value in {"-m": "mid", "-b": "4", "--concurrency-range": "32", "-p": "1500"}.items():
        assert command[command.index(option) + 1] == value
