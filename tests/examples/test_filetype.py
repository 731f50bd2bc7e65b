import bz2
import csv
import gzip
import json
import lzma
import pickle
import sqlite3
import struct
import tarfile
import wave
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from examples.model_server import ModelServer, serving
from hypothesis import given, settings
from hypothesis import strategies as st

magika = pytest.importorskip("magika")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def example(script):
    return script("examples/filetype.py")


@pytest.fixture(scope="session")
def fetched(script, tmp_path_factory):
    """The model and labels.json, fetched out of the installed package."""
    directory = tmp_path_factory.mktemp("filetype")
    script("models/filetype/fetch.py").fetch(directory)
    return directory


@pytest.fixture(scope="session")
def url(fetched):
    with serving(ModelServer({"filetype": fetched / "1" / "model.onnx"})) as address:
        yield address


@pytest.fixture(scope="session")
def ask(example, fetched, url):
    """Our own answer for a path: (type, score)."""
    parameters = json.loads((fetched / "labels.json").read_text())
    client = example.grpcclient.InferenceServerClient(url)
    yield lambda path: example.identify(client, path, parameters)
    client.close()


@pytest.fixture(scope="session")
def reference():
    """Magika's own answer for a path: (type, score)."""
    tool = magika.Magika()

    def answer(path):
        result = tool.identify_path(path)
        return str(result.output.label), result.score

    return answer


def png():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(range(48)) for _ in range(16))
    header = struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


TEXT = "".join(f"Line {i} of some prose that says nothing about what it is.\n" for i in range(200))
NOISE = np.random.default_rng(7)

CONTENTS = {
    "empty": b"",
    "one_byte": b"x",
    "seven_bytes": b"seven!!",
    "seven_binary": b"\xff\xfe\x00\x01\x02\x80\x81",
    "eight_bytes": b"print(1)",
    "only_spaces": b" \t\n" * 3000,
    "few_after_spaces": b" " * 50 + b"abc" + b"\n" * 50,
    "late_content": b"\n" * 5000 + b"import os\nprint(os.getcwd())\n" * 20,
    "binary_after_spaces": b" " * 4093 + b"\xff\xfe\x80" + b"import os\n" * 20,
    "split_character": b" " * 4095 + "é".encode() + b"import os\n" * 20,
    "spaced.py": b"\n\n\n   " + b"import os\n\n\ndef f(x):\n    return os.path.join(x, 'a')\n" * 5 + b"\n \n" * 700,
    "block_exactly": (TEXT * 2).encode()[:4096],
    "block_and_one": (TEXT * 2).encode()[:4097],
    "noise": NOISE.bytes(20_000),
    "noise_short": NOISE.bytes(300),
    "letters": bytes(NOISE.choice(list(b"abcdefghij \n"), 5000).astype(np.uint8)),
    "prose.txt": TEXT.encode(),
    "page.html": b"<!DOCTYPE html>\n<html><head><title>x</title></head><body><p>hello</p></body></html>\n",
    "data.json": json.dumps({f"key{i}": [i, str(i), None] for i in range(50)}).encode(),
    "style.css": b"body { margin: 0; color: #333; }\n.a > .b:hover { display: none; }\n" * 9,
    "code.c": b'#include <stdio.h>\n\nint main(void) {\n  printf("%d\\n", 3);\n  return 0;\n}\n',
    "code.rs": b'fn main() {\n    let v: Vec<u32> = (0..3).collect();\n    println!("{:?}", v);\n}\n',
    "code.sql": b"SELECT a.id, b.name FROM a JOIN b ON a.id = b.a_id WHERE b.name LIKE 'x%' ORDER BY 1;\n",
    "code.sh": b'#!/bin/sh\nset -eu\nfor f in *.txt; do\n  echo "$f"\ndone\n',
    "image.png": png(),
    "text.gz": gzip.compress(TEXT.encode(), mtime=0),
    "text.bz2": bz2.compress(TEXT.encode()),
    "text.xz": lzma.compress(TEXT.encode()),
    "object.pickle": pickle.dumps({"a": list(range(300)), "b": TEXT[:99]}),
}


