import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from PIL import Image, ImageDraw, ImageFont

from headrace.messages import Signature, TensorSpec
from headrace.pipeline.buckets import Buckets
from headrace.repository.model_config import load_model_config
from headrace.testing.requests import FakeWriter

TEXTLINE = Path(__file__).parents[2] / "models" / "textline"
LINES = [
    "Hi", "OK", "12:45", "Gate B7", "Room 4", "Total 42.50 EUR", "A line of text", "Invoice 2026-11-26",
    "Next train 12:07", "Fragile - handle with care", "Keep dry, this side up", "Thank you for your visit",
    "The quick brown fox jumps over the lazy dog", "Please keep this receipt for your records, thank you.",
    "Every request waits for no longer than its deadline allows it to",
]  # fmt: skip


@pytest.fixture(scope="module")
def fetch(script):
    return script("textline/fetch.py")


@pytest.fixture(scope="module")
def fetched(fetch, tmp_path_factory):
    try:
        distribution(fetch.PACKAGE)
    except PackageNotFoundError:
        pytest.skip(f"{fetch.PACKAGE} is not installed")
    directory = tmp_path_factory.mktemp("textline")
    fetch.fetch(directory)
    return directory


@pytest.fixture(scope="module")
def session(fetched):
    return onnxruntime.InferenceSession(fetched / "1" / "model.onnx", providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def characters(fetched):
    return json.loads((fetched / "characters.json").read_text())["characters"]


@pytest.fixture(scope="module")
def buckets():
    config = load_model_config(TEXTLINE / "model.toml")
    signature = Signature(
        (TensorSpec("x", "FP32", config.inputs["x"].dims),), (TensorSpec("softmax_11.tmp_0", "FP32", (-1, 6625)),), 8
    )
    return Buckets(config.buckets, signature, {"x": config.inputs["x"].pad})


def drawn(text):
    """FP32 [1,3,48,W]: the text in black on white."""
    font = ImageFont.load_default(32)
    image = Image.new("RGB", (int(font.getlength(text)) + 14, 48), "white")
    ImageDraw.Draw(image).text((7, 5), text, fill="black", font=font)
    return (np.asarray(image, np.float32) / 127.5 - 1).transpose(2, 0, 1)[np.newaxis].copy()


def text_of(probabilities, characters):
    best = probabilities.argmax(axis=1)
    counts = (best != 0) & np.append(True, best[1:] != best[:-1])
    return "".join(characters[index] for index in best[counts]).strip()


# --- what is fetched --------------------------------------------------------------------------------------------------


def test_characters_name_the_columns_of_the_output(session, characters):
    ((x,), (y,)) = session.get_inputs(), session.get_outputs()
    assert (x.name, x.type, x.shape[1]) == ("x", "tensor(float)", 3)
    assert (y.name, y.type, y.shape[2]) == ("softmax_11.tmp_0", "tensor(float)", 6625)
    assert len(characters) == 6625
    assert (characters[0], characters[-1]) == ("", " ")
    assert set("0123456789abcXYZ-.,") <= set(characters)


def test_the_model_card_explains_every_key_of_characters_json(fetched):
    card = (TEXTLINE / "README.md").read_text()
    assert [key for key in json.loads((fetched / "characters.json").read_text()) if f"`{key}`" not in card] == []


def test_what_is_there_is_not_fetched_again(fetch, fetched, monkeypatch):
    monkeypatch.setattr(fetch, "HERE", fetched)
    monkeypatch.setattr(fetch, "distribution", lambda name: pytest.fail("looked for the package"))
    fetch.main()


@pytest.mark.parametrize("damage", ["model", "characters", "version"])
def test_what_is_missing_or_old_is_fetched(fetch, fetched, monkeypatch, damage):
    characters = fetched / "characters.json"
    expected = characters.read_text()
    if damage == "model":
        (fetched / "1" / "model.onnx").unlink()
    elif damage == "characters":
        characters.unlink()
    else:
        characters.write_text('{"version": "0.1"}')
    monkeypatch.setattr(fetch, "HERE", fetched)
    fetch.main()
    assert characters.read_text() == expected
    assert (fetched / "1" / "model.onnx").is_file()


def test_a_missing_package_is_named_with_the_command_that_installs_it(fetch, monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(fetch, "distribution", absent)
    command = r"pip install --no-deps --ignore-requires-python rapidocr-onnxruntime==1\.4\.4"
    with pytest.raises(SystemExit, match=f"not installed; run: {command}"):
        fetch.installed()


def test_another_version_is_refused(fetch, monkeypatch):
    monkeypatch.setattr(fetch, "distribution", lambda name: SimpleNamespace(version="2.0"))
    with pytest.raises(SystemExit, match=r"installed as 2\.0"):
        fetch.installed()


# --- its buckets ------------------------------------------------------------------------------------------------------


def test_replies_are_as_long_as_the_model_would_make_them_unpadded(session, buckets):
    """From 5 columns on: of fewer the model makes one, and the rule none."""
    for width in (5, 8, 11, 12, 13, 16, 20, 21, 57, 64, 65, 100, 101, 199, 200):
        (alone,) = session.run(None, {"x": np.zeros((1, 3, 48, width), np.float32)})
        fit, ((_, _, bucket),) = buckets.fit([(3, 48, width)], "textline")
        padded = np.zeros((1, (bucket + 3) // 8, 6625), np.float32)
        _, shapes, _ = buckets.crop(FakeWriter(), fit, (0,)).encode(b"", [padded.tobytes()], (padded.shape,))
        assert shapes == (alone.shape,), width


def test_lines_that_share_padded_batches_are_read_as_if_alone(session, buckets, characters):
    """All lines of a bucket in one batch; what is read is what ONNX Runtime reads of the line alone, unpadded."""
    lines = {text: drawn(text) for text in LINES}
    members = {}
    for text, x in lines.items():
        fit, (shape,) = buckets.fit([x.shape[1:]], "textline")
        members.setdefault(shape, []).append((fit, text))
    deviations = []
    for shape, found in members.items():
        whole = (len(found), *shape)
        ((packed,),) = buckets.pack(
            [(fit, 1) for fit, _ in found], [[lines[text].tobytes() for _, text in found]], [whole]
        )
        batch = np.frombuffer(packed, np.float32).reshape(whole)
        (outputs,) = session.run(None, {"x": batch})
        for output, (fit, text) in zip(outputs, found, strict=True):
            (raw,), (cut,), _ = buckets.crop(FakeWriter(), fit, (0,)).encode(
                b"", [output.tobytes()], ((1, *output.shape),)
            )
            padded = np.frombuffer(raw, np.float32).reshape(cut)[0]
            alone = session.run(None, {"x": lines[text]})[0][0]
            assert padded.shape == alone.shape
            assert text_of(padded, characters) == text_of(alone, characters)
            deviations.append(np.abs(padded - alone).max(axis=1).mean())
    assert len(members) < len(lines)  # some do share
    assert np.mean(deviations) < 0.05


def test_lines_are_read(session, characters):
    read = [text_of(session.run(None, {"x": drawn(text)})[0][0], characters) for text in LINES]
    right = sum(text == found for text, found in zip(LINES, read, strict=True))
    assert right >= len(LINES) - 2, read
