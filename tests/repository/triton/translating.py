"""What a config.pbtxt becomes."""

import pytest
from google.protobuf import text_format

from headrace.errors import ConfigError
from headrace.repository.triton.translate import translate
from headrace.rpc import model_config_pb2 as mc

TENSORS = """
    input { name: "x" data_type: TYPE_FP32 dims: [ 4 ] }
    output { name: "y" data_type: TYPE_INT64 dims: [ 1 ] }
"""


def translated(text, *, name="m", files=(), tensors=TENSORS):
    return translate(text_format.Parse(text + tensors, mc.ModelConfig()), name, "m/config.pbtxt", files)


def settings(text, **more):
    """What is not at its default, without the tensors that every text has."""
    values = translated(text, **more).config.model_dump(exclude_defaults=True)
    return {key: values[key] for key in values if key not in ("inputs", "outputs", "serve_outputs")}


def problems(text, **more):
    with pytest.raises(ConfigError) as raised:
        translated(text, **more)
    lines = str(raised.value).splitlines()
    assert all(line.startswith("m/config.pbtxt: ") for line in lines)
    return [line.removeprefix("m/config.pbtxt: ") for line in lines]


def warnings(text, **more):
    return translated(text, **more).warnings
