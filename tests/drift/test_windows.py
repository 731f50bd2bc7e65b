import errno
import json
import os

import numpy as np
import pytest
from drift.conftest import WINDOW_MS, reference_of

from headrace.drift import packing
from headrace.drift.errors import DriftError
from headrace.drift.packing import pack, read_bounded, unpack, write_atomically
from headrace.drift.windows import Record, merge_records, unpack_record

START = 1_000 * WINDOW_MS


@pytest.fixture
def plan(random):
    return reference_of(random.normal(size=(500, 2))).tensors["inputs.x"][0]


def record(plan, rows_at, keep=4, **of):
    """A record of rows at some times."""
    made = Record(**({"model": "m", "version": "1", "window_ms": WINDOW_MS, "keep": keep} | of))
    made.plans[plan.watch.key] = plan
    for now_ms, rows in rows_at:
        window = made.at(now_ms)
        window.offered += 2 * len(rows)
        window.add(plan, plan.extractor()(rows))
    return made


def counts(made):
    return {start: (window.offered, window.sampled) for start, window in sorted(made.windows.items())}


def test_windows_begin_at_multiples_of_their_length(plan, random):
    rows = random.normal(size=(10, 2))
    times = (START, START + WINDOW_MS - 1, START + WINDOW_MS, START + 3 * WINDOW_MS)
    made = record(plan, [(at, rows) for at in times])
    assert counts(made) == {START: (40, 20), START + WINDOW_MS: (20, 10), START + 3 * WINDOW_MS: (20, 10)}
    assert made.ended(START + 2 * WINDOW_MS - 1) == [START]
    assert made.ended(START + 4 * WINDOW_MS) == sorted(made.windows)
    assert repr(made) == "<Record of m/1: 3 of 4 windows>"


def test_only_the_newest_are_kept(plan, random):
    rows = random.normal(size=(10, 2))
    made = record(plan, [(START + at * WINDOW_MS, rows) for at in range(7)])
    assert sorted(made.windows) == [START + at * WINDOW_MS for at in (3, 4, 5, 6)]


def test_windows_of_a_clock_that_was_ahead_are_the_first_to_be_forgotten(plan, random):
    """Else there would be no place for any until that time has come."""
    rows = random.normal(size=(10, 2))
    made = record(plan, [(START + at * WINDOW_MS, rows) for at in (0, 1, 900, 901, 902, 903, 2, 3, 4, 5)])
    assert sorted(made.windows) == [START + at * WINDOW_MS for at in (2, 3, 4, 5)]


def test_merged_windows(plan, random):
    rows = random.normal(size=(10, 2))
    made = record(plan, [(START + at * WINDOW_MS, rows) for at in (0, 1, 3)])
    whole = made.merged(START + 4 * WINDOW_MS, 3)
    assert (whole.start_ms, whole.offered, whole.sampled) == (START + WINDOW_MS, 40, 20)
    assert counts(made) == {START + at * WINDOW_MS: (20, 10) for at in (0, 1, 3)}, "they stay as they are"
    assert made.merged(START, 5).sampled == 0


def test_records_of_replicas_are_one(plan, random):
    rows = random.normal(size=(300, 2))
    times = [START + at % 3 * WINDOW_MS for at in range(30)]
    parts = np.array_split(rows, 30)
    whole = record(plan, zip(times, parts, strict=True))
    split = [record(plan, list(zip(times, parts, strict=True))[at::2]) for at in range(2)]
    merged = merge_records(split)
    assert counts(merged) == counts(whole)
    for start, window in whole.windows.items():
        found = merged.windows[start].tallies["inputs.x"]
        np.testing.assert_array_equal(found.histogram, window.tallies["inputs.x"].histogram)


def test_what_cannot_be_merged(plan, random):
    rows = random.normal(size=(10, 2))
    made = record(plan, [(START, rows)])
    with pytest.raises(DriftError, match="expected one of m/1 of 60000 ms"):
        made.merge(record(plan, [], version="2"))
    with pytest.raises(DriftError, match="expected one of m/1 of 60000 ms"):
        made.merge(record(plan, [], window_ms=1000))
    other = reference_of(random.normal(size=(300, 2))).tensors["inputs.x"][0]
    with pytest.raises(DriftError, match=r"inputs\.x was counted by another plan"):
        made.merge(record(other, [(START, rows)]))
    with pytest.raises(DriftError, match="no records to merge"):
        merge_records([])


def test_a_record_is_read_as_written(plan, random):
    made = record(plan, [(START + at * WINDOW_MS, random.normal(size=(50, 2))) for at in range(3)])
    again, extra = unpack_record(made.pack({"a": 1}))
    assert extra == {"a": 1}
    assert counts(again) == counts(made)
    again.merge(made)
    assert [sampled for _, sampled in counts(again).values()] == [100] * 3


def test_damaged_and_foreign_octets_are_refused(plan, random):
    data = record(plan, [(START, random.normal(size=(50, 2)))]).pack({})
    for at in random.integers(0, len(data), 50):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        with pytest.raises(DriftError):
            unpack_record(bytes(damaged))
    for cut in (0, 5, 40, len(data) - 1):
        with pytest.raises(DriftError):
            unpack_record(data[:cut])
    with pytest.raises(DriftError, match="it does not begin as one"):
        unpack_record(b"PK\x03\x04" + data)


def test_another_version_is_named(monkeypatch):
    monkeypatch.setattr(packing, "VERSION", 7)
    data = pack({}, {})
    monkeypatch.undo()
    with pytest.raises(DriftError, match="of version 7, expected 1"):
        unpack(data)


def test_what_is_whole_but_no_record_is_refused():
    with pytest.raises(DriftError, match="no record of drift windows: KeyError: 'model'"):
        unpack_record(pack({}, {}))


def test_arrays_of_other_types_are_not_made():
    text = json.dumps({"arrays": [["a", "|O", [1]]]}).encode()
    body = packing._HEAD.pack(packing.MAGIC, packing.VERSION, 0, len(text)) + text
    with pytest.raises(DriftError, match=r"an array of \|O"):
        unpack(body + packing._digest(body))


def test_arrays_are_read_as_written():
    arrays = {"a": np.arange(6).reshape(2, 3), "b": np.array([np.inf, -0.5], ">f4"), "c": np.zeros(0, np.uint8)}
    head, found = unpack(pack({"x": [1]}, arrays))
    assert head == {"x": [1]}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_file_is_replaced_at_once_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "state"
    write_atomically(path, b"old")

    def full(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(packing.os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_is_written_to(tmp_path):
    """Such as /dev/stdout, which root could replace by a file, for everybody."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDWR)
    try:
        write_atomically(path, b"new")
        assert os.read(reader, 10) == b"new"
    finally:
        os.close(reader)
    assert path.is_fifo()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path, b"new")


def test_who_reads_while_it_is_written_sees_all_of_one(tmp_path):
    path = tmp_path / "state"
    write_atomically(path, b"old")
    with path.open("rb") as reader:
        write_atomically(path, b"newer")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"newer"


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "state"
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(DriftError, match="larger than 4 octets"):
        read_bounded(path, 4)


def test_a_file_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    file = tmp_path / "drift.json"
    with pytest.raises(OSError, match=f"cannot be written: No space left on device: '{file}'"):
        write_atomically(file, b"data")
    assert list(tmp_path.iterdir()) == []
