"""From a version directory to a model that runs: where engines come from, and which are not loaded."""

import numpy as np
import pytest
from backends.tensorrt import networks, signatures
from backends.tensorrt.fake import (
    MAGIC,
    Builder,
    Config,
    Context,
    Engine,
    FakeTensorRt,
    OnnxParser,
    OnnxParserRefitter,
    Refitter,
    Runtime,
    make_plan,
)
from backends.tensorrt.test_executor import floats, run, scaled
from onnx import TensorProto, helper, numpy_helper

from headrace.backends import registry
from headrace.backends.device import DeviceOutOfMemory
from headrace.backends.tensorrt import api, policy
from headrace.backends.tensorrt.backend import TensorRtBackend
from headrace.config import TensorRtSettings
from headrace.errors import ModelLoadError


def weighted(value, rows="N"):
    """A sum with a row of weights, which can be exchanged."""
    weights = numpy_helper.from_array(np.full(16, value, np.float32), "w")
    node = helper.make_node("Add", ["x", "w"], ["y"])
    return networks.model(
        [node], [("x", TensorProto.FLOAT, [rows, 16])], [("y", TensorProto.FLOAT, [rows, 16])], [weights]
    )


def result(model, rows=2, width=16):
    instance = model.make_instance(0)
    try:
        return run(instance, floats(rows, width))[0]
    finally:
        instance.close()


def test_it_is_registered():
    assert isinstance(registry.get("tensorrt"), TensorRtBackend)


def test_what_is_missing_is_told_when_a_model_asks_for_it(tmp_path):
    """Here TensorRT is missing, or the driver; on a machine that has both, the file is none."""
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(
        ModelLoadError, match=r"needs NVIDIA TensorRT 10 or 11: .*pip install|device 0 cannot|not an ONNX"
    ):
        registry.get("tensorrt").load(tmp_path, max_batch=None, threads=0, options={})


def test_a_model_as_the_server_sees_it(load):
    model = load(scaled(), max_batch=6)
    assert (model.platform, model.inline, model.executors_per_instance) == ("tensorrt_plan", False, 2)
    assert model.signature.max_batch == 6
    assert model.nodes == {}
    assert repr(model) == "<TensorRtModel m 1 on 1 devices, 0 executors>"
    assert load(scaled(), version="2").signature.max_batch == 64
    assert load(scaled(), version="3", batch_buckets=[2, 7]).signature.max_batch == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": [0, 0]}, "names a device twice"),
        ({"batch_buckets": [4]}, "expected the last bucket to be max_batch"),
        ({"file": "absent.onnx"}, r"there is no .*absent\.onnx"),
        ({"plugins": ["/absent.so"]}, r"/absent\.so"),
    ],
)
def test_what_is_asked_for_and_cannot_be(load, options, message):
    with pytest.raises(ModelLoadError, match=message):
        load(scaled(), max_batch=8, **options)


def test_a_model_of_several_files(load, tmp_path):
    inside = tmp_path / "m" / "1" / "net"
    inside.mkdir(parents=True)
    networks.save(scaled(), inside / "model.onnx")
    np.testing.assert_array_equal(result(load(max_batch=2, file="net"), width=4), floats(2, 4) * 3)


def test_plugins_are_loaded_before_the_model(load, tmp_path):
    (tmp_path / "p.so").write_bytes(b"no library")
    with pytest.raises(ModelLoadError, match=r"TensorRT does not take the plugins of .*p\.so"):
        load(scaled(), 8, plugins=[str(tmp_path / "p.so")])


def test_dimensions_of_outputs_that_the_file_does_not_tell(load):
    node = helper.make_node("Flatten", ["x"], ["y"])
    made = networks.model([node], [("x", TensorProto.FLOAT, ["N", 2, 3])], [("y", TensorProto.FLOAT, ["N", "K"])])
    assert load(made, 4).signature.outputs[0].shape == (6,)


# --- the engine cache -------------------------------------------------------------------------------------------------


def test_an_engine_is_built_once(load, trt, devices):
    for version in ("1", "2"):
        np.testing.assert_array_equal(result(load(scaled(), 8, version), width=4), floats(2, 4) * 3)
    load(scaled(), 8, devices=[0, 1])
    assert trt.builds == 1
    load(scaled(), 7)
    load(scaled(factor=4), 8)
    assert trt.builds == 3


