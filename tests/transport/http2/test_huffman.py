import pytest
from hpack.exceptions import HPACKDecodingError
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.transport.http2 import huffman

reference = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)


@pytest.fixture(autouse=True)
def _empty_memo():
    huffman._memo.clear()


def test_code_words_are_those_of_appendix_b():
    words = {symbol: (code, length) for symbol, code, length in huffman.code_words()}
    assert words == {symbol: (REQUEST_CODES[symbol], REQUEST_CODES_LENGTH[symbol]) for symbol in range(256)}


@pytest.mark.parametrize(
    ("encoded", "string"),
    [  # RFC 7541 C.4 and C.6
        ("f1e3c2e5f23a6ba0ab90f4ff", b"www.example.com"),
        ("a8eb10649cbf", b"no-cache"),
        ("25a849e95ba97d7f", b"custom-key"),
        ("25a849e95bb8e8b4bf", b"custom-value"),
        ("6402", b"302"),
        ("640eff", b"307"),
        ("aec3771a4b", b"private"),
        ("d07abe941054d444a8200595040b8166e082a62d1bff", b"Mon, 21 Oct 2013 20:13:21 GMT"),
        ("9d29ad171863c78f0b97c8e9ae82ae43d3", b"https://www.example.com"),
        ("9bd9ab", b"gzip"),
        ("", b""),
    ],
)
def test_examples_of_the_rfc(encoded, string):
    assert huffman.decode(bytes.fromhex(encoded)) == string


def test_every_symbol_after_every_symbol():
    for first in range(256):
        string = b"".join(bytes((first, second)) for second in range(256))
        assert huffman.decode(reference.encode(string)) == string


@given(st.binary(max_size=200))
def test_what_the_reference_encodes_is_decoded(string):
    encoded = reference.encode(string)
    assert huffman.decode(encoded) == string
    assert huffman.decode(encoded) == string  # the second time from the memo, where it is of its lengths


@settings(max_examples=500)
@given(st.binary(max_size=80) | st.lists(st.sampled_from([0x00, 0x07, 0x1F, 0xF8, 0xFE, 0xFF]), max_size=12).map(bytes))
@example(b"\xff\xff\xff\xff")
def test_accepts_and_refuses_what_the_reference_does(encoded):
    try:
        expected = decode_huffman(encoded)
    except HPACKDecodingError:
        with pytest.raises(ValueError, match="Huffman"):
            huffman.decode(encoded)
    else:
        assert huffman.decode(encoded) == expected


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(b"\x1c\x64\xff", id="h2spec 5.2/1: padding of eight bits and more"),
        pytest.param(b"\xff", id="padding alone, eight bits"),
        pytest.param(b"\x18", id="h2spec 5.2/2: padding of zeros"),
        pytest.param(b"\x1f\xff\xff\xff\xff", id="h2spec 5.2/3: EOS in the string"),
        pytest.param(b"\xff\xff\xff\xfc\x07", id="EOS, then a symbol and good padding"),
        pytest.param(b"\xff\xff\xff\xff\xff\xff\xff\xff", id="EOS in a string that could be remembered"),
    ],
)
def test_refused(encoded):
    for _ in range(2):  # a refusal is not remembered as anything else
        with pytest.raises(ValueError, match="Huffman"):
            huffman.decode(encoded)


def test_memo_holds_strings_of_middle_length_and_is_bounded():
    strings = [reference.encode(b"/package.Service/Method%05d" % i) for i in range(3000)]
    for encoded in strings:
        huffman.decode(encoded)
        assert len(huffman._memo) <= 1024
    assert strings[-1] in huffman._memo
    huffman._memo.clear()
    for string in (b"", b"4999812u", b"x" * 200):
        huffman.decode(reference.encode(string))
    assert huffman._memo == {}
