"""An ensemble, asked as a model is asked."""

import numpy as np
import pytest
import tritonclient.grpc as triton
from e2e.calls import SECONDS, request, statistics, tensor
from e2e.test_load_generators import MISSING, PERF_ANALYZER, run_perf_analyzer
from tritonclient.utils import InferenceServerException


def tensors(rows, start=0):
    numbers = np.arange(start, start + 2 * rows, dtype=np.float32).reshape(rows, 2)
    others = np.arange(3 * rows, dtype=np.int32).reshape(rows, 3)
    aside = np.full((rows, 4), start, np.float32)
    return numbers, others, aside


def inputs(numbers, others, aside):
    return [tensor("numbers", numbers), tensor("others", others), tensor("aside", aside)]


@pytest.mark.parametrize("rows", [1, 5, 100])
def test_it_answers_like_a_model(client, rows):
    numbers, others, aside = tensors(rows)
    result = client.infer("ensemble", inputs(numbers, others, aside), request_id="seven", client_timeout=SECONDS)
    assert result.get_response().id == "seven"
    np.testing.assert_array_equal(result.as_numpy("twice"), 2 * others)
    np.testing.assert_array_equal(result.as_numpy("triple"), 3 * numbers.sum(1, keepdims=True))
    np.testing.assert_array_equal(result.as_numpy("aside_again"), aside)


def test_its_metadata_and_configuration(client):
    metadata = client.get_model_metadata("ensemble", client_timeout=SECONDS)
    assert metadata.platform == "ensemble"
    assert {tensor.name: list(tensor.shape) for tensor in metadata.inputs} == {
        "numbers": [-1, 2],
        "others": [-1, 3],
        "aside": [-1, 4],
    }
    config = client.get_model_config("ensemble", client_timeout=SECONDS).config
    assert (config.platform, config.max_batch_size, len(config.instance_group)) == ("ensemble", 64, 0)
    assert [step.model_name for step in config.ensemble_scheduling.step] == ["pair", "free", "echo_fp32"]
    assert dict(config.ensemble_scheduling.step[1].input_map) == {"x": "sum"}


def test_its_statistics_and_those_of_its_models(client, stub):
    names = ("ensemble", "pair", "free", "echo_fp32")
    before = {name: statistics(stub, name).inference_stats.success.count for name in names}
    client.infer("ensemble", inputs(*tensors(2)), outputs=[triton.InferRequestedOutput("triple")])
    after = {name: statistics(stub, name).inference_stats.success.count for name in names}
    assert {name: after[name] - before[name] for name in names} == {"ensemble": 1, "pair": 1, "free": 1, "echo_fp32": 0}


def test_what_is_wrong_is_told_as_by_a_model(client):
    numbers, others, aside = tensors(2)
    with pytest.raises(InferenceServerException, match="unexpected shape for input 'aside' for model 'ensemble'"):
        client.infer("ensemble", inputs(numbers, others, aside[:, :3].copy()), client_timeout=SECONDS)
    with pytest.raises(InferenceServerException, match="missing required input"):
        client.infer("ensemble", inputs(numbers, others, aside)[:2], client_timeout=SECONDS)


def test_many_at_a_time_do_not_mix(stub):
    calls = []
    for number in range(200):
        numbers, others, aside = tensors(1 + number % 3, number)
        message = request("ensemble", numbers=numbers, others=others, aside=aside, outputs=["aside_again"])
        calls.append((aside, stub.ModelInfer.future(message, timeout=SECONDS)))
    for aside, call in calls:
        got = np.frombuffer(call.result().raw_output_contents[0], np.float32).reshape(aside.shape)
        np.testing.assert_array_equal(got, aside)


@pytest.mark.skipif(not PERF_ANALYZER.exists(), reason=f"no perf_analyzer: {MISSING}")
def test_perf_analyzer(server):
    report = run_perf_analyzer(
        [PERF_ANALYZER, "-m", "ensemble", "-u", server.address, "-i", "grpc", "--concurrency-range", 4,
         "--measurement-mode", "count_windows", "--measurement-request-count", 100, "-s", 90]
    )  # fmt: skip
    assert "Throughput:" in report
    assert "Composing models:" in report
