"""A repository made for Triton, served as it is, to Triton's client."""

import numpy as np
import pytest
import tritonclient.grpc as triton
from e2e.calls import SECONDS, floats, statistics, tensor
from e2e.conftest import shared
from e2e.server_process import Server
from e2e.test_load_generators import MISSING, PEERS, PERF_ANALYZER, run
from e2e.triton_models import write_triton_repository
from tritonclient.grpc import model_config_pb2 as mc
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from compare.clients import Load, parse_perf_analyzer, perf_analyzer_command
from headrace.cli import main


@pytest.fixture(scope="module")
def triton_repository(tmp_path_factory):
    root = tmp_path_factory.mktemp("triton")
    write_triton_repository(root)
    return root


@pytest.fixture(scope="module")
def server(transport, triton_repository):
    yield from shared(triton_repository, transport)


def infer(client, model, *inputs, **options):
    return client.infer(model, list(inputs), client_timeout=SECONDS, **options)


def described(tensors):
    return [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in tensors]


def metadata(client, model):
    found = client.get_model_metadata(model, client_timeout=SECONDS)
    return described(found.inputs), described(found.outputs)


def config_of(client, model):
    return client.get_model_config(model, client_timeout=SECONDS).config


def test_an_empty_reshape(client):
    assert metadata(client, "reshaped") == ([("x", "FP32", [-1, 1])], [("y", "FP32", [-1, 1, 1])])
    assert infer(client, "reshaped", tensor("x", floats(1, 2, 3))).as_numpy("y").tolist() == [[[2]], [[4]], [[6]]]
    config = config_of(client, "reshaped")
    assert config.input[0].HasField("reshape")
    assert (list(config.input[0].dims), list(config.input[0].reshape.shape)) == ([1], [])
    rows = np.arange(19, dtype=np.float32).reshape(19, 1)  # more than a batch holds
    assert infer(client, "reshaped", tensor("x", rows)).as_numpy("y").ravel().tolist() == (2 * rows).ravel().tolist()
    with pytest.raises(
        InferenceServerException, match=r"unexpected shape for input 'x' .* Expected \[-1,1\], got \[3\]"
    ):
        infer(client, "reshaped", tensor("x", np.zeros(3, np.float32)))


def test_a_reshape_with_dimensions_of_any_size(client):
    assert metadata(client, "grid") == ([("x", "FP32", [-1, 2, -1, 2])], [("y", "FP32", [-1, 1, 2, -1, 2])])
    for width in (1, 5):
        x = np.arange(3 * 2 * width * 2, dtype=np.float32).reshape(3, 2, width, 2)
        y = infer(client, "grid", tensor("x", x)).as_numpy("y")
        assert np.array_equal(y, 3 * x[:, None])
    config = config_of(client, "grid")
    assert config.input[0].format == mc.ModelInput.FORMAT_NCHW
    batching = config.dynamic_batching
    assert (list(batching.preferred_batch_size), batching.max_queue_delay_microseconds) == ([4], 100)


def test_labels_groups_and_levels_are_told(client):
    config = config_of(client, "labelled")
    assert (config.name, config.platform, config.backend) == ("labelled", "onnxruntime_onnx", "onnxruntime")
    assert config.output[0].label_filename == "labels.txt"
    assert [(group.name, group.count) for group in config.instance_group] == [("labelled_0", 2)]
    assert list(config.dynamic_batching.preferred_batch_size) == [4]
    assert config.dynamic_batching.priority_queue_policy[2].default_timeout_microseconds == 1000
    for priority in (1, 2):
        assert infer(client, "labelled", tensor("x", floats((1, 2, 3))), priority=priority).as_numpy("y") is not None


def test_labels_name_the_classes(client):
    best = triton.InferRequestedOutput("y", class_count=2)
    reply = infer(client, "labelled", tensor("x", floats((0, 5, 2), (3, 1, 0))), outputs=[best])
    assert reply.as_numpy("y").tolist() == [
        [b"5.000000:1:middle", b"2.000000:2:right"],
        [b"3.000000:0:left", b"1.000000:1:middle"],
    ]


def test_what_the_file_does_not_say_is_completed(client):
    assert metadata(client, "completed") == ([("x", "FP32", [-1, 4])], [("y", "FP32", [-1, 4])])
    config = config_of(client, "completed")
    assert (config.name, config.backend, config.max_batch_size) == ("completed", "onnxruntime", 64)
    assert [(i.name, i.data_type, list(i.dims)) for i in config.input] == [("x", mc.TYPE_FP32, [4])]
    assert config.HasField("dynamic_batching")
    assert metadata(client, "scalars") == (
        [("x", "FP32", [-1, 1])],
        [("y", "FP32", [-1, 1]), ("n", "INT64", [-1, 1])],
    )
    assert infer(client, "scalars", tensor("x", floats(4, 5))).as_numpy("n").tolist() == [[1], [1]]


def test_inputs_in_the_files_order_and_one_of_two_outputs(client):
    assert metadata(client, "chosen") == (
        [("b", "INT32", [-1, 3]), ("a", "FP32", [-1, 2])],
        [("twice", "INT32", [-1, 3])],
    )
    b = np.array([[1, 2, 3]], np.int32)
    reply = infer(client, "chosen", tensor("a", floats((1, 2))), tensor("b", b))
    assert reply.as_numpy("twice").tolist() == [[2, 4, 6]]
    with pytest.raises(InferenceServerException, match="unexpected inference output 'sum'"):
        infer(
            client, "chosen", tensor("a", floats((1, 2))), tensor("b", b), outputs=[triton.InferRequestedOutput("sum")]
        )
    config = config_of(client, "chosen")
    assert config.default_model_filename == "net.onnx"
    assert config.WhichOneof("scheduling_choice") is None
    assert config.parameters["intra_op_thread_count"].string_value == "2"
    assert config.optimization.cuda.graphs


