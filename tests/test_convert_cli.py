import errno
import io
import os
import tomllib
from pathlib import Path

import pytest

from headrace.cli import main
from headrace.repository.model_config import load_model_config


@pytest.fixture
def repository(tmp_path):
    def make(**models):
        for name, text in models.items():
            (tmp_path / name / "1").mkdir(parents=True)
            (tmp_path / name / "config.pbtxt").write_text(text)
        return tmp_path

    return make


def convert(*arguments):
    return main(["models", "convert", *map(str, arguments)])


def test_one_model_on_the_terminal(repository, capsys):
    root = repository(a='max_batch_size: 8 dynamic_batching { } runtime: "x"')
    assert convert(root / "a") == 0
    out = capsys.readouterr().out
    assert out.splitlines() == [
        f"# {root / 'a' / 'model.toml'}",
        "# config.pbtxt: runtime: ignored: it names a library of Triton's",
        "max_batch = 8",
        "unit_dims = true",
        "",
    ]
    assert tomllib.loads(out) == {"max_batch": 8, "unit_dims": True}
    assert not (root / "a" / "model.toml").exists()


def test_all_models_of_a_repository_are_written(repository, capsys):
    root = repository(
        a="max_batch_size: 8",
        b="max_batch_size: 3",
        broken="batch_input { }",
        c="nonsense",
    )
    (root / "without").mkdir()
    assert convert(root, "--write") == 1
    said = capsys.readouterr()
    assert said.out.splitlines() == [f"{root / name / 'model.toml'}: written" for name in "ab"]
    first, second = said.err.splitlines()
    assert first.startswith(f"headrace: {root / 'broken' / 'config.pbtxt'}: batch_input: not supported")
    assert second.startswith(f"headrace: {root / 'c' / 'config.pbtxt'}:1:1: ")
    assert load_model_config(root / "b" / "model.toml").max_batch == 3
    assert not (root / "broken" / "model.toml").exists()


def test_a_model_toml_that_cannot_be_written_whole_is_none(repository, capsys, monkeypatch):
    root = repository(a="max_batch_size: 8")

    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real = Path.open

    def opened(path, mode="r", *others, **more):
        if mode != "x":
            return real(path, mode, *others, **more)
        path.touch(exist_ok=False)
        return Full()

    monkeypatch.setattr(Path, "open", opened)
    assert convert(root, "--write") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not (root / "a" / "model.toml").exists()


def test_a_model_toml_that_is_there_stays(repository, capsys):
    root = repository(a="max_batch_size: 8")
    (root / "a" / "model.toml").write_text("max_batch = 5")
    assert convert(root, "--write") == 1
    assert capsys.readouterr().err == f"headrace: {root / 'a' / 'model.toml'}: is there already, and stays as it is\n"
    assert (root / "a" / "model.toml").read_text() == "max_batch = 5"


def test_a_model_is_called_as_its_directory(repository, monkeypatch, tmp_path_factory, capsys):
    root = repository(a='name: "a" max_batch_size: 8')
    monkeypatch.chdir(root / "a")
    assert convert(".") == 0
    other = tmp_path_factory.mktemp("elsewhere")
    (other / "a").symlink_to(root / "a")
    (root / "a").rename(root / "b")
    (other / "a").unlink()
    (other / "a").symlink_to(root / "b")
    assert convert(other / "a") == 0
    assert convert(root / "b") == 1
    assert "unexpected directory name 'b' for model 'a'" in capsys.readouterr().err


def test_there_must_be_something_to_convert(tmp_path, capsys):
    assert convert(tmp_path) == 2
    assert capsys.readouterr().err == f"headrace: {tmp_path}: no config.pbtxt here or in a directory below\n"


def test_a_line_break_in_a_name_does_not_break_the_comment(repository, capsys):
    root = repository(a=r'parameters { key: "a\nmax_batch = 3" value { string_value: "" } }')
    assert convert(root) == 0
    assert tomllib.loads(capsys.readouterr().out) == {"unit_dims": True}


def test_models_alone_still_asks_a_server(capsys):
    assert main(["models", "--url", "127.0.0.1:1", "--timeout-ms", "500"]) == 1
    assert capsys.readouterr().err.startswith("headrace: UNAVAILABLE")