def test_for_a_gpu_of_another_kind_it_is_built_anew(load, trt, devices):
    devices[1].name = "Another"
    model = load(scaled(), 8, devices=[0, 1])
    assert trt.builds == 2
    for index in range(2):
        instance = model.make_instance(index)
        np.testing.assert_array_equal(run(instance, floats(2, 4))[0], floats(2, 4) * 3)


def test_without_a_cache_it_is_built_at_each_load(load, trt, settings, tmp_path):
    settings(engine_cache_bytes=0)
    for _ in range(2):
        np.testing.assert_array_equal(result(load(scaled(), 8), width=4), floats(2, 4) * 3)
    assert trt.builds == 2
    assert not (tmp_path / "engines").exists()


def test_timings_are_handed_on_from_build_to_build(load, tmp_path):
    load(scaled(), 8)
    load(scaled(), 7)
    (timings,) = (tmp_path / "engines").glob("*.timings")
    assert timings.read_bytes().endswith(b"++")


def test_an_engine_that_was_tampered_with_is_not_handed_to_tensorrt(load, trt, tmp_path, logged):
    load(scaled(), 8)
    (plan,) = (tmp_path / "engines").glob("*.plan")
    content = plan.read_bytes()
    plan.write_bytes(content.replace(b"fake plan", b"evil plan"))
    seen = []
    trt.tweak = lambda about: seen.append(about) or about
    np.testing.assert_array_equal(result(load(scaled(), 8), width=4), floats(2, 4) * 3)
    assert (trt.builds, len(seen)) == (2, 1)
    assert [text for text in logged() if "what it holds is not what was signed" in text]


def test_an_engine_that_tensorrt_does_not_take_any_more_is_built_anew(load, trt, logged):
    load(scaled(), 8)
    refuse = iter([True])

    def tweak(about):
        if next(refuse, False):
            raise ModelLoadError("as the test wants")
        return about

    trt.tweak = tweak
    np.testing.assert_array_equal(result(load(scaled(), 8), width=4), floats(2, 4) * 3)
    assert trt.builds == 2
    assert "m 1: the engine in the cache is not used: as the test wants" in logged()


def test_an_engine_that_cannot_be_loaded_at_all(load, trt):
    trt.fail["load"] = "the engine plan file is not compatible"
    with pytest.raises(ModelLoadError, match=r"cannot load the engine of m 1: the engine plan file is not compatible"):
        load(scaled(), 8)
    assert trt.builds == 1


def test_a_device_without_memory_for_the_engine(load, trt):
    def tweak(about):
        raise DeviceOutOfMemory("as the test wants")

    trt.tweak = tweak
    with pytest.raises(ModelLoadError, match=r"model\.onnx cannot be loaded onto cpu:0: as the test wants"):
        load(scaled(), 8)


# --- plans of others --------------------------------------------------------------------------------------------------


def plan_of(made, *profiles):
    return make_plan(made, [{"x": [[a, *row], [a, *row], [b, *row]]} for a, b, row in profiles])


PLAN = plan_of(scaled(), (1, 8, [4]))


@pytest.mark.parametrize(
    ("name", "options"),
    [("model.plan", {}), ("model.plan", {"file": "model.plan"}), ("a.engine", {"file": "a.engine"})],
)
def test_a_plan_is_loaded_only_where_the_operator_allows_it(load, trt, settings, name, options):
    trt.fail["load"] = "it must not come to this"
    with pytest.raises(ModelLoadError) as error:
        load(PLAN, name=name, **options)
    assert "is a plan, built elsewhere" in str(error.value)
    assert "set tensorrt.allow_plan_files" in str(error.value)
    trt.fail.clear()
    settings(allow_plan_files=True)
    model = load(name=name, **options)
    assert model.signature.max_batch == 8
    np.testing.assert_array_equal(result(model, width=4), floats(2, 4) * 3)
    assert trt.builds == 0