OWN = ("train.py", "README.md", "metrics.json", "heldout.npz", "1/model.onnx")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Files of many types, made here, and some of the project's own."""
    here = tmp_path_factory.mktemp("corpus")
    for name, content in CONTENTS.items():
        (here / name).write_bytes(content)
    np.save(here / "array.npy", np.arange(500.0))
    with zipfile.ZipFile(here / "archive.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo("a/b.txt"), TEXT)
    with tarfile.open(here / "archive.tar", "w") as archive:
        archive.add(here / "prose.txt", "prose.txt")
    with wave.open(str(here / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(np.sin(np.arange(4000)).astype("<f2").tobytes())
    with (here / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([i, i * i, f"name {i}"] for i in range(100))
    database = sqlite3.connect(here / "base.sqlite")
    database.execute("CREATE TABLE t (a INTEGER, b TEXT)")
    database.commit()
    database.close()
    own = [
        "pyproject.toml",
        ".gitignore",
        "models/digits/train.py",
        "models/digits/README.md",
        "models/digits/metrics.json",
    ]
    return [*sorted(here.iterdir()), *(ROOT / path for path in own), ROOT / "models/digits/1/model.onnx"]


def test_agrees_with_magika_on_files_of_many_types(ask, reference, corpus):
    ours = {path.name: ask(path) for path in corpus}
    theirs = {path.name: reference(path) for path in corpus}
    assert {name: kind for name, (kind, _) in ours.items()} == {name: kind for name, (kind, _) in theirs.items()}
    assert [score for _, score in ours.values()] == pytest.approx([score for _, score in theirs.values()], abs=1e-4)
    assert len({kind for kind, _ in ours.values()}) >= 20


# dense in what the rules turn upon: whitespace at the ends, few bytes, bytes that are not UTF-8
PIECES = st.sampled_from(
    [b" ", b"\n\t", b"\x0b\x0c\r", b"\x00", b"a", b"\xff", b"\xc3\xa9", b"word ", b"\n" * 1500, b"x" * 1030]
)


@settings(max_examples=40)
@given(st.lists(PIECES, max_size=12).map(b"".join))
def test_agrees_with_magika_on_any_bytes(ask, reference, tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any_bytes"
    path.write_bytes(content)
    kind, score = ask(path)
    expected, expected_score = reference(path)
    assert kind == expected
    assert score == pytest.approx(expected_score, abs=1e-4)


def test_a_label_that_misses_its_own_threshold_is_named_by_its_kind(example):
    parameters = {
        "labels": ["markdown", "zip", "randombytes", "notes"],
        "thresholds": {"markdown": 0.75, "notes": 0.9},
        "default_threshold": 0.5,
        "renamed": {"randombytes": "unknown", "notes": "markdown"},
        "text": ["markdown", "txt"],
    }

    def shown(*scores):
        return example.name(np.array(scores), parameters)[0]

    assert shown(0.75, 0.2, 0.05, 0.0) == "markdown"
    assert shown(0.74, 0.2, 0.06, 0.0) == "txt"
    assert shown(0.3, 0.5, 0.2, 0.0) == "zip"
    assert shown(0.3, 0.4, 0.3, 0.0) == "unknown"
    assert shown(0.0, 0.1, 0.9, 0.0) == "unknown"
    assert shown(0.0, 0.1, 0.0, 0.9) == "markdown"
    assert shown(0.0, 0.2, 0.0, 0.8) == "txt"  # the threshold is the label's, the kind that of the name shown


def test_prints_a_line_for_each_file(run, example, url, fetched, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(example, "LABELS", fetched / "labels.json")
    files = [path for path in corpus if path.name in ("spaced.py", "empty", "image.png")]
    printed = run(example, "--url", url, *files, tmp_path, tmp_path / "absent")
    assert [line.split(": ")[1] for line in printed] == [
        "empty (1.00)",
        "png (1.00)",
        "python (1.00)",
        "Is a directory",
        "No such file or directory",
    ]
