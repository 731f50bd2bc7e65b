import io
import shutil
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from e2e.server_process import Server

pytest.importorskip("tokenizers")

MODEL = Path(__file__).parents[2] / "models" / "minilm"


@pytest.fixture(scope="module")
def example(script):
    return script("examples/minilm.py")


@pytest.fixture(scope="module")
def repository(script, tmp_path_factory):
    """The model as it is exported from the installed package, with its model.toml."""
    export = script("models/minilm/export.py")
    try:
        distribution(export.PACKAGE)
    except PackageNotFoundError:
        pytest.skip(f"{export.PACKAGE} is not installed")
    root = tmp_path_factory.mktemp("repository")
    export.export(root / "minilm")
    shutil.copy(MODEL / "model.toml", root / "minilm")
    return root


@pytest.fixture(scope="module")
def server(repository):
    with Server(repository) as server:
        yield server


@pytest.fixture(autouse=True)
def _tokenizer(request, example, monkeypatch):
    if "repository" in request.fixturenames:
        monkeypatch.setattr(example, "TOKENIZER", request.getfixturevalue("repository") / "minilm" / "tokenizer.json")


SENTENCES = ["The market fell.", "Somebody plays an instrument on a stage in front of a few people.", "A cat sleeps."]


def test_ranks_by_meaning(run, example, server, repository):
    lines = run(example, "A man is playing a guitar.", *SENTENCES, "--url", server.address)
    assert [line[7:] for line in lines] == [SENTENCES[1], SENTENCES[2], SENTENCES[0]]
    cosines = [float(line[:5]) for line in lines]
    assert cosines[0] > 0.4
    assert cosines[1] < 0.3


def test_reads_sentences_from_standard_input(run, example, server, repository, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(["", *SENTENCES, ""])))
    assert len(run(example, "music", "--url", server.address)) == 3


def test_without_sentences_it_says_so(run, example, repository, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(" \n"))
    with pytest.raises(SystemExit, match="2"):
        run(example, "music")
    assert "no sentence to compare with" in capsys.readouterr().err


def test_without_the_vocabulary_it_names_what_writes_it(run, example, monkeypatch, tmp_path):
    monkeypatch.setattr(example, "TOKENIZER", tmp_path / "tokenizer.json")
    with pytest.raises(SystemExit, match="make models"):
        run(example, "music", "noise")
