import sys

import pytest

from headrace.backends.tensorrt import api
from headrace.errors import ModelLoadError

ILOGGER = "class ILogger:\n    pass\n"


@pytest.fixture
def found(tmp_path, monkeypatch):
    """What `find` makes of modules with the given texts, none where a text is None."""
    monkeypatch.syspath_prepend(tmp_path)
    names = []

    def found(**texts):
        for name, text in texts.items():
            names.append(f"trt_test_{name}")
            if text is not None:
                (tmp_path / f"{names[-1]}.py").write_text(text)
        return api.find(tuple(names))

    yield found
    api.find.cache_clear()
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("version", ["10.0.1", "10.16.1.11", "11.4.0.106"])
def test_versions_that_are_known(found, version):
    taken = found(one=f"__version__ = {version!r}\n{ILOGGER}")
    assert taken.version == version
    assert taken.major == int(version[:2])
    assert repr(taken) == f"<Api TensorRT {version}>"


def test_the_second_name_will_do(found):
    assert found(one=None, two=f"__version__ = '11.0'\n{ILOGGER}").version == "11.0"


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        (
            {"one": None, "two": None},
            "there is no module trt_test_one or trt_test_two; `pip install tensorrt-cu13 cuda-bindings`",
        ),
        ({"one": "__version__ = '8.6.1'"}, "trt_test_one is of version 8.6.1"),
        ({"one": "__version__ = '1.7.1'"}, "trt_test_one is of version 1.7.1"),
        ({"one": ""}, "trt_test_one is of version unknown"),
        (
            {"one": "import trt_libs_not_there"},
            "trt_test_one needs the module trt_libs_not_there, which is not installed",
        ),
        (
            {"one": None, "two": "raise ImportError('libnvinfer.so.10: cannot open shared object file')"},
            "trt_test_two cannot be imported: libnvinfer.so.10: cannot open shared object file",
        ),
        ({"one": "raise FileNotFoundError('nvinfer_10.dll')"}, "trt_test_one cannot be imported: nvinfer_10.dll"),
    ],
    ids=["absent", "old", "RTX", "nameless", "needy", "no library", "no dll"],
)
def test_what_is_missing_is_told(found, texts, why):
    with pytest.raises(ModelLoadError) as error:
        found(**texts)
    assert str(error.value).startswith(f"backend 'tensorrt' needs NVIDIA TensorRT 10 or 11: {why}")
