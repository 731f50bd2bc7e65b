"""The example against a server of its own: it hears in a real recording what the model hears without a server."""

import sys
import wave
from importlib.metadata import distribution
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as grpcclient
from e2e.server_process import Server
from hypothesis import given
from hypothesis import strategies as st

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture(scope="session")
def example(script):
    return script("examples/vad.py")


@pytest.fixture(scope="session")
def recording():
    """30 seconds of a conversation, with a human's account of who speaks when beside it: sample.wav, sample.rttm."""
    return Path(str(distribution("pyannote.audio").locate_file("pyannote/audio/sample/sample.wav")))


@pytest.fixture(scope="session")
def repository(script, tmp_path_factory):
    """The shipped model, fetched anew."""
    root = tmp_path_factory.mktemp("models")
    script("models/vad/fetch.py").fetch(root / "vad")
    (root / "vad" / "model.toml").write_text((MODELS / "vad" / "model.toml").read_text())
    return root


@pytest.fixture(scope="module")
def url(repository):
    with Server(repository) as server:
        assert "WARNING" not in server.log
        yield server.address
        assert server.stop() == 0


@pytest.fixture
def client(url):
    with grpcclient.InferenceServerClient(url) as client:
        yield client


@pytest.fixture(scope="session")
def direct(repository):
    """The probabilities that the model gives of chunks, run by hand."""
    session = onnxruntime.InferenceSession(repository / "vad/1/model.onnx", providers=["CPUExecutionProvider"])

    def run(chunks):
        state, found = np.zeros((2, 1, 128), np.float32), []
        for chunk in chunks:
            output, state = session.run(None, {"input": chunk, "state": state, "sr": np.array(16_000)})
            found.append(output.item())
        return found

    return run


def test_segments_are_those_of_the_model_without_a_server(example, recording, client, direct):
    samples = example.read(recording)
    expected = direct(example.chunks(samples))
    (found,) = example.probabilities(client, [samples])
    assert found == pytest.approx(expected, abs=1e-6)
    assert len(found) == 938
    segments = example.segments(found, len(samples))
    assert segments == example.segments(expected, len(samples))
    assert len(segments) >= 3


def test_recordings_do_not_disturb_one_another(example, recording, client, direct):
    samples = example.read(recording)
    recordings = [samples, samples[::-1].copy(), samples[100_000:250_000], np.zeros(20_000, np.float32), samples[:700]]
    together = example.probabilities(client, recordings)
    assert [len(one) for one in together] == [938, 938, 293, 40, 2]
    for one, alone in zip(together, recordings, strict=True):
        assert one == pytest.approx(direct(example.chunks(alone)), abs=1e-6)


def test_it_agrees_with_a_human(example, recording, direct):
    samples = example.read(recording)
    milliseconds = len(samples) * 1000 // example.RATE

    def marked(segments):
        line = np.zeros(milliseconds, bool)
        for start, end in segments:
            line[round(start * 1000) : round(end * 1000)] = True
        return line

    turns = [line.split() for line in recording.with_suffix(".rttm").read_text().splitlines()]
    human = marked((float(turn[3]), float(turn[3]) + float(turn[4])) for turn in turns)
    ours = marked(example.segments(direct(example.chunks(samples)), len(samples)))
    agreed = float((human == ours).mean())
    assert agreed > 0.98
    assert f"for {agreed:.1%} of the time".replace("%", " %") in (MODELS / "vad" / "README.md").read_text()


def test_it_prints_a_table(example, run, recording, url, tmp_path, capsys):
    short = write_wav(tmp_path / "short.wav", np.zeros(8000, np.int16))
    printed = run(example, "--url", url, short, recording, tmp_path / "absent.wav")
    assert printed[0] == f"{short}: 0.50 s, 0.00 s of speech"
    assert printed[1].startswith(f"{recording}: 30.00 s, 22.")
    assert printed[2:] == [
        "     6.75 to    7.23",
        "     7.62 to   17.92",
        "    18.05 to   21.60",
        "    21.79 to   30.00",
    ]


def write_wav(path, samples, rate=16_000, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, samples.itemsize, rate, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    return path


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 44_100, 48_000])
def test_any_rate_is_read(example, tmp_path, rate):
    """A tone of 440 Hz is one at 16 kHz as well."""
    times = np.arange(rate) / rate
    tone = (12_000 * np.sin(2 * np.pi * 440 * times)).astype("<i2")
    samples = example.read(write_wav(tmp_path / "tone.wav", tone, rate))
    assert samples.dtype == np.float32
    assert len(samples) == 16_000
    middle = slice(100, -100)
    expected = 12_000 / 32_768 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    offset = np.argmax(np.correlate(samples[middle], expected[middle], "same")) - len(expected[middle]) // 2
    assert abs(offset) <= 1
    np.testing.assert_allclose(np.abs(samples[middle]).max(), 12_000 / 32_768, rtol=0.05)


def test_what_is_no_16_bit_mono_wav(example, tmp_path):
    stereo = write_wav(tmp_path / "stereo.wav", np.zeros(100, np.int16), channels=2)
    with pytest.raises(ValueError, match="2 channels of 16 bits, expected 1 of 16"):
        example.read(stereo)
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(ValueError, match="not a WAV file"):
        example.read(tmp_path / "text.wav")


def test_chunks_carry_the_end_of_the_one_before(example):
    samples = np.arange(1, 1200, dtype=np.float32)
    first, second, third = example.chunks(samples)
    assert {chunk.shape for chunk in (first, second, third)} == {(1, 576)}
    assert not first[0, :64].any()
    np.testing.assert_array_equal(first[0, 64:], samples[:512])
    np.testing.assert_array_equal(second[0], samples[448:1024])
    np.testing.assert_array_equal(third[0, : 64 + 175], samples[960:])
    assert not third[0, 64 + 175 :].any()
    assert example.chunks(samples[:0]) == []


@pytest.fixture(scope="session")
def silero():
    """Silero's own code, which imports PyTorch for other things."""
    path = Path(str(distribution("silero-vad").locate_file("silero_vad/utils_vad.py")))
    spec = spec_from_file_location("silero_utils", path)
    module = module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", MagicMock())
        spec.loader.exec_module(module)
    return module


@given(
    # runs of chunks of one probability: speech and silence last for more than a chunk
    st.lists(st.tuples(st.sampled_from([0.0, 0.2, 0.349, 0.35, 0.4, 0.5, 0.9]), st.integers(1, 12)), max_size=30),
    st.integers(0, 511),
)
def test_segments_are_those_of_silero(example, silero, runs, missing):
    probabilities = [probability for probability, count in runs for _ in range(count)]
    length = max(len(probabilities) * 512 - missing, 0)
    theirs = silero.get_speech_timestamps_from_probs(probabilities, audio_length_samples=length)
    ours = example.segments(probabilities, length)
    assert [(round(start * 16_000), round(end * 16_000)) for start, end in ours] == [
        (found["start"], found["end"]) for found in theirs
    ]
