"""CUDA graphs: when they are recorded, what becomes of those that are no good, and that they are launched."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from backends.onnxruntime_gpu.test_instances import instances, run

from headrace.backends.onnxruntime.placement import read_placement, unrecordable
from headrace.errors import ModelLoadError


def test_graphs_are_recorded_at_load_and_launched_from_any_thread(load, affine, gpu):
    with instances(load(affine(), cuda_graphs=True, batch_buckets=[2, 8])) as (first, second):
        (session,) = gpu.opened()
        assert session.recorded == len(gpu.devices[0].graphs) == 4  # each bucket of each batch in flight
        gpu.runs.clear()
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(run, first, [1, 2, 3]).result()[0].tolist() == [[3, 5, 7]]
        assert run(second, [4] * 9)[0].tolist() == [[9] * 3] * 3
        assert gpu.runs == {"launched": 2}
    assert not any(graph.open for graph in gpu.devices[0].graphs)


def test_a_graph_that_cannot_be_recorded_is_a_failed_load(load, affine, gpu):
    gpu.unrecordable = RuntimeError("operation not permitted when stream is capturing")
    with pytest.raises(ModelLoadError, match="no CUDA graph can be recorded of 8 rows of zeros: operation not"):
        load(affine(), cuda_graphs=True).make_instance(0)
    assert gpu.gone == 1


def test_a_graph_that_does_not_see_its_inputs_is_a_failed_load(load, affine, gpu):
    gpu.stale = True
    with pytest.raises(ModelLoadError, match="the CUDA graph of 8 rows gives another 'y'"):
        load(affine(), cuda_graphs=True).make_instance(0)
    assert not any(graph.open for graph in gpu.devices[0].graphs)


def test_graphs_that_later_ones_spoil_are_a_failed_load(load, affine, gpu):
    """As they would if planning for another size freed what they use."""
    gpu.forgets = True
    with pytest.raises(ModelLoadError, match="the CUDA graph of 8 rows gives another 'y'"):
        load(affine(), cuda_graphs=True, batch_buckets=[1, 8]).make_instance(0)
    load(affine(), cuda_graphs=True, batch_buckets=[8]).make_instance(0).close()


def test_graphs_are_recorded_where_that_can_be_done(load, affine, gpu, caplog):
    with instances(load(affine(), graphs=True, batch_buckets=[2, 8])) as (first, _):
        (session,) = gpu.opened()
        assert session.recorded == 4
        assert run(first, [1, 2, 3])[0].tolist() == [[3, 5, 7]]
    assert not caplog.records


def spoiled(gpu, how):
    if how == "recording":
        gpu.unrecordable = RuntimeError("operation not permitted when stream is capturing")
    else:
        setattr(gpu, how, True)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("recording", "no CUDA graph can be recorded of 8 rows of zeros: operation not permitted"),
        ("stale", "the CUDA graph of 8 rows gives another 'y' than a run without it"),
        ("forgets", "the CUDA graph of 8 rows gives another 'y' than a run without it"),
    ],
)
def test_and_else_the_model_runs_without_them(load, affine, gpu, caplog, how, why):
    spoiled(gpu, how)
    with instances(load(affine(), graphs=True)) as made:
        gpu.runs.clear()
        assert [run(instance, [1, 2, 3])[0].tolist() for instance in made] == [[[3, 5, 7]]] * 2
        assert gpu.runs == {"regular": 2}
        (session,) = gpu.opened()
        assert not session.recorded
        assert gpu.gone == 1, "what is left of the first session"
    (said,) = caplog.messages
    assert "runs without CUDA graphs, which could not be recorded: " in said
    assert why in said


def test_a_model_that_runs_in_no_way_says_why(load, affine, gpu, caplog):
    gpu.works = set()
    with pytest.raises(ModelLoadError, match="could not set up CUDAExecutionProvider"):
        load(affine(), graphs=True).make_instance(0)
    assert not caplog.records


def test_graphs_that_have_been_recorded_are_not_done_without(load, affine, gpu):
    """Others of the model have them: what is wrong then is not the model."""
    model = load(affine(), graphs=True)
    first = model.make_instance(0)
    gpu.fail = RuntimeError("no memory for that")
    with pytest.raises(ModelLoadError, match="no memory for that"):
        model.make_instance(1)
    first.close()


def kept_back(gpu, how):
    match how:
        case "processor":
            gpu.on_cpu = ("Add",)
        case "host":
            gpu.on_host = ("x",)
        case "untold":
            gpu.tells = False


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("processor", "not all nodes are run by CUDAExecutionProvider: of 2 nodes 1 by CUDAExecutionProvider, 1 by"),
        ("host", "x is in the host's memory"),
        ("untold", "this version of ONNX Runtime does not tell which nodes run where"),
    ],
)
def test_what_a_graph_would_do_only_once_is_not_recorded(load, affine, gpu, caplog, how, why):
    """The processor's part of a run is none of a graph."""
    kept_back(gpu, how)
    caplog.set_level("INFO", "headrace.backends.onnxruntime.gpu")
    with instances(load(affine(), graphs=True, max_cpu_nodes=0.5)) as (first, _):
        assert run(first, [1, 2, 3])[0].tolist() == [[3, 5, 7]]
        assert not gpu.devices[0].graphs
    assert f"runs without CUDA graphs: {why}" in caplog.text
    if how == "processor":  # whether that is the same in each run a graph shows
        why = "no CUDA graph can be recorded of 8 rows of zeros: it copies from or to the host's memory"
    else:
        why = f"cuda_graphs = true, but {why}"
    with pytest.raises(ModelLoadError, match=why):
        load(affine(), cuda_graphs=True, max_cpu_nodes=0.5).make_instance(0)


def test_what_the_processor_does_the_same_way_in_each_run_may_be_left_out_if_so_asked(load, affine, gpu):
    gpu.on_cpu, gpu.of_shapes = ("Add",), True
    with instances(load(affine(), cuda_graphs=True, max_cpu_nodes=0.5)) as (first, _):
        (session,) = gpu.opened()
        assert session.recorded == 8
        assert run(first, [1, 2, 3])[0].tolist() == [[3, 5, 7]]


@pytest.mark.parametrize("provider", ["GPU", "CPUExecutionProvider"])
def test_a_model_that_decides_as_it_runs_is_not_recorded(provider):
    nodes = {"GPU": ["Add"], provider: ["Loop"]}
    placement = read_placement(
        SimpleNamespace(ep_name=name, get_nodes=lambda kinds=kinds: [SimpleNamespace(op_type=kind) for kind in kinds])
        for name, kinds in nodes.items()
    )
    assert unrecordable(SimpleNamespace(), placement, "GPU", processor=True) == "the model decides as it runs: Loop"


def test_dimensions_that_vary_are_done_without_graphs(load, varying, gpu, caplog):
    with instances(load(varying, graphs=True)):
        assert not gpu.devices[0].graphs
    assert not caplog.records


def test_graphs_need_dimensions_that_are_known(load, varying, gpu):
    with pytest.raises(
        ModelLoadError, match="cuda_graphs = true, but not all dimensions of the model are fixed, or in"
    ):
        load(varying, cuda_graphs=True).make_instance(0)
    assert not gpu.calls
