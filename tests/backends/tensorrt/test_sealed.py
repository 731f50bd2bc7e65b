import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.backends.tensorrt.sealed import MAC_BYTES, MAGIC, MOST_MANIFEST_BYTES, Unsealed, seal, unseal

KEY = bytes(range(32))
ABOUT = {"gpu": "H100", "sm": [9, 0], "kind": ".plan"}


def written(payload, about=ABOUT, key=KEY):
    return seal(key, about, payload) + payload


@given(st.binary(max_size=300), st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3))
def test_what_was_sealed_comes_back(payload, about):
    assert unseal(KEY, about, written(payload, about)) == payload


@given(st.binary(min_size=1, max_size=50), st.data())
def test_no_byte_can_be_another(payload, data):
    content = bytearray(written(payload))
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Unsealed):
        unseal(KEY, ABOUT, bytes(content))


@given(st.binary(min_size=1, max_size=50), st.data())
def test_nothing_can_be_missing_or_more(payload, data):
    content = written(payload)
    with pytest.raises(Unsealed):
        unseal(KEY, ABOUT, content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(Unsealed):
        unseal(KEY, ABOUT, content + data.draw(st.binary(min_size=1, max_size=5)))


@given(st.binary(max_size=300))
def test_other_files_are_none(content):
    with pytest.raises(Unsealed):
        unseal(KEY, ABOUT, content)
    with pytest.raises(Unsealed):
        unseal(KEY, ABOUT, MAGIC + content)


def test_another_key():
    with pytest.raises(Unsealed, match="its signature is not by the key"):
        unseal(bytes(32), ABOUT, written(b"plan"))


def test_another_file_of_the_same_key():
    with pytest.raises(Unsealed, match="written as another file"):
        unseal(KEY, ABOUT | {"gpu": "A100"}, written(b"plan"))


def test_a_payload_of_another_file():
    with pytest.raises(Unsealed, match="not what was signed"):
        unseal(KEY, ABOUT, seal(KEY, ABOUT, b"plan") + b"evil")


def test_a_manifest_is_read_only_after_its_signature(monkeypatch):
    def refuse(*_):
        raise AssertionError("the manifest was read")

    content = bytearray(written(b"plan"))
    content[len(MAGIC) + 10] ^= 1
    monkeypatch.setattr(json, "loads", refuse)
    with pytest.raises(Unsealed, match="its signature"):
        unseal(KEY, ABOUT, bytes(content))


def test_the_signature_stands_before_the_payload():
    """So that it can be checked, and forged, independently of how large the payload is."""
    assert len(seal(KEY, ABOUT, b"a")) == len(seal(KEY, ABOUT, b"b"))
    assert len(seal(KEY, ABOUT, b"")) > len(MAGIC) + 4 + MAC_BYTES


def test_descriptions_have_a_limit():
    with pytest.raises(ValueError, match="a manifest of"):
        seal(KEY, {"long": "x" * MOST_MANIFEST_BYTES}, b"")
