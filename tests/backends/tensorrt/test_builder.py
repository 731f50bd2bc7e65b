"""The build half, against NVIDIA's own parser and builder."""

import threading
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from backends.tensorrt import networks

from headrace.backends.tensorrt import builder, messages, model_files, options
from headrace.errors import ModelLoadError

DIGITS = Path(__file__).parents[3] / "models" / "digits" / "1" / "model.onnx"

# TensorRT-RTX says that its timing cache does nothing
pytestmark = pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")


def clock_of(step=0):
    """A clock on which so many nanoseconds pass from look to look."""
    return count(0, step).__next__


@pytest.fixture
def build(rtx, tmp_path):
    def build(made, max_batch=None, timings=b"", clock=None, external=False, api=rtx, **chosen):
        path = made if isinstance(made, Path) else networks.save(made, tmp_path / "model.onnx", external)
        files = model_files.read(path)
        return builder.build(api, files, max_batch, options.read(chosen), timings, "m 1", clock or clock_of())

    return build


@pytest.fixture
def watched(rtx):
    """The same TensorRT, with methods of its Builder replaced; they get the real one as `self.real`."""

    def watched(version=rtx.version, **methods):
        def start(self, log):
            self.real = rtx.trt.Builder(log)

        def get(self, name):
            return getattr(self.real, name)

        names = {name: getattr(rtx.trt, name) for name in dir(rtx.trt)}
        names["Builder"] = type("Watched", (), {"__init__": start, "__getattr__": get} | methods)
        return type(rtx)(SimpleNamespace(**names | {"__version__": version}), rtx.messages)

    return watched


@pytest.mark.parametrize(
    "made",
    [DIGITS, networks.conv_net(), networks.conv_net(batch=1), networks.half_net(), networks.quantized_net()],
    ids=["digits", "conv", "fixed batch", "fp16", "int8"],
)
def test_engines_are_built(build, made):
    built = build(made)
    assert built.plan.startswith(b"vtrt")
    assert isinstance(built.timings, bytes)


def test_a_profile_for_each_bucket_and_the_log_says_which(build, logged):
    build(networks.conv_net(), max_batch=5)
    (said,) = [text for text in logged() if "builds an engine" in text]
    assert said == "m 1: TensorRT 1.7.1.116 builds an engine, for batches of 1, 2, 4, 5 rows; this may take minutes"
    assert [text for text in logged() if text.startswith("m 1: TensorRT built ")]


def test_a_plan_holds_all_profiles(build):
    """Seen by its size; what is in it, only a GPU can tell."""
    one, seven = build(networks.conv_net(), batch_buckets=[64]), build(networks.conv_net(), max_batch=64)
    assert len(seven.plan) > 2 * len(one.plan)


def test_dynamic_dimensions_need_shapes(build):
    with pytest.raises(ModelLoadError) as error:
        build(networks.any_length())
    assert str(error.value) == (
        "input 'x' has dynamic dimensions [-1] in a row: expected [backend_options.profiles.x] with min, opt and max "
        "of 1 numbers each, the shapes to build for"
    )
    assert build(networks.any_length(), max_batch=2, profiles={"x": {"min": [1], "opt": [8], "max": [64]}}).plan


def test_without_batching_the_first_dimension_is_one_like_others(build):
    with pytest.raises(ModelLoadError, match=r"dynamic dimensions \[-1, 3, 16, 16\]: expected"):
        build(networks.conv_net(), max_batch=0)
    shape = [2, 3, 16, 16]
    assert build(networks.conv_net(), max_batch=0, profiles={"x": {"min": shape, "opt": shape, "max": shape}}).plan


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (networks.unknown_operator(), "cannot read .*model.onnx: In node 0 with name:  and operator: Nope .*not found"),
        (networks.reshaped(), "input 's' holds a shape"),
    ],
    ids=["operator", "shape tensor"],
)
def test_what_cannot_be_read_is_told_in_nvidias_words(build, made, message):
    with pytest.raises(ModelLoadError, match=message):
        build(made)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no model at all", "model.onnx is not an ONNX file: "),
        (b"", "TensorRT 1.7.1.116 cannot (read|build) .*onnx: "),
    ],
    ids=["text", "nothing"],
)
def test_a_file_that_is_no_model(build, tmp_path, content, message):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=message):
        build(path)


def test_a_build_that_fails_says_why(build):
    """Stripping weights needs a GPU: here NVIDIA's builder fails, and what it says is in the error."""
    with pytest.raises(ModelLoadError, match=r"cannot build .*model\.onnx: .*(?i:cuda)"):
        build(networks.conv_net(), batch_buckets=[1], strip_weights=True)


def test_weights_beside_the_file(build, tmp_path):
    inside = build(networks.conv_net(), batch_buckets=[1])
    beside = build(networks.conv_net(), batch_buckets=[1], external=True)
    assert (tmp_path / "weights.bin").stat().st_size >= 8 * 3 * 3 * 3 * 4
    assert abs(len(beside.plan) - len(inside.plan)) < 1 << 16


