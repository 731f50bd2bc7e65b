import re

import numpy as np
import pytest

from headrace.backends.base import device_of, memory_of, nodes_of
from headrace.engine.presented import present
from headrace.errors import ModelLoadError
from headrace.messages import Signature, TensorSpec
from headrace.repository.model_config import ModelConfig
from headrace.testing.backend import FakeModel

A, B = TensorSpec("a", "FP32", (-1, 4)), TensorSpec("b", "INT64", ())
Y, Z = TensorSpec("y", "FP32", (-1, 4)), TensorSpec("z", "INT64", ())
OWN = Signature((A, B), (Y, Z), 8)


@pytest.fixture
def shown(tmp_path):
    """A model as a configuration shows it."""

    def shown(signature=OWN, **config):
        model = FakeModel(signature)
        return present(model, ModelConfig(**config), tmp_path), model

    return shown


def refusal(shown, signature=OWN, **config):
    with pytest.raises(ModelLoadError) as raised:
        shown(signature, **config)
    return str(raised.value)


def described(specs):
    return [(spec.name, spec.shape) for spec in specs]


def run(presented, inputs, shapes, outputs=None):
    instance = presented.make_instance(0)
    outputs = range(len(presented.signature.outputs)) if outputs is None else outputs
    return instance.run([[array.tobytes()] for array in inputs], shapes, outputs)


def test_a_model_that_is_as_it_is_shown_is_left_alone(shown):
    for config in (
        {},
        {"inputs": {"b": {"finite": True}}},
        {"inputs": {"a": {"datatype": "FP32", "dims": (-1, 4)}, "b": {"dims": ()}}, "serve_outputs": ("y", "z")},
    ):
        presented, model = shown(**config)
        assert presented is model


def test_dimensions_may_be_narrower_without_anything_in_between(shown):
    presented, model = shown(inputs={"a": {"dims": (3, 4)}})
    assert described(presented.signature.inputs) == [("a", (3, 4)), ("b", ())]
    assert presented.make_instance(0) is model.instances[0]
    assert presented.platform == "fake"
    assert repr(presented) == "<PresentedModel of <FakeModel 1 instances, 0 runs>, alike>"


def test_inputs_in_another_order_and_some_of_the_outputs(shown):
    presented, model = shown(
        inputs={"b": {"dims": ()}, "a": {"dims": (-1, 4)}}, serve_outputs=("z",), outputs={"z": {"dims": ()}}
    )
    assert described(presented.signature.inputs) == [("b", ()), ("a", (-1, 4))]
    assert described(presented.signature.outputs) == [("z", ())]
    a, b = np.arange(8, dtype=np.float32).reshape(1, 2, 4), np.array([7])
    (z,) = run(presented, [b, a], [(1,), (1, 2, 4)])
    assert z.tolist() == [7]
    (seen,) = model.runs
    assert np.array_equal(seen.inputs[0], a)
    assert np.array_equal(seen.inputs[1], b)


def test_all_outputs_in_another_order(shown):
    presented, _ = shown(serve_outputs=("z", "y"))
    a, b = np.arange(4, dtype=np.float32).reshape(1, 1, 4), np.array([7])
    z, y = run(presented, [a, b], [(1, 1, 4), (1,)])
    assert (z.tolist(), y.tolist()) == ([7], a.tolist())
    (y,) = run(presented, [a, b], [(1, 1, 4), (1,)], outputs=[1])
    assert y.tolist() == a.tolist()


def test_reshapes(shown):
    presented, model = shown(
        inputs={"a": {"dims": (-1, 2, 2), "reshape": (-1, 4)}, "b": {"dims": (1,), "reshape": ()}},
        outputs={"y": {"dims": (1, -1, 4), "reshape": (-1, 4)}, "z": {"dims": (1, 1), "reshape": ()}},
    )
    assert described(presented.signature.inputs) == [("a", (-1, 2, 2)), ("b", (1,))]
    assert described(presented.signature.outputs) == [("y", (1, -1, 4)), ("z", (1, 1))]
    a, b = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2), np.array([[7], [8]])
    y, z = run(presented, [a, b], [a.shape, b.shape])
    assert [array.shape for array in model.runs[0].inputs] == [(2, 3, 4), (2,)]
    assert (y.shape, y.ravel().tolist()) == ((2, 1, 3, 4), a.ravel().tolist())
    assert z.tolist() == [[[7]], [[8]]]


def test_forms_are_told_as_the_model_knows_them(shown):
    presented, model = shown(inputs={"b": {}, "a": {"dims": (-1, 2, 2), "reshape": (-1, 4)}})
    presented.take_forms([[(), (3, 2, 2)]])  # which makes no use of it
    told = []
    model.take_forms = told.extend
    presented.take_forms([[(), (3, 2, 2)], [(), (1, 2, 2)]])
    assert told == [[(3, 4), ()], [(1, 4), ()]]


