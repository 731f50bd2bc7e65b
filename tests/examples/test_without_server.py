"""An example without its server ends with a line, and no traceback."""

import wave

import pytest

NOWHERE = "127.0.0.1:9"  # discard: nobody listens


@pytest.mark.parametrize("name", ["digits", "filetype", "textline", "vad", "minilm"])
def test_one_line_says_who_does_not_answer(name, script, run, tmp_path, monkeypatch):
    if name == "minilm":
        pytest.importorskip("tokenizers")
    example = script(f"examples/{name}.py")
    recording = tmp_path / "silence.wav"
    with wave.open(str(recording), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(32_000))
    if name == "minilm":
        from tokenizers import Tokenizer, models

        Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
        monkeypatch.setattr(example, "TOKENIZER", tmp_path / "tokenizer.json")
    arguments = {"filetype": [__file__], "vad": [recording], "minilm": ["query", "sentence"]}.get(name, [])
    with pytest.raises(SystemExit) as end:
        run(example, *arguments, "--url", NOWHERE)
    assert str(end.value).startswith(f"{NOWHERE}: ")
    assert "\n" not in str(end.value)
