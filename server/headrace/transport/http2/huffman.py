"""The Huffman code of HPACK (RFC 7541 Section 5.2 and Appendix B): decoding.

The code is canonical: code words are numbered by length, then by symbol. The symbols by length are therefore the
whole table; the decoding automaton is computed from them once, at import (about 30 ms and 5 MB).
"""

from collections.abc import Iterator

_SYMBOLS_BY_LENGTH: dict[int, bytes] = {
    5: b"012aceiost",
    6: b" %-./3456789=A_bdfghlmnpru",
    7: b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: b"&*,;XZ",
    10: b'!"()?',
    11: b"'+|",
    12: b"#>",
    13: b"\x00$@[]~",
    14: b"^}",
    15: b"<`{",
    19: bytes.fromhex("5c c3 d0"),
    20: bytes.fromhex("80 82 83 a2 b8 c2 e0 e2"),
    21: bytes.fromhex("99 a1 a7 ac b0 b1 b3 d1 d8 d9 e3 e5 e6"),
    22: bytes.fromhex("81 84 85 86 88 92 9a 9c a0 a3 a4 a9 aa ad b2 b5 b9 ba bb bd be c4 c6 e4 e8 e9"),
    23: bytes.fromhex("01 87 89 8a 8b 8c 8d 8f 93 95 96 97 98 9b 9d 9e a5 a6 a8 ae af b4 b6 b7 bc bf c5 e7 ef"),
    24: bytes.fromhex("09 8e 90 91 94 9f ab ce d7 e1 ec ed"),
    25: bytes.fromhex("c7 cf ea eb"),
    26: bytes.fromhex("c0 c1 c8 c9 ca cd d2 d5 da db ee f0 f2 f3 ff"),
    27: bytes.fromhex("cb cc d3 d4 d6 dd de df f1 f4 f5 f6 f7 f8 fa fb fc fd fe"),
    28: bytes.fromhex("02 03 04 05 06 07 08 0b 0c 0e 0f 10 11 12 13 14 15 17 18 19 1a 1b 1c 1d 1e 1f 7f dc f9"),
    30: bytes.fromhex("0a 0d 16"),  # and EOS, thirty ones, which no string may contain
}

# Strings that repeat (grpc-js sends its :path anew with each call) are remembered. Shorter ones decode about as fast as
# they are found, and among them are the timeouts that differ with every call and would only push the others out. Only a
# string known whole is found, so that timing gives nobody a way to guess another's piece by piece.
_MEMO_SHORTEST = 8
_MEMO_LONGEST = 64
_MEMO_ENTRIES = 1024
_memo: dict[bytes, bytes] = {}


def code_words() -> Iterator[tuple[int, int, int]]:
    """Each symbol as (symbol, code word, length in bits), by length; EOS is left out. Source: RFC 7541 Appendix B."""
    code = previous = 0
    for length, symbols in _SYMBOLS_BY_LENGTH.items():
        code <<= length - previous
        previous = length
        for symbol in symbols:
            yield symbol, code, length
            code += 1


# An automaton that reads n bits at a time: for each state, and each value of the n bits, the next state and the symbols
# that they completed. A state is an inner node of the code tree, that is, a prefix of code words; 0 is the root.
_Automaton = list[list[tuple[int, bytes]]]


def _one_bit_automaton() -> tuple[_Automaton, frozenset[int]]:
    """The code tree as an automaton, and the states in which a string may end.

    These are the prefixes of EOS of up to seven bits: padding (Section 5.2). EOS itself leads to a last state that
    nothing leaves.
    """
    symbols = {(length, code): bytes((symbol,)) for symbol, code, length in code_words()}
    eos = (30, (1 << 30) - 1)
    dead = len(symbols)  # a binary tree has one inner node less than leaves, here the symbols and EOS
    nodes = [(0, 0)]
    automaton: _Automaton = []
    for length, code in nodes:  # grows on the way
        row = []
        for bit in (0, 1):
            child = (length + 1, code << 1 | bit)
            if child in symbols:
                row.append((0, symbols[child]))
            elif child == eos:
                row.append((dead, b""))
            else:
                row.append((len(nodes), b""))
                nodes.append(child)
        automaton.append(row)
    automaton.append([(dead, b""), (dead, b"")])
    padding = frozenset(state for state, (length, code) in enumerate(nodes) if length < 8 and code == (1 << length) - 1)
    return automaton, padding


def _twice(automaton: _Automaton) -> _Automaton:
    """The automaton that does in one step what `automaton` does in two."""
    return [
        [(state, first + second) for middle, first in row for state, second in automaton[middle]] for row in automaton
    ]


def _octet_steps() -> tuple[list[tuple[int, bytes]], frozenset[int]]:
    """The automaton that reads octets, as one list indexed by state | octet, where states are multiples of 256."""
    one_bit, padding = _one_bit_automaton()
    octets = _twice(_twice(_twice(one_bit)))
    steps = [(state << 8, symbols) for row in octets for state, symbols in row]
    return steps, frozenset(state << 8 for state in padding)


_STEPS, _PADDING = _octet_steps()


def decode(data: bytes) -> bytes:
    """The string that `data` encodes.

    ValueError: it contains EOS, or the padding is not the first zero to seven bits of EOS (Section 5.2).
    """
    memorable = _MEMO_SHORTEST <= len(data) <= _MEMO_LONGEST
    if memorable and (known := _memo.get(data)) is not None:
        return known
    symbols: list[bytes] = []
    append = symbols.append
    steps = _STEPS
    state = 0
    for octet in data:
        state, completed = steps[state | octet]
        append(completed)
    if state not in _PADDING:
        raise ValueError("Huffman string with EOS in it or bad padding")
    string = b"".join(symbols)
    if memorable:
        if len(_memo) >= _MEMO_ENTRIES:
            _memo.clear()
        _memo[data] = string
    return string
