import sys

import pytest

from headrace.backends.onnxruntime import OnnxRuntimeBackend
from headrace.backends.registry import BACKENDS, get, is_reference
from headrace.errors import ModelLoadError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes modules of a package `mine`, importable while the test runs."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").touch()

    def write(name, text):
        (tmp_path / "mine" / f"{name}.py").write_text(text)

    yield write
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


def test_short_names():
    assert isinstance(get("onnxruntime"), OnnxRuntimeBackend)


@pytest.mark.parametrize("name", BACKENDS)
def test_every_short_name_leads_somewhere(name):
    assert callable(get(name).load)


def test_a_users_own(package):
    package("echo", "class Echo:\n    pass\n")
    assert type(get("mine.echo:Echo")).__name__ == "Echo"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("onxruntime", "unknown backend 'onxruntime'; did you mean 'onnxruntime'? "),
        ("zzz", f"unknown backend 'zzz'; known: {', '.join(sorted(BACKENDS))} "),
        ("mine.echo", "unknown backend 'mine.echo'; known: "),
        (":Echo", "unknown backend ':Echo'"),
        ("mine:", "unknown backend 'mine:'"),
        ("nowhere.to.be:Found", "backend 'nowhere.to.be:Found': there is no module 'nowhere'"),
        ("mine.absent:Echo", "backend 'mine.absent:Echo': there is no module 'mine.absent'"),
        (
            "mine.needy:X",
            "backend 'mine.needy:X': mine.needy needs the module 'not_there_at_all', which is not installed",
        ),
        ("mine.faulty:X", "backend 'mine.faulty:X': importing mine.faulty failed: ZeroDivisionError("),
        ("mine.empty:X", "backend 'mine.empty:X': mine.empty has no class or function 'X'"),
        ("mine.choosy:make", "backend 'mine.choosy:make': calling 'make' of mine.choosy failed: TypeError("),
        ("mine.empty:number", "backend 'mine.empty:number': mine.empty has no class or function 'number'"),
    ],
)
def test_what_can_be_wrong_is_told_apart(package, name, message):
    package("needy", "import not_there_at_all")
    package("faulty", "1 / 0")
    package("empty", "number = 1")
    package("choosy", "def make(what):\n    pass\n")
    with pytest.raises(ModelLoadError) as error:
        get(name)
    assert str(error.value).startswith(message)


def test_the_reference_is_known_by_both_its_names():
    assert [name for name in BACKENDS if is_reference(name)] == ["onnxruntime", "onnxruntime-cpu"]
    assert not is_reference("mine.echo:Echo")
    assert not is_reference("nothing")
