import tomllib

from hypothesis import given
from hypothesis import strategies as st

from headrace.repository.model_config import BatchingConfig, ModelConfig, WarmupData, WarmupInput
from headrace.repository.toml_text import settings_text, toml_text

text = st.text(st.characters(exclude_categories=["Cs"]))
scalars = st.one_of(
    st.booleans(), st.integers(-(1 << 63), (1 << 63) - 1), st.floats(allow_nan=False, allow_infinity=False), text
)
values = st.recursive(
    st.one_of(scalars, st.lists(scalars, max_size=3)),
    lambda inner: st.one_of(
        st.dictionaries(text, inner, max_size=3),
        st.lists(st.dictionaries(text, inner, max_size=3), min_size=1, max_size=3),
    ),
    max_leaves=12,
)


@given(st.dictionaries(text, values, max_size=4))
def test_what_is_written_is_read(written):
    assert tomllib.loads(toml_text(written)) == written


def test_it_looks_as_one_would_write_it():
    config = ModelConfig(
        max_batch=8,
        versions=(1, 3),
        slo_ms=2.5,
        batching=BatchingConfig(policy="delay"),
        warmup_data=(WarmupData(rows=2, inputs={"a b": WarmupInput(dims=(4,), fill="random")}), WarmupData()),
        backend_options={"session": {"session.x": 'say "no"'}},
    )
    assert (
        settings_text(config)
        == """\
max_batch = 8
slo_ms = 2.5
versions = [1, 3]

[[warmup_data]]
rows = 2

[warmup_data.inputs."a b"]
dims = [4]
fill = "random"

[[warmup_data]]

[backend_options.session]
"session.x" = "say \\"no\\""

[batching]
policy = "delay"
"""
    )
    assert settings_text(ModelConfig()) == ""
