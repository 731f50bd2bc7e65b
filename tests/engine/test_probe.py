"""What a backend has to compute before it serves, beside ONNX Runtime on the CPU."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from headrace.backends import registry
from headrace.engine.policies import make_buckets
from headrace.engine.probe import Rejected, check_alike, computes_in_integers, make_probe
from headrace.engine.processed import process, ragged_inputs
from headrace.engine.warmup import read_samples
from headrace.messages import Signature, TensorSpec
from headrace.repository.discovery import Found
from headrace.repository.model_config import ModelConfig
from headrace.testing.backend import FakeBackend, FakeModel

FP32 = np.float32
PAIR = Signature((TensorSpec("x", "FP32", (2,)),), (TensorSpec("y", "FP32", (2,)),), 8)


def onnx_bytes(nodes, inputs, outputs, constants=()):
    weights = [numpy_helper.from_array(value, name) for name, value in constants]
    graph = helper.make_graph(nodes, "probe", inputs, outputs, weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 9
    return made.SerializeToString()


def value(name, *dims, datatype=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, datatype, dims)


DOUBLE = onnx_bytes(
    [helper.make_node("Mul", ["x", "two"], ["y"])],
    [value("x", "N", 2)],
    [value("y", "N", 2)],
    [("two", np.array(2, FP32))],
)


@pytest.fixture
def found(tmp_path):
    """A version of a model whose file is `DOUBLE`, or what is given."""

    def make(file=DOUBLE, **config):
        directory = tmp_path / "m" / "1"
        directory.mkdir(parents=True, exist_ok=True)
        if file is not None:
            (directory / "model.onnx").write_bytes(file)
        return Found("m", 1, directory, ModelConfig(**{"backend": ("fast", "onnxruntime-cpu"), **config}))

    return make


def probe_of(found, signature=PAIR, backend="fast"):
    config = found.config
    samples = read_samples(config, signature, found.path.parent)
    return make_probe(found, backend, signature, samples, make_buckets(config, signature))


def check(probe, compute, signature=PAIR):
    """What is wrong with a backend that computes so; and the batches that it was given."""
    model = FakeModel(signature, compute)
    try:
        probe.check(model.make_instance(0))
    except Rejected as rejection:
        return rejection.reason, str(rejection)
    return model.runs


def test_a_backend_that_computes_the_same_passes(found):
    probe = probe_of(found())
    assert repr(probe) == "<Probe of 1 batches, to be compared>"
    (run,) = check(probe, lambda inputs: [inputs[0] * FP32(2.001)])  # TF32 is no reason
    assert run.rows == 3
    assert len(np.unique(run.inputs[0])) == 6, "that rows are mixed up would not show"


def test_an_input_without_elements_stays_so(found):
    signature = Signature((*PAIR.inputs, TensorSpec("past", "FP32", (0, 4))), PAIR.outputs, 8)
    file = onnx_bytes(
        [helper.make_node("Mul", ["x", "two"], ["y"])],
        [value("x", "N", 2), value("past", "N", 0, 4)],
        [value("y", "N", 2)],
        [("two", np.array(2, FP32))],
    )
    (run,) = check(probe_of(found(file), signature), lambda inputs: [inputs[0] * 2], signature)
    assert [tensor.shape for tensor in run.inputs] == [(3, 2), (3, 0, 4)]


def test_it_is_always_the_same_batch(found):
    first, second = (check(probe_of(found()), lambda inputs: [inputs[0] * 2])[0].inputs[0] for _ in range(2))
    assert first.tolist() == second.tolist()


@pytest.mark.parametrize(
    ("compute", "reason", "message"),
    [
        (lambda inputs: [inputs[0] * 3], "probe_differs", "a probe on random numbers, compared with onnxruntime-cpu: "),
        (lambda inputs: [inputs[0][::-1] * 2], "probe_differs", "output 'y', element ["),
        (lambda inputs: [inputs[0] * np.nan], "probe_differs", "nan, expected"),
        (lambda inputs: [inputs[0][:2] * 2], "probe_differs", "output 'y' has shape [2, 2], expected [3, 2]"),
        (lambda inputs: 1 // 0, "probe_failed", "a probe on random numbers failed: integer division"),
    ],
    ids=["wrong", "rows mixed up", "nan", "shape", "raises"],
)
def test_one_that_does_not_is_rejected(found, compute, reason, message):
    found_reason, found_message = check(probe_of(found()), compute)
    assert found_reason == reason
    assert message in found_message


def test_how_much_is_too_much_can_be_said(found):
    strict = {"tolerance": {"FP32": {"relative": 1e-4}}}
    off = 2.001
    assert check(probe_of(found(fallback=strict)), lambda inputs: [inputs[0] * FP32(off)])[0] == "probe_differs"
    loose = {"tolerance": {"FP32": {"absolute": 10.0}}}
    assert len(check(probe_of(found(fallback=loose)), lambda inputs: [inputs[0] * 3])) == 1


def test_the_inputs_are_within_the_limits_of_the_model(found):
    (run,) = check(
        probe_of(found(inputs={"x": {"min": 5.0, "max": 5.5, "finite": True}})), lambda inputs: [inputs[0] * 2]
    )
    assert run.inputs[0].min() >= 5
    assert run.inputs[0].max() <= 5.5


def test_limits_may_be_those_of_each_feature(found):
    limits = {"min": [5.0, 0.0], "max": [5.5, 0.25]}
    (run,) = check(probe_of(found(inputs={"x": limits})), lambda inputs: [inputs[0] * 2])
    first, second = run.inputs[0].T
    assert ((first >= 5) & (first <= 5.5)).all()
    assert ((second >= 0) & (second <= 0.25)).all()
    assert len(set(first.tolist())) > 1
    (run,) = check(probe_of(found(inputs={"x": {"max": [5.0, -5.0]}})), lambda inputs: [inputs[0] * 2])
    assert run.inputs[0][:, 1].max() <= -5


def test_warm_up_requests_are_the_probe_where_there_are_some(found, tmp_path):
    made = found(warmup_data=({"name": "real", "rows": 2, "inputs": {"x": {"file": "row.bin"}}},))
    (tmp_path / "m" / "warmup").mkdir()
    (tmp_path / "m" / "warmup" / "row.bin").write_bytes(np.array([3, 4], FP32).tobytes())
    (run,) = check(probe_of(made), lambda inputs: [inputs[0] * 2])
    assert run.inputs[0].tolist() == [[3, 4], [3, 4]]
    assert "a probe on warm-up request 'real'" in check(probe_of(made), lambda inputs: [inputs[0]])[1]


def test_each_warm_up_request_is_compared_with_its_own_results(found):
    data = [{"name": name, "inputs": {"x": {"fill": fill}}} for name, fill in (("a", "random"), ("b", "zeros"))]
    probe = probe_of(found(warmup_data=data))
    assert repr(probe) == "<Probe of 2 batches, to be compared>"
    assert [run.inputs[0].any() for run in check(probe, lambda inputs: [inputs[0] * 2])] == [True, False]
    assert check(probe, lambda inputs: [inputs[0] * 0])[0] == "probe_differs"


def test_what_was_opened_for_the_comparison_is_closed(found, monkeypatch):
    monkeypatch.setitem(registry.BACKENDS, registry.REFERENCE, "headrace.testing.backend:FakeBackend")
    monkeypatch.setattr(FakeBackend, "loaded", [])
    assert len(check(probe_of(found()), lambda inputs: inputs)) == 1
    assert [instance.closed for model in FakeBackend.loaded for instance in model.instances] == [True]


def test_with_buckets_it_fills_one(found):
    file = onnx_bytes(
        [helper.make_node("Mul", ["x", "two"], ["y"])],
        [value("x", "N", "T")],
        [value("y", "N", "T")],
        [("two", np.array(2, FP32))],
    )
    signature = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),), 8)
    made = found(file, buckets={"length": {"sizes": (4, 16), "inputs": {"x": 1}, "outputs": {"y": 1}}})
    (run,) = check(probe_of(made, signature), lambda inputs: [inputs[0] * 2], signature)
    assert run.inputs[0].shape[1] in (4, 16)
    assert np.count_nonzero(run.inputs[0]) > 1


def test_images_are_compared_behind_their_preprocessing(found):
    file = onnx_bytes(
        [helper.make_node("Identity", ["x"], ["y"])], [value("x", "N", 3, 4, 4)], [value("y", "N", 3, 4, 4)]
    )
    made = found(file, preprocess={"x": {"kind": "image"}})
    signature = Signature((TensorSpec("x", "FP32", (3, 4, 4)),), (TensorSpec("y", "FP32", (3, 4, 4)),), 8)

    def outcome(compute):
        model = process(FakeModel(signature, compute), made.config)
        buckets = make_buckets(made.config, model.signature, ragged_inputs(model))
        probe = make_probe(made, "fast", model.signature, [], buckets)
        assert repr(probe) == "<Probe of 1 batches, to be compared>"
        probe.check(model.make_instance(0))

    seen = []
    outcome(lambda inputs: seen.append(inputs[0]) or inputs)
    assert seen[0].std() > 0.1, "an image of one colour says nothing"
    with pytest.raises(Rejected, match="compared with onnxruntime-cpu"):
        outcome(lambda inputs: [inputs[0][:, ::-1]])


def test_the_reference_itself_is_run_and_not_compared(found):
    probe = probe_of(found(backend=("onnxruntime-cpu",)), backend="onnxruntime-cpu")
    assert repr(probe) == "<Probe of 1 batches, to be run>"
    assert len(check(probe, lambda inputs: [inputs[0] * 3])) == 1
    assert check(probe, lambda inputs: 1 // 0)[0] == "probe_failed"


def test_a_model_that_the_reference_does_not_have_is_run_and_not_compared(found):
    assert repr(probe_of(found(None))) == "<Probe of 1 batches, to be run>"


def test_a_file_that_the_reference_cannot_load_is_said_so(found, caplog):
    assert repr(probe_of(found(b"not ONNX"))) == "<Probe of 1 batches, to be run>"
    assert "model m cannot be compared with onnxruntime-cpu: " in caplog.text


def test_a_reference_that_fails_to_run_is_said_so(found, caplog):
    file = onnx_bytes(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [value("x", "N", 2)],
        [value("y", "N", 2)],
        [("shape", np.array([7, 2]))],
    )
    assert repr(probe_of(found(file))) == "<Probe of 1 batches, to be run>"
    assert "model m cannot be compared with onnxruntime-cpu: " in caplog.text


def test_a_probe_that_need_not_run_is_no_reason(found, caplog):
    signature = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),), 8)
    probe = probe_of(found(None), signature)
    assert len(check(probe, lambda inputs: 1 // 0, signature)) == 1, "it was tried"
    assert "a probe on random numbers is without result" in caplog.text


def test_the_reference_has_the_options_that_say_what_the_model_is(found, tmp_path):
    made = found(None, backend=("fast",), backend_options={"fast": {"file": "other.onnx", "streams": 3}})
    (made.path / "other.onnx").write_bytes(DOUBLE)
    assert repr(probe_of(made)) == "<Probe of 1 batches, to be compared>"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Signature(PAIR.inputs, PAIR.outputs, 4), "fast takes batches of 4 rows, expected 8"),
        (Signature(PAIR.inputs, PAIR.outputs, 0), "fast takes batches of 0 rows, expected 8"),
        (Signature(PAIR.inputs * 2, PAIR.outputs, 8), "fast has inputs 'x' FP32 [2], 'x' FP32 [2], expected"),
        (Signature(PAIR.inputs, (TensorSpec("z", "FP32", (2,)),), 8), "fast has outputs 'z' FP32 [2], expected 'y'"),
        (Signature(PAIR.inputs, (TensorSpec("y", "FP16", (2,)),), 8), "fast has outputs 'y' FP16 [2], expected 'y'"),
        (Signature(PAIR.inputs, (TensorSpec("y", "FP32", (3,)),), 8), "fast has outputs 'y' FP32 [3], expected 'y'"),
        (Signature(PAIR.inputs, (TensorSpec("y", "FP32", (2, 1)),), 8), "fast has outputs 'y' FP32 [2, 1]"),
    ],
)
def test_other_signatures_do_not_stand_in(other, message):
    with pytest.raises(Rejected, match="^" + message.replace("[", r"\[")) as raised:
        check_alike(PAIR, other, "fast")
    assert raised.value.reason == "signature"


def test_larger_batches_and_wider_dimensions_do():
    wide = (TensorSpec("x", "FP32", (-1,)),)
    check_alike(PAIR, Signature(wide, PAIR.outputs, 16), "fast")


def test_a_quantized_model_is_told_by_its_operators(tmp_path, found):
    file = tmp_path / "q.onnx"
    file.write_bytes(onnx_bytes([helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])], [], []))
    assert computes_in_integers(file)
    file.write_bytes(DOUBLE)
    assert not computes_in_integers(file)


def test_a_quantized_model_may_be_less_exact(found):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["y"]),
    ]
    constants = [("step", np.array(0.01, FP32)), ("zero", np.array(0, np.int8))]
    file = onnx_bytes(nodes, [value("x", "N", 2)], [value("y", "N", 2)], constants)
    assert len(check(probe_of(found(file)), lambda inputs: [inputs[0] + FP32(0.05)])) == 1
    assert check(probe_of(found(file)), lambda inputs: [inputs[0] + FP32(0.2)])[0] == "probe_differs"