def test_the_onnx_file_comes_first(load, trt, settings):
    settings(allow_plan_files=True)
    load(scaled(factor=5), 8)
    model = load(PLAN, 8, name="model.plan")
    np.testing.assert_array_equal(result(model, width=4), floats(2, 4) * 5)


@pytest.mark.parametrize(
    ("profiles", "max_batch", "ran"),
    [
        ([(1, 8, [4])], None, [1, 2, 4, 4, 8, 8, 8, 8]),  # one wide profile: recorded for each bucket in it
        ([(1, 8, [4])], 3, [1, 2, 3]),
        ([(4, 8, [4])], None, [4, 4, 4, 4, 8, 8, 8, 8]),  # no fewer than 4 rows
        ([(1, 4, [4]), (2, 8, [4])], None, [1, 2, 4, 4, 8, 8, 8, 8]),
        ([(2, 8, [4]), (1, 1, [4])], None, [1, 2, 4, 4, 8, 8, 8, 8]),
    ],
)
@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "no graphs"])
def test_plans_have_any_profiles(load, trt, settings, profiles, max_batch, ran, graphs):
    settings(allow_plan_files=True)
    model = load(plan_of(scaled(), *profiles), max_batch, name="model.plan", cuda_graphs=graphs)
    instance = model.make_instance(0)
    found = []
    for rows in range(1, model.signature.max_batch + 1):
        np.testing.assert_array_equal(run(instance, floats(rows, 4))[0], floats(rows, 4) * 3)
        found.append(len(trt.runs[-1]["inputs"]["x"]))
        assert trt.runs[-1]["captured"] == graphs
    few = min(low for low, _, _ in profiles)
    assert found == (ran if graphs else [max(rows, few) for rows in range(1, len(ran) + 1)])


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "no graphs"])
def test_profiles_that_no_bucket_needs(load, trt, settings, graphs):
    settings(allow_plan_files=True)
    plan = plan_of(scaled(), *((1, rows, [4]) for rows in (1, 2, 3, 4, 8)))
    instance = load(plan, name="model.plan", batch_buckets=[4, 8], cuda_graphs=graphs).make_instance(0)
    for rows in range(1, 9):
        np.testing.assert_array_equal(run(instance, floats(rows, 4))[0], floats(rows, 4) * 3)


def test_buckets_of_equal_size_are_one(load, settings):
    settings(allow_plan_files=True)
    instance = load(plan_of(scaled(), (4, 8, [4])), name="model.plan").make_instance(0)
    assert repr(instance) == "<Executor of m 1, 2 of 2 buckets recorded, 0 ways known>"


def test_rows_that_no_profile_has(load, trt, settings):
    """Batches of 3 to 5 rows are filled up to 6."""
    settings(allow_plan_files=True)
    model = load(plan_of(scaled(), (1, 2, [4]), (6, 8, [4])), name="model.plan", cuda_graphs=False)
    instance = model.make_instance(0)
    ran = []
    for rows in range(1, 9):
        np.testing.assert_array_equal(run(instance, floats(rows, 4))[0], floats(rows, 4) * 3)
        ran.append(len(trt.runs[-1]["inputs"]["x"]))
    assert ran == [1, 2, 6, 6, 6, 6, 7, 8]


@pytest.mark.parametrize(
    ("plan", "max_batch", "options", "message"),
    [
        (PLAN, 9, {}, "max_batch = 9, but the engine is built for batches of 8 rows at most"),
        (plan_of(scaled(), (1, 8, [4])), None, {"batch_buckets": [4]}, "expected the last bucket to be max_batch = 8"),
        (
            make_plan(networks.conv_net(batch=1), []),
            2,
            {},
            "built for no batches: the first dimension of a tensor is fixed",
        ),
        (b"not a plan", None, {}, "cannot load the engine of m 1"),
    ],
)
def test_plans_that_do_not_suit(load, settings, plan, max_batch, options, message):
    settings(allow_plan_files=True)
    with pytest.raises(ModelLoadError, match=message):
        load(plan, max_batch, name="model.plan", **options)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("locations", {"x": "host"}, "input 'x' of the engine is in the host's memory"),
        ("formats", {"y": "chw32"}, "output 'y' of the engine is not laid out row by row, expected format LINEAR"),
    ],
)
def test_engines_that_cannot_be_served(load, trt, settings, key, value, message):
    settings(allow_plan_files=True)
    trt.tweak = lambda about: about | {key: value}
    with pytest.raises(ModelLoadError, match=message):
        load(PLAN, name="model.plan")


