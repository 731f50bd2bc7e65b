import pytest

from headrace.errors import ConfigError
from headrace.repository.bucket_config import FollowingDim, SizeRule
from headrace.repository.model_config import load_model_config
from headrace.repository.toml_text import settings_text

MINIMAL = "[buckets.n]\nsizes = [8]\ninputs.x = 1\n"


@pytest.fixture
def load(tmp_path):
    def load(text):
        (tmp_path / "model.toml").write_text(text)
        return load_model_config(tmp_path / "model.toml")

    return load


def test_everything_at_once(load):
    config = load("""
        [buckets.width]
        sizes = [128, 64, 64]
        inputs = { image = -1, other = [1, 2] }
        masks.mask = 2
        lengths = "widths"
        [buckets.width.outputs]
        text = { dim = 1, divide = 8, add = 3 }
        same = 1
        both = [1, { dim = 2, multiply = 2 }]
        none = []
        [inputs.image]
        pad = 0
    """)
    width = config.buckets["width"]
    assert width.bucket_sizes == (64, 128)
    assert width.inputs == {"image": (-1,), "other": (1, 2)}
    assert width.masks == {"mask": (2,)}
    assert width.lengths == "widths"
    assert width.outputs == {
        "text": (FollowingDim(dim=1, divide=8, add=3),),
        "same": (FollowingDim(dim=1),),
        "both": (FollowingDim(dim=1), FollowingDim(dim=2, multiply=2)),
        "none": (),
    }
    assert config.inputs["image"].pad == 0


def test_the_least_that_is_needed(load):
    bucket = load(MINIMAL).buckets["n"]
    assert (bucket.masks, bucket.lengths, bucket.outputs) == ({}, None, {})


def test_it_is_written_as_it_is_read(load):
    config = load("""
        [buckets.width]
        sizes = { power_of = 2, max = 9 }
        inputs.x = 1
        outputs = { y = { dim = 1, divide = 2 }, z = [] }
        [inputs.x]
        pad = -inf
    """)
    assert load(settings_text(config)) == config


@pytest.mark.parametrize(
    ("rule", "sizes"),
    [
        ({"multiple_of": 32, "max": 128}, (32, 64, 96, 128)),
        ({"multiple_of": 32, "min": 50, "max": 100}, (64, 96, 100)),
        ({"power_of": 2, "max": 8}, (1, 2, 4, 8)),
        ({"power_of": 2, "min": 16, "max": 100}, (16, 32, 64, 100)),
        ({"power_of": 3, "min": 2, "max": 27}, (3, 9, 27)),
        ({"multiple_of": 7, "min": 5, "max": 5}, (5,)),
    ],
)
def test_sizes_by_a_rule(rule, sizes):
    assert SizeRule(**rule).sizes() == sizes


SIZES = (
    "expected a list of integers from 1 to 16777216, or a table {multiple_of = N, max = N} or {power_of = N, max = N}, "
    "both of which may have a min"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sizes = []", f"buckets.n.sizes = [] (in FILE): {SIZES}"),
        ("sizes = [0]", f"buckets.n.sizes = [0] (in FILE): {SIZES}"),
        ("sizes = 8", f"buckets.n.sizes = 8 (in FILE): {SIZES}"),
        ("sizes = { power_of = 2 }", f'buckets.n.sizes = {{"power_of": 2}} (in FILE): {SIZES}'),
        ("sizes = { power_of = 2, multiple_of = 2, max = 8 }",
         "buckets.n.sizes: sizes by a rule have either multiple_of or power_of (in FILE)"),
        ("sizes = { max = 8 }", "buckets.n.sizes: sizes by a rule have either multiple_of or power_of (in FILE)"),
        ("sizes = { multiple_of = 2, min = 9, max = 8 }", "buckets.n.sizes: min = 9 is above max = 8 (in FILE)"),
        ("sizes = { multiple_of = 1, max = 16777216 }", "buckets.n.sizes: more than 256 sizes (in FILE)"),
        ("sizes = [8]\ninputs = {}", "buckets.n.inputs = {} (in FILE): expected a table"),
        ("sizes = [8]\ninputs.x = 'w'",
         'buckets.n.inputs.x = "w" (in FILE): expected a dimension, or a list of some'),
        ("sizes = [8]\ninputs.x = []", "buckets.n.inputs.x = [] (in FILE): expected a dimension, or a list of some"),
        ("sizes = [8]\noutputs.y = { dim = 1, divide = 0 }",
         "buckets.n.outputs.y.0.divide = 0 (in FILE): expected an integer from 1 to 16777216"),
        ("sizes = [8]\noutputs.y = [1, { dim = 'w' }]",
         'buckets.n.outputs.y.1.dim = "w" (in FILE): expected an integer'),
        ("sizes = [8]\noutputs.y = 'w'",
         'buckets.n.outputs.y.0 = "w" (in FILE): expected a dimension, or a table {dim = N, multiply = N, '
         "divide = N, add = N}"),
        ("sizes = [8]\nmask.m = 1", "unknown key 'buckets.n.mask' (in FILE); did you mean 'masks'?"),
    ],
)  # fmt: skip
def test_problems_name_key_value_allowed_and_file(load, tmp_path, text, message):
    if "inputs" not in text:
        text += "\ninputs.x = 1"
    with pytest.raises(ConfigError) as caught:
        load(f"[buckets.n]\n{text}")
    assert str(caught.value).splitlines()[0] == message.replace("FILE", str(tmp_path / "model.toml"))
