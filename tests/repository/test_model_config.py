import re
from typing import get_args

import pytest

from headrace.datatypes import DATATYPES
from headrace.errors import ConfigError
from headrace.repository.model_config import Datatype, InputConfig, ModelConfig, load_model_config


@pytest.fixture
def load(tmp_path):
    def load(text):
        file = tmp_path / "model.toml"
        file.write_text(text)
        return load_model_config(file)

    return load


def test_an_empty_file_means_the_defaults(load):
    config = load("")
    assert config == ModelConfig()
    assert (config.max_batch, config.backend, config.versions) == (None, "onnxruntime", "latest:1")
    assert config.batching.policy == "slot"
    assert config.slo_ms == 0


def test_everything_at_once(load):
    config = load("""
        max_batch = 8
        slo_ms = 50
        versions = [1, 3]
        warmup = [1, 8]
        split_oversize = false
        priority_levels = 3
        default_priority = 2
        backend_options = { arena = false }
        [batching]
        policy = "delay"
        delay_us = 500
        [queue]
        max_rows = 16
        [inputs."image/raw"]
        finite = true
        min = 0
        max = 16.0
    """)
    assert (config.max_batch, config.slo_ms, config.versions, config.warmup) == (8, 50.0, (1, 3), (1, 8))
    assert config.inputs == {"image/raw": InputConfig(finite=True, min=0.0, max=16.0)}
    assert (config.batching.policy, config.batching.delay_us, config.queue.max_rows) == ("delay", 500, 16)
    assert (config.backend_options, config.default_level) == ({"arena": False}, 2)


def test_requests_without_priority_are_the_least_urgent_by_default(load):
    assert load("priority_levels = 3").default_level == 3
    assert load("").default_level == 1


@pytest.mark.parametrize("versions", ['"all"', '"latest:1"', '"latest:12"', "[2]"])
def test_version_policies(load, versions):
    load(f"versions = {versions}")


@pytest.mark.parametrize(
    "versions", ['"latest"', '"latest:0"', '"latest:-1"', '"2"', "[]", "[0]", "[true]", "2", '["1"]']
)
def test_bad_version_policies(load, versions):
    allowed = r'"all" or "latest:N" or a list that is not empty \(each an integer of at least 1\)'
    with pytest.raises(ConfigError, match=f"expected {allowed}"):
        load(f"versions = {versions}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch = -1", "max_batch = -1 (in {file}): expected an integer from 0 to 1048576"),
        ("instances = true", "instances = true (in {file}): expected an integer from 1 to 1024"),
        ("slo_ms = inf", "slo_ms = Infinity (in {file}): expected a number from 0 to 1e+18"),
        ("slo_ms = 1e303", "slo_ms = 1e+303 (in {file}): expected a number from 0 to 1e+18"),
        ("cache_ttl_s = 1e300", "cache_ttl_s = 1e+300 (in {file}): expected a number from 0 to 1e+18"),
        (
            "warmup = 3",
            "warmup = 3 (in {file}): expected true or false or a list that is not empty (each an integer of at "
            "least 1)",
        ),
        ("batching.quantile = 1.0", "batching.quantile = 1.0 (in {file}): expected a number above 0 and below 1"),
        (
            "preprocess.x.kind = 'blur'",
            'preprocess.x = {{"kind": "blur"}} (in {file}): expected a table with kind = "image" or "quantize"',
        ),
        (
            "preprocess.x.k = 1",
            'preprocess.x = {{"k": 1}} (in {file}): expected a table with kind = "image" or "quantize"',
        ),
        (
            "[preprocess.x]\nkind = 'image'\nmaen = [1]",
            "unknown key 'preprocess.x.maen' (in {file}); did you mean 'mean'?",
        ),
        (
            "[preprocess.x]\nkind = 'image'\nsize = [224]",
            "preprocess.x.size = [224] (in {file}): expected height and width, each an integer from 1 to 32767",
        ),
        (
            "[preprocess.x]\nkind = 'image'\nshorter = 3",
            "preprocess.x: shorter is for fit = 'crop', and fit is 'stretch' (in {file})",
        ),
        (
            "[postprocess.y]\nkind = 'top_k'\nk = 0",
            "postprocess.y.k = 0 (in {file}): expected an integer of at least 1",
        ),
        ("version_labels.1 = 1", "version_labels has the key '1' (in {file}): expected a name that is no number"),
        ("version_labels.a = 0", "version_labels.a = 0 (in {file}): expected an integer of at least 1"),
        ("serve_outputs = []", "serve_outputs = [] (in {file}): expected a list that is not empty (each text)"),
        ("max_bach = 1", "unknown key 'max_bach' (in {file}); did you mean 'max_batch'?"),
        ("inputs.x.mim = 1", "unknown key 'inputs.x.mim' (in {file}); did you mean 'min'?"),
        ("inputs.x = {{min = 2, max = 1}}", "inputs.x: min = 2 is above max = 1 (in {file})"),
        ("default_priority = 2", "default_priority = 2 is above priority_levels = 1 (in {file})"),
    ],
)
def test_problems_name_key_value_allowed_and_file(load, tmp_path, text, message):
    with pytest.raises(ConfigError) as error:
        load(text.format())
    assert str(error.value) == message.format(file=tmp_path / "model.toml")