def test_what_the_operator_has_said_holds_for_all(settings):
    settings(allow_plan_files=True)
    assert policy.settings().allow_plan_files
    assert not TensorRtSettings().allow_plan_files


@pytest.mark.parametrize("what", ["shape", "infer"])
def test_an_engine_that_does_not_take_its_own_shapes(load, trt, what):
    trt.fail[what] = "as the test wants"
    with pytest.raises(ModelLoadError, match=r"the engine does not take what it was built for: .*as the test wants"):
        load(scaled(), 8)


# --- other weights ----------------------------------------------------------------------------------------------------


def test_a_version_with_other_weights_is_not_built(load, trt):
    models = [load(weighted(value), 8, str(value), refit=True) for value in (1, 2, 3)]
    assert (trt.builds, trt.refits) == (1, 2)
    for value, model in zip((1, 2, 3), models, strict=True):
        np.testing.assert_array_equal(result(model), floats(2, 16) + np.float32(value))


def test_unless_it_was_not_asked_for(load, trt):
    for value in (1, 2):
        np.testing.assert_array_equal(result(load(weighted(value), 8)), floats(2, 16) + np.float32(value))
    assert (trt.builds, trt.refits) == (2, 0)


def test_weights_of_another_file_are_taken(load, trt):
    for value in (1, 2):
        model = load(weighted(value), 8, str(value), refit=True, external=True)
        np.testing.assert_array_equal(result(model), floats(2, 16) + np.float32(value))
    assert (trt.builds, trt.refits) == (1, 1)


def test_another_structure_is_built(load, trt):
    load(weighted(1), 8, refit=True)
    load(scaled(), 8, refit=True)
    load(scaled(factor=4), 8, refit=True)
    assert (trt.builds, trt.refits) == (3, 0)


@pytest.mark.parametrize(
    ("what", "why"),
    [("refit", "TensorRT cannot put the weights"), ("missing", "does not have all weights of the engine: w")],
)
def test_an_engine_that_does_not_take_the_weights_is_built(load, trt, logged, what, why):
    load(weighted(1), 8, refit=True)
    trt.fail[what] = "as the test wants"
    np.testing.assert_array_equal(result(load(weighted(2), 8, refit=True)), floats(2, 16) + np.float32(2))
    assert trt.builds == 2
    assert [text for text in logged() if "is not used: " in text and why in text]


def test_stripped_engines_take_their_weights_from_the_file(load, trt, tmp_path):
    model = load(scaled(), 8, strip_weights=True)
    np.testing.assert_array_equal(result(model, width=4), floats(2, 4) * 3)
    model = load(scaled(), 8, strip_weights=True)
    np.testing.assert_array_equal(result(model, width=4), floats(2, 4) * 3)
    assert (trt.builds, trt.refits) == (1, 2)
    (plan,) = (tmp_path / "engines").glob("*.plan")
    payload = plan.read_bytes().partition(MAGIC)[2]
    file = tmp_path / "m" / "1" / "model.onnx"
    assert model.memory == {"cpu:0": len(MAGIC) + len(payload) + file.stat().st_size}


# --- the stand-in itself ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "fake"),
    [
        ("ICudaEngine", Engine), ("IExecutionContext", Context), ("Runtime", Runtime), ("Refitter", Refitter),
        ("OnnxParserRefitter", OnnxParserRefitter), ("Builder", Builder), ("OnnxParser", OnnxParser),
        ("IBuilderConfig", Config),
    ],
)  # fmt: skip
def test_the_stand_in_has_what_the_real_one_has(protocol, fake):
    """Calls of it; attributes that are only set need not be there."""
    functions = {name for name, function in signatures.members(signatures.PROTOCOLS[protocol]).items() if function}
    assert functions - set(dir(fake)) == set()


def test_so_does_its_module():
    assert set(signatures.members(api.Module)) - set(dir(FakeTensorRt())) == set()