def test_without_a_batch_dimension(shown):
    signature = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("n", "FP32", ()),), 0)
    presented, model = shown(signature, inputs={"x": {"dims": (4, 4)}}, outputs={"n": {"dims": (1,)}})
    assert described(presented.signature.outputs) == [("n", (1,))]
    model.compute = lambda inputs: [inputs[0].sum()]
    (n,) = run(presented, [np.ones((4, 4), np.float32)], [(4, 4)])
    assert n.tolist() == [16]


def test_an_output_that_is_not_as_declared_is_not_made_to_fit(shown):
    presented, model = shown(outputs={"y": {"dims": (-1, 2, 2), "reshape": (-1, 4)}})
    model.compute = lambda inputs: [inputs[0].reshape(1, 4, 1), inputs[1]]
    a, b = np.arange(4, dtype=np.float32).reshape(1, 1, 4), np.array([7])
    with pytest.raises(ValueError, match=re.escape("output 'y' has dimensions [4, 1], expected [-1, 4]")):
        run(presented, [a, b], [(1, 1, 4), (1,)])


def test_what_has_no_dimensions_is_shown_as_triton_shows_it_if_so_asked(shown):
    presented, _ = shown(unit_dims=True)
    assert described(presented.signature.inputs) == [("a", (-1, 4)), ("b", (1,))]
    assert described(presented.signature.outputs) == [("y", (-1, 4)), ("z", (1,))]
    presented, _ = shown(unit_dims=True, inputs={"b": {"dims": ()}})
    assert presented.signature.inputs[1].shape == ()


def test_labels(shown, tmp_path):
    (tmp_path / "l.txt").write_text("cat\ndog\n")
    presented, model = shown(outputs={"y": {"labels": "l.txt"}})
    assert [spec.labels for spec in presented.signature.outputs] == [("cat", "dog"), ()]
    assert presented.make_instance(0) is model.instances[0]
    assert "cannot be read" in refusal(shown, outputs={"y": {"labels": "absent.txt"}})


def test_closing(shown):
    presented, model = shown(serve_outputs=("z", "y"))
    presented.make_instance(0).close()
    assert model.instances[0].closed


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"inputs": {"q": {"finite": True}}},
            "the configuration speaks of input ['q'], but the inputs of the model are ['a', 'b']",
        ),
        (
            {"outputs": {"q": {"dims": (1,)}}},
            "the configuration speaks of output ['q'], but the outputs of the model are ['y', 'z']",
        ),
        ({"serve_outputs": ("y", "q")}, "serve_outputs names ['q'], but the outputs of the model are ['y', 'z']"),
        (
            {"inputs": {"a": {"datatype": "FP64"}}},
            "the configuration expects datatype FP64 for input 'a', the model provides FP32",
        ),
        (
            {"outputs": {"y": {"dims": (-1, 5)}}},
            "the configuration says [-1, -1, 5] of output 'y' (the first is the batch's), the model has [-1, -1, 4]",
        ),
        (
            {"inputs": {"a": {"dims": (4,)}}},
            "the configuration says [-1, 4] of input 'a' (the first is the batch's), the model has [-1, -1, 4]",
        ),
        (
            {"inputs": {"a": {"dims": (3, -1)}}},
            "the configuration says [-1, 3, -1] of input 'a' (the first is the batch's), the model has [-1, -1, 4]",
        ),
        ({"inputs": {"b": {"dims": (1,)}}}, "the configuration says [-1, 1] of input 'b'"),
        ({"batching": {"preferred_sizes": (9,)}}, "preferred batch size 9 is above the largest batch, 8"),
    ],
)
def test_what_contradicts_the_model(shown, config, message):
    assert refusal(shown, **config).startswith(message)


def test_without_batching_the_message_speaks_of_no_batch(shown):
    signature = Signature((TensorSpec("x", "FP32", (2, 3)),), (), 0)
    assert refusal(shown, signature, inputs={"x": {"dims": (3, 2)}}).startswith(
        "the configuration says [3, 2] of input 'x', the model has [2, 3]"
    )


def test_the_device_of_an_instance_is_that_of_the_one_behind(shown):
    presented, model = shown(serve_outputs=("z",))
    assert device_of(presented.make_instance(0)) is None
    model.device = 1
    assert presented.make_instance(1) is not model.instances[1]
    assert device_of(presented.make_instance(1)) == 1


def test_what_a_model_takes_is_that_of_the_model_behind_it(tmp_path):
    model = FakeModel()
    config = ModelConfig(inputs={"x": {"dims": (1, 2), "reshape": (2,)}})
    shown = present(model, config, tmp_path)
    assert shown is not model
    assert (dict(memory_of(shown)), dict(nodes_of(shown))) == ({}, {})
    model.memory, model.nodes = {"cuda:0": 5}, {"CPUExecutionProvider": 1}
    assert (memory_of(shown), nodes_of(shown)) == ({"cuda:0": 5}, {"CPUExecutionProvider": 1})