def test_models_without_batching_and_versions(client):
    assert metadata(client, "unbatched") == ([("x", "BYTES", [-1, 2])], [("y", "BYTES", [-1, 2])])
    assert list(client.get_model_metadata("unbatched", client_timeout=SECONDS).versions) == ["1", "3"]
    text = np.array([["a", "b"], ["c", ""]], dtype=object)
    reply = infer(client, "unbatched", tensor("x", text, "BYTES"), model_version="1")
    assert reply.as_numpy("y").tolist() == [[b"a", b"b"], [b"c", b""]]


def test_an_ensemble(client):
    assert metadata(client, "chain") == ([("given", "FP32", [-1, 1])], [("six", "FP32", [-1, 1, 1])])
    reply = infer(client, "chain", tensor("given", floats(1, 2, 3)))
    assert reply.as_numpy("six").tolist() == [[[4]], [[8]], [[12]]]
    config = config_of(client, "chain")
    assert (config.platform, config.backend) == ("ensemble", "")
    assert [step.model_name for step in config.ensemble_scheduling.step] == ["reshaped", "reshaped_too"]


def test_warm_up_leaves_no_trace_in_the_statistics(client, server):
    assert client.is_model_ready("warmed", client_timeout=SECONDS)
    assert infer(client, "warmed", tensor("index", np.array([[9]]))).as_numpy("value").tolist() == [[90]]
    assert config_of(client, "warmed").model_warmup[0].inputs["index"].input_data_file == "nine"


def test_what_cannot_be_served_says_why_in_the_index(client, server):
    index = {model.name: model for model in client.get_model_repository_index(client_timeout=SECONDS).models}
    reasons = {name: model.reason for name, model in index.items() if model.state == "UNAVAILABLE"}
    assert set(reasons) == {"for_gpus", "mistyped", "contradicting", "sequences"}
    assert "model.plan is a plan, built elsewhere" in reasons["for_gpus"]
    assert 'config.pbtxt:2:1: Message type "inference.ModelConfig" has no field' in reasons["mistyped"]
    assert "says [-1, 5] of input 'x' (the first is the batch's), the model has [-1, 4]" in reasons["contradicting"]
    assert "sequence_batching.iterative_sequence: not supported" in reasons["sequences"]


def test_plans_are_for_the_operator_to_allow(tmp_path):
    """Then it is for TensorRT to say what is wrong: that it is not there, or that this is no plan."""
    (tmp_path / "for_gpus" / "1").mkdir(parents=True)
    (tmp_path / "for_gpus" / "1" / "model.plan").write_bytes(b"a plan")
    (tmp_path / "for_gpus" / "config.pbtxt").write_text('platform: "tensorrt_plan"')
    with (
        Server(tmp_path, "--tensorrt-allow-plan-files", "true") as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        (model,) = client.get_model_repository_index(client_timeout=SECONDS).models
    assert model.state == "UNAVAILABLE"
    assert "TensorRT" in model.reason or "device 0 cannot be used" in model.reason
    assert "built elsewhere" not in model.reason


def test_what_has_no_effect_is_in_the_log(server):
    server.await_log(lambda line: "model chosen version 1: config.pbtxt: optimization.cuda: ignored" in line)
    server.await_log(lambda line: "model chosen version 1: config.pbtxt: dynamic_batching: not given" in line)


@pytest.mark.skipif(not PERF_ANALYZER.exists(), reason=f"no perf_analyzer: {MISSING}")
def test_perf_analyzer(server, stub):
    before = statistics(stub, "reshaped")
    load = Load("perf_analyzer", "reshaped", 4, batch=2, seconds=1)
    libraries = sorted((PEERS / "lib").glob("python3*/site-packages/nvidia/cuda_runtime/lib"))
    text = run(
        perf_analyzer_command(load, server.address, PERF_ANALYZER), LD_LIBRARY_PATH=":".join(map(str, libraries))
    )
    report = parse_perf_analyzer(text)
    success = statistics(stub, "reshaped").inference_stats.success.count - before.inference_stats.success.count
    assert 100 < report.requests <= success


def test_converted_it_serves_the_same(transport, tmp_path, capsys):
    write_triton_repository(tmp_path)
    assert main(["models", "convert", str(tmp_path), "--write"]) == 1
    assert {path.parent.name for path in tmp_path.glob("*/config.pbtxt")} - {
        path.parent.name for path in tmp_path.glob("*/model.toml")
    } == {"mistyped", "sequences"}
    with Server(tmp_path, "--transport", transport) as server, triton.InferenceServerClient(server.address) as client:
        test_an_empty_reshape(client)
        test_a_reshape_with_dimensions_of_any_size(client)
        test_models_without_batching_and_versions(client)
        test_an_ensemble(client)
        test_warm_up_leaves_no_trace_in_the_statistics(client, server)
        assert metadata(client, "scalars")[0] == [("x", "FP32", [-1, 1])]
        stub = service_pb2_grpc.GRPCInferenceServiceStub(client._channel)
        assert statistics(stub, "warmed").execution_count == 1
        server.await_log(lambda line: "config.pbtxt is not read: there is a model.toml" in line)
        assert server.stop() == 0