def test_tensors_queue_policies_and_warm_up(load):
    config = load("""
        priority_levels = 2
        serve_outputs = ["y"]
        [inputs.x]
        datatype = "FP32"
        dims = [1, -1]
        reshape = [-1]
        [outputs.y]
        labels = "labels.txt"
        [batching]
        preferred_sizes = [4, 8]
        [queue]
        timeout_us = 500
        on_timeout = "delay"
        [queue.levels.1]
        timeout_override = false
        [[warmup_data]]
        rows = 4
        inputs.x = { dims = [1, 3], file = "x.bin" }
    """)
    assert (config.inputs["x"].dims, config.inputs["x"].reshape) == ((1, -1), (-1,))
    assert (config.outputs["y"].labels, config.serve_outputs) == ("labels.txt", ("y",))
    assert config.batching.preferred_sizes == (4, 8)
    assert (config.queue.timeout_us, config.queue.on_timeout, config.queue.timeout_override) == (500, "delay", True)
    assert config.queue.levels["1"].timeout_override is False
    assert config.queue.levels["1"].timeout_us is None
    (data,) = config.warmup_data
    assert (data.rows, data.runs, data.inputs["x"].dims, data.inputs["x"].file) == (4, 1, (1, 3), "x.bin")


def test_datatypes_are_those_of_the_protocol():
    assert set(get_args(Datatype)) == set(DATATYPES)


@pytest.mark.parametrize(
    ("dims", "reshape"),
    [([1], []), ([4], [2, 2]), ([2, -1, 6], [2, -1, 3, 2]), ([-1, 4], [1, -1, 2, 2]), ([-1, 1, -1], [-1, -1])],
)
def test_reshapes(load, dims, reshape):
    assert load(f"inputs.x = {{dims = {dims}, reshape = {reshape}}}").inputs["x"].reshape == tuple(reshape)


@pytest.mark.parametrize(
    ("dims", "reshape"), [([2], []), ([4], [2, 3]), ([-1, 4], [4, -1]), ([-1], [-1, -1]), ([2, -1], [-1])]
)
def test_reshapes_that_would_change_the_size(load, dims, reshape):
    with pytest.raises(ConfigError, match=re.escape(f"inputs.x: dims {dims} and reshape {reshape} do not hold")):
        load(f"inputs.x = {{dims = {dims}, reshape = {reshape}}}")


@pytest.mark.parametrize(
    "said", ["slo_ms = 50", "queue.timeout_us = 1", "response_cache = true", "queue.levels.1 = {}"]
)
def test_what_an_ensemble_would_not_do_is_not_asked_of_it(load, said):
    step = 'ensemble.steps = [{model = "m", outputs = {y = "y"}}]'
    load(step)
    load(said)
    with pytest.raises(ConfigError, match=rf"^{said.split(' ')[0].removesuffix('.1')} has no effect in an ensemble"):
        load(f"{said}\n{step}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inputs.x = {{reshape = [1]}}", "inputs.x: dims none and reshape [1] do not hold the same number of elements"),
        ("inputs.x.dims = [0]", "inputs.x.dims: [0] has a dimension of 0, expected integers of at least 1, or -1"),
        ('inputs.x.datatype = "INT"', 'inputs.x.datatype = "INT" (in {file}): expected one of "BOOL", '),
        ('inputs.x = {{dims = [2], format = "NHWC"}}', "inputs.x: format NHWC needs three dims"),
        ('outputs.y.labels = "../x"', "outputs.y.labels: '../x' leaves the model's directory"),
        ("queue.levels.2.timeout_us = 1", "queue.levels.2 is above priority_levels = 1"),
        ("queue.levels.x.timeout_us = 1", "queue.levels.x: 'x' is no priority level"),
        ("queue.levels.1.timeout = 1", "unknown key 'queue.levels.1.timeout' (in {file}); did you mean 'timeout_us'?"),
        ("slo_ms = 1\nqueue.timeout_us = 1", "slo_ms has no effect beside queue.timeout_us"),
        ("max_batch = 4\nbatching.preferred_sizes = [8]", "batching.preferred_sizes has 8, which is above max_batch"),
        ("batching.preferred_sizes = []", "batching.preferred_sizes = [] (in {file}): expected a list"),
        ("warmup_data = {{}}", "warmup_data = {{}} (in {file}): expected a list (each a table)"),
        ("warmup_data = [{{}}, {{row = 1}}]", "unknown key 'warmup_data.1.row' (in {file}); did you mean 'rows'?"),
        ("warmup_data = [{{rows = 0}}]", "warmup_data.0.rows = 0 (in {file}): expected an integer of at least 1"),
    ],
)
def test_problems_of_tensors_queues_and_warm_up(load, tmp_path, text, message):
    with pytest.raises(ConfigError) as error:
        load(text.format())
    assert str(error.value).startswith(message.format(file=tmp_path / "model.toml"))
