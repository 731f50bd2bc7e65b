"""perf_analyzer over HTTP, with tensors in shared memory; over gRPC it is in tests/e2e."""

import pytest
import tritonclient.http as triton
from e2e.rest_calls import address
from e2e.test_load_generators import PERF_ANALYZER, run_perf_analyzer
from interop.peers import needs

from compare.clients import parse_perf_analyzer

pytestmark = needs(PERF_ANALYZER)


@pytest.mark.parametrize("memory", ["none", "system"])
@pytest.mark.parametrize("mode", ["--sync", "--async"])
def test_http(server, memory, mode):
    """It reads the statistics over HTTP, and reports nothing where these do not agree with what it has sent."""

    def counts():
        (one,) = client.get_inference_statistics("pair")["model_stats"]
        return one["inference_stats"]["success"]["count"], one["inference_stats"]["fail"]["count"]

    with triton.InferenceServerClient(address(server)) as client:
        before = counts()
        text = run_perf_analyzer(
            [PERF_ANALYZER, "-m", "pair", "-i", "http", "-u", address(server), "--concurrency-range", 4, mode,
             "--shared-memory", memory, "--output-shared-memory-size", 64, "-p", 500, "-r", 3, "-s", 1000]
        )  # fmt: skip
        success, failures = (now - then for now, then in zip(counts(), before, strict=True))
        assert client.get_system_shared_memory_status() == []  # it tidies up
    assert 50 < parse_perf_analyzer(text).requests <= success
    assert failures == 0
    assert "Server: " in text
