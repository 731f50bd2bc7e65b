"""CUDA graphs of models whose dimensions vary, but among a few that are told: those of their buckets."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from backends.onnxruntime_gpu.test_instances import instances
from onnx import TensorProto, helper

from headrace.errors import ModelLoadError

FORMS = [[(4,)], [(2,)]]


def run(instance, *shape, outputs=(0, 1)):
    """The given and the results for a batch of that shape."""
    x = np.random.default_rng(shape[1]).integers(-99, 99, shape).astype(np.float32)
    return x, [found.copy() for found in instance.run([[row.tobytes() for row in x]], [shape], outputs)]


def right(instance, *shape):
    x, (y, z) = run(instance, *shape)
    return np.array_equal(y, -x) and np.array_equal(z, x.sum(1))


@pytest.fixture
def told(load):
    """A model that has been told of FORMS."""

    def told(path, **options):
        model = load(path, **{"cuda_graphs": True, "batch_buckets": [2, 8]} | options)
        model.take_forms(FORMS)
        return model

    return told


def test_a_graph_for_each_form_and_bucket_of_each_batch_in_flight(told, varying, gpu):
    with instances(told(varying)) as (first, second):
        (session,) = gpu.opened()
        assert session.recorded == len(gpu.devices[0].graphs) == 2 * 2 * 2
        gpu.runs.clear()
        for rows in range(1, 9):
            for length in (4, 2):
                assert right(first, rows, length)
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(right, second, 3, 2).result()
        assert gpu.runs == {"launched": 17}
        assert run(first, 3, 4, outputs=(1,))[1][0].shape == (3,)
    assert not any(graph.open for graph in gpu.devices[0].graphs)


def test_outputs_are_found_once(told, varying, gpu):
    with instances(told(varying, in_flight=1), count=3):
        assert gpu.runs["free"] == 2 * len(FORMS), "of zeros and of ones, of the longest batch of each form"


def test_dimensions_that_nobody_told_of(told, varying):
    with instances(told(varying)) as (first, _):
        for shape, given in (((1, 3), [1, 3]), ((9, 2), None)):
            why = f"'x' {given}, expected [1, 4] or [1, 2]" if given else "batch of 9 rows, at most 8 fit"
            with pytest.raises(ValueError, match=r"shapes|batch") as caught:
                run(first, *shape)
            assert why in str(caught.value)
        assert right(first, 1, 4)


def test_they_matter_where_graphs_are_asked_for(told, varying, gpu):
    with instances(told(varying, cuda_graphs="auto")) as (first, _):
        assert right(first, 1, 3)
        assert not gpu.devices[0].graphs


def test_fixed_dimensions_have_one_form(told, affine, gpu):
    with instances(told(affine())):
        (session,) = gpu.opened()
        assert session.recorded == 2 * 2
        assert not gpu.runs["free"]


def test_a_model_without_batches(load, write, gpu):
    path = write(
        [helper.make_node("Neg", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, ("L", 2))],
        [("y", TensorProto.FLOAT, ("L", 2))],
    )
    model = load(path, max_batch=0, cuda_graphs=True)
    model.take_forms([[(3, 2)], [(1, 2)]])
    with instances(model) as (first, _):
        for length in (1, 3):
            x = np.arange(length * 2, dtype=np.float32)
            (y,) = first.run([[x.tobytes()]], [(length, 2)], [0])
            assert y.tolist() == (-x.reshape(length, 2)).tolist()
        with pytest.raises(ValueError, match=r"'x' \[2, 2\], expected \[3, 2\] or \[1, 2\]"):
            first.run([[bytes(16)]], [(2, 2)], [0])


def test_texts_cannot_be_in_a_graph(load, write):
    path = write(
        [helper.make_node("Identity", ["x"], ["y"])],
        [("x", TensorProto.STRING, ("N", "L"))],
        [("y", TensorProto.STRING, ("N", "L"))],
    )
    model = load(path, cuda_graphs=True)
    model.take_forms(FORMS)
    with pytest.raises(ModelLoadError, match="or it has texts"):
        model.make_instance(0)


def test_dimensions_that_depend_on_values_cannot_be_in_a_graph(told, write, gpu):
    path = write(
        [helper.make_node("NonZero", ["x"], ["t"]), helper.make_node("Transpose", ["t"], ["y"])],
        [("x", TensorProto.FLOAT, ("N", "L"))],
        [("y", TensorProto.INT64, ("N", "M"))],
    )
    gpu.waits = True
    with pytest.raises(ModelLoadError, match=r"'y' of 8 rows, .* \[0, 2\] or \[32, 2\]: dimensions that do not follow"):
        told(path).make_instance(0)
    assert gpu.gone == 1


def test_outputs_that_are_not_of_rows_cannot_be_in_a_graph(told, write):
    path = write(
        [helper.make_node("Transpose", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, ("N", "L"))],
        [("y", TensorProto.FLOAT, ("L", "N"))],
    )
    with pytest.raises(ModelLoadError, match=r"output 'y' of 8 rows, \(4,\) each, has shape \[4, 8\]"):
        told(path).make_instance(0)


def test_a_first_run_that_fails_is_a_failed_load(told, varying, gpu):
    gpu.fail = RuntimeError("no kernel for that")
    with pytest.raises(ModelLoadError, match=r"a first run of 8 rows, \(4,\) each, failed: no kernel for that"):
        told(varying).make_instance(0)
    assert gpu.gone == 1


def test_a_graph_that_does_not_see_its_inputs_is_a_failed_load(told, varying, gpu):
    gpu.stale = True
    with pytest.raises(ModelLoadError, match=r"the CUDA graph of 8 rows, \(4,\) each, gives another 'y'"):
        told(varying).make_instance(0)


def test_the_processor_may_compute_shapes_and_nothing_else(told, varying, gpu):
    gpu.on_cpu = ("ReduceSum",)
    with pytest.raises(
        ModelLoadError, match=r"recorded of 8 rows, \(4,\) each, of zeros: it copies from or to the host"
    ):
        told(varying, max_cpu_nodes=0.5).make_instance(0)
    gpu.of_shapes = True
    with instances(told(varying, max_cpu_nodes=0.5)) as (first, _):
        assert right(first, 5, 2)
        assert len(gpu.devices[0].graphs) == 8