def test_a_weight_file_that_is_replaced_meanwhile_spoils_the_build(build, tmp_path, watched):
    def replace_and_build(self, network, config):
        (tmp_path / "new").write_bytes((tmp_path / "weights.bin").read_bytes())
        (tmp_path / "new").replace(tmp_path / "weights.bin")
        return self.real.build_serialized_network(network, config)

    with pytest.raises(ModelLoadError, match="changed while an engine was built"):
        build(networks.conv_net(), 1, external=True, api=watched(build_serialized_network=replace_and_build))


# --- the builder's configuration --------------------------------------------------------------------------------------


@pytest.fixture
def configured(build, watched):
    """What options make of it, as it is when the build begins."""
    seen = []

    def configured(**chosen):
        api = watched(build_serialized_network=lambda self, network, config: seen.append(config))
        with pytest.raises(ModelLoadError, match="it does not say why"):
            build(networks.conv_net(), 1, api=api, **chosen)
        return seen.pop()

    return configured


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, {"TF32"}),
        ({"tf32": False}, set()),
        ({"sparse_weights": True}, {"TF32", "SPARSE_WEIGHTS"}),
        ({"strip_weights": True}, {"TF32", "STRIP_PLAN"}),
        ({"refit": True}, {"TF32", "REFIT"}),
    ],
    ids=["default", "exact", "sparse", "stripped", "refit"],
)
def test_flags(configured, rtx, chosen, expected):
    config = configured(**chosen)
    flags = [getattr(rtx.trt.BuilderFlag, name) for name in ("TF32", "SPARSE_WEIGHTS", "STRIP_PLAN", "REFIT")]
    assert {flag.name for flag in flags if config.get_flag(flag)} == expected


def test_limits(configured, rtx):
    config = configured(workspace_bytes=1 << 20, optimization_level=1)
    assert config.get_memory_pool_limit(rtx.trt.MemoryPoolType.WORKSPACE) == 1 << 20
    assert config.builder_optimization_level == 1
    assert configured().get_memory_pool_limit(rtx.trt.MemoryPoolType.WORKSPACE) == 4 << 30
    assert configured().builder_optimization_level == 3


@pytest.mark.parametrize(("level", "set_"), [("none", 0), ("ampere_plus", 1), ("same_compute_capability", 1)])
def test_hardware_compatibility(configured, logged, level, set_):
    """TensorRT-RTX does not know it, and says so."""
    configured(hardware_compatibility=level)
    assert logged().count("setHardwareCompatibilityLevel() is unsupported in TensorRT-RTX.") == set_


@pytest.mark.parametrize(("version", "strong"), [("10.16.1.11", 1), ("11.4.0.106", 0)])
def test_only_tensorrt_10_is_asked_for_strong_types(build, watched, rtx, version, strong):
    seen = []

    def create_network(self, flags):
        seen.append(flags)
        return self.real.create_network(0)

    build(networks.conv_net(), 1, api=watched(version, create_network=create_network))
    assert seen == [strong << int(rtx.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)]


def test_timings_of_elsewhere_are_not_taken(build):
    assert build(networks.conv_net(), batch_buckets=[1], timings=b"no timings").plan


# --- while it builds --------------------------------------------------------------------------------------------------


def test_a_long_build_tells_how_far_it_is(build, logged):
    build(networks.conv_net(), batch_buckets=[1], clock=clock_of(messages.PROGRESS_NS))
    assert [text for text in logged() if text.startswith("m 1: TensorRT builds: ") and ", step 1 of " in text]


def test_a_short_build_does_not(build, logged):
    build(networks.conv_net(), batch_buckets=[1], clock=clock_of(1))
    assert not [text for text in logged() if "TensorRT builds: " in text]


def test_others_run_while_an_engine_is_built(build, watched):
    """The builder does not hold the interpreter lock: this thread gets on while another is inside it."""
    inside = threading.Event()

    def build_inside(self, network, config):
        inside.set()
        try:
            return self.real.build_serialized_network(network, config)
        finally:
            inside.clear()

    built = []
    api = watched(build_serialized_network=build_inside)
    thread = threading.Thread(target=lambda: built.append(build(networks.conv_net(size=64), 8, api=api)))
    thread.start()
    turns = 0
    while thread.is_alive():
        turns += inside.is_set()
    thread.join()
    assert built
    assert turns > 1000


def test_plugins_that_are_not_there(rtx, tmp_path):
    builder.load_plugins(rtx, ())
    with pytest.raises(ModelLoadError, match=r"TensorRT does not take the plugins of .*absent\.so: "):
        builder.load_plugins(rtx, [str(tmp_path / "absent.so")])


def test_reasons_are_told_once_and_not_all():
    assert builder.reasons([]) == "it does not say why"
    assert builder.reasons(["a", "b", "a", ""]) == "a; b"
    assert builder.reasons(map(str, range(10))) == "0; 1; 2; 3; 4; 5; 6; 7; and 2 more"
