"""HPACK, header compression for HTTP/2 (RFC 7541): a decoder, and an encoder that keeps no state.

The decoder is on the path of every request whose header block differs from the one before, which for several clients
is each of them: hence one flat loop, one list for both tables and no work per indexed field but an append.
"""

from collections.abc import Iterable
from functools import lru_cache
from itertools import chain

from headrace.transport.http2 import huffman

Field = tuple[bytes, bytes]

# Appendix A: the static table, indices 1 to 61.
_STATIC_TABLE = """
:authority; :method=GET; :method=POST; :path=/; :path=/index.html; :scheme=http; :scheme=https; :status=200;
:status=204; :status=206; :status=304; :status=400; :status=404; :status=500; accept-charset;
accept-encoding=gzip, deflate; accept-language; accept-ranges; accept; access-control-allow-origin; age; allow;
authorization; cache-control; content-disposition; content-encoding; content-language; content-length;
content-location; content-range; content-type; cookie; date; etag; expect; expires; from; host; if-match;
if-modified-since; if-none-match; if-range; if-unmodified-since; last-modified; link; location; max-forwards;
proxy-authenticate; proxy-authorization; range; referer; refresh; retry-after; server; set-cookie;
strict-transport-security; transfer-encoding; user-agent; vary; via; www-authenticate
"""
_STATIC_FIELDS: tuple[Field, ...] = tuple(
    (name.encode(), value.encode())
    for name, _, value in (field.strip().partition("=") for field in _STATIC_TABLE.split(";"))
)

FIELD_OVERHEAD = 32

# The capacity that a peer's table has before any SETTINGS (RFC 9113 Section 6.5.2).
_INITIAL_TABLE_SIZE = 4096

# A dynamic table size update to 0 (Section 6.3). It starts our first block on each connection: what `encode_stateless`
# wrote once is right for ever after, whatever SETTINGS_HEADER_TABLE_SIZE the peer sends.
TABLE_SIZE_ZERO = b"\x20"

# Patterns and masks of the representations (Section 6).
_INDEXED = 0x80
_INDEX_MASK = 0x7F
_INCREMENTAL = 0x40
_INCREMENTAL_MASK = 0x3F
_SIZE_UPDATE = 0x20
_SIZE_MASK = 0x1F
_LITERAL_MASK = 0x0F
_HUFFMAN = 0x80
_LENGTH_MASK = 0x7F

# Both tables are one list, in which index i is at i + 128, so that the octet of a short indexed field is its position.
_BASE = _INDEXED
_FIRST_DYNAMIC = _BASE + 1 + len(_STATIC_FIELDS)
_TABLE_START: tuple[Field, ...] = ((b"", b""),) * (_BASE + 1) + _STATIC_FIELDS

# What `Decoder.repeat` is about: the literal that inserts another value of the newest entry's name, the most octets of
# its value on the wire, and the most that those decode to.
_NEWEST_NAME = bytes((_INCREMENTAL | len(_STATIC_FIELDS) + 1,))
_SHORT_STRING = 20
_SHORT_VALUE = _SHORT_STRING * 8 // 5
_LONGEST_RUN = 256  # octets of indexed fields around it


def _field_size(field: Field) -> int:
    """Octets that a field counts for in the table (Section 4.1) and in a list (RFC 9113 Section 6.5.2)."""
    return FIELD_OVERHEAD + len(field[0]) + len(field[1])


_LARGEST_STATIC = max(map(_field_size, _STATIC_FIELDS))


class HpackError(Exception):
    """A block that RFC 7541 forbids: COMPRESSION_ERROR. The connection ends, for its table can be trusted no more."""


class HeaderListTooLarge(Exception):
    """A good block with more fields, or larger ones, than the limits allow. The table is in step, the list is lost."""


class Decoder:
    """Decodes the blocks of one connection, in the order in which they came.

    `max_table_size` is our SETTINGS_HEADER_TABLE_SIZE, in octets; `max_list_size` bounds the sum over the fields of a
    block of name + value + 32 octets, and `max_fields` their number. `version` grows with whatever may change the
    meaning of a block, so that a cache of decoded blocks can key on it; a block that changes it must not be cached.
    """

    def __init__(
        self, max_table_size: int = _INITIAL_TABLE_SIZE, max_list_size: int = 16384, max_fields: int = 128
    ) -> None:
        self.version = 0
        self._max_list_size = max_list_size
        self._max_fields = max_fields
        self._max_table_size = max_table_size
        self._capacity = min(max_table_size, _INITIAL_TABLE_SIZE)
        self._update_due = False
        self._table: list[Field] = list(_TABLE_START)
        self._size = 0
        # No entry, static or ever inserted, is larger. Times the number of fields it bounds a list without a sum.
        self._largest = _LARGEST_STATIC
        self._expected: bytes | None = None  # what the next block begins with if it is like the last
        self._expected_end = b""  # and what it ends with
        self._expected_name = b""
        self._highest = self._highest_end = 0  # of the dynamic indices in each; 0: there is none

    def __repr__(self) -> str:
        entries = len(self._table) - _FIRST_DYNAMIC
        return f"<Decoder entries={entries} size={self._size}/{self._capacity} version={self.version}>"

    @property
    def table(self) -> list[Field]:
        """A copy of the dynamic table, newest entry (index 62) first."""
        return self._table[_FIRST_DYNAMIC:]

    def limit_table(self, max_table_size: int) -> None:
        """Put another SETTINGS_HEADER_TABLE_SIZE of ours into force: call when the peer has acknowledged it.

        If the table's capacity is above it, the next block must begin with a size update (RFC 9113 Section 4.3.1).
        """
        self.version += 1
        self._expected = None
        self._max_table_size = max_table_size
        if self._capacity > max_table_size:
            self._update_due = True  # and stays so if the limit is raised before the next block (Section 4.2)

    def decode(self, block: bytes) -> list[Field]:
        """The fields of one whole block, in order. Never-indexed ones are not marked: nothing here sends them on.

        HpackError: the block is malformed, and the decoder of no more use. HeaderListTooLarge: the block was decoded to
        its end, but is above the limits; values past them were built only where the dynamic table needs them.
        """
        table = self._table
        limit = self._max_list_size
        fields: list[Field] = []
        append = fields.append
        literal_size = position = 0
        end = len(block)
        if self._update_due:
            self._require_update(block)
        try:
            while position < end:
                octet = block[position]
                if 0x80 < octet < 0xFF:  # an indexed field of one octet
                    append(table[octet])
                    position += 1
                    continue
                if octet >= _INDEXED:
                    index, position = _long_index(block, position)
                    append(table[_BASE + index])
                    continue
                if octet >= _INCREMENTAL:
                    mask = _INCREMENTAL_MASK
                elif octet >= _SIZE_UPDATE:
                    position = self._update_size(block, position)
                    continue
                else:
                    mask = _LITERAL_MASK
                    if literal_size > limit:
                        index, _ = _integer(block, position, mask)
                        table[_BASE + index]  # raises IndexError, as for a literal that is kept
                        position = _literal_end(block, position, mask)
                        continue
                index = octet & mask
                position += 1
                if index == mask:
                    index, position = _integer(block, position - 1, mask)
                if index:
                    name = table[_BASE + index][0]
                else:
                    name, position = _string(block, position)
                value, position = _string(block, position)
                field = (name, value)
                size = FIELD_OVERHEAD + len(name) + len(value)
                literal_size += size
                if literal_size <= limit:
                    append(field)
                if octet >= _INCREMENTAL:
                    self._insert(field, size)
        except IndexError:  # of `table` or of `block`
            raise HpackError("an index past the table, or a block that ends within a field") from None
        except ValueError as error:
            raise HpackError(str(error)) from None
        if literal_size + len(fields) * self._largest > limit or len(fields) > self._max_fields:
            self._check_list(fields, literal_size)
        return fields

    def expect(self, block: bytes, fields: list[Field], name: bytes) -> bool:
        """Prepares `repeat` for blocks like this one, the last, which was decoded to `fields`; False: it does not pay.

        It does for indexed fields around one literal that was inserted, the only field of that name.
        """
        names = [field[0] for field in fields]
        literal, self._highest = _indexed_run(block, 0)
        if names.count(name) != 1 or literal == len(block) or not _INCREMENTAL <= block[literal] < _INDEXED:
            return False
        end = _literal_end(block, literal, _INCREMENTAL_MASK)
        block_end, self._highest_end = _indexed_run(block, end)
        size = FIELD_OVERHEAD + len(name) + _SHORT_VALUE
        if (
            block_end != len(block)
            or len(block) > _LONGEST_RUN
            or self._table[_FIRST_DYNAMIC : _FIRST_DYNAMIC + 1] != [fields[names.index(name)]]
            or size > self._capacity
            or size + FIELD_OVERHEAD * len(fields) + sum(map(len, chain.from_iterable(fields))) > self._max_list_size
        ):
            return False
        self._largest = max(self._largest, size)
        self._expected = block[:literal] + _NEWEST_NAME
        self._expected_end = block[end:]
        self._expected_name = name
        self._move_expected(self._expected)
        return True

    def repeat(self, block: bytes) -> bytes | None:
        """The value of the literal in a block that is otherwise as `expect`ed; inserts it. None: `decode` the block.

        Most clients put another deadline on each call and insert it in the table, which moves every dynamic index by
        one: no two blocks are equal, but each can be told from the last. HpackError: as `decode`.
        """
        expected = self._expected
        if expected is None or not block.startswith(expected):
            return None
        start = len(expected) + 1
        end = len(block) - len(self._expected_end)
        if not start <= end <= start + _SHORT_STRING:
            return None
        octet = block[start - 1]
        if octet & _LENGTH_MASK != end - start or block[end:] != self._expected_end:
            return None
        value = block[start:end]
        if octet & _HUFFMAN:
            try:
                value = huffman.decode(value)
            except ValueError as error:
                raise HpackError(str(error)) from None
        self.version += 1
        table = self._table
        name = self._expected_name
        table.insert(_FIRST_DYNAMIC, (name, value))
        size = self._size + FIELD_OVERHEAD + len(name) + len(value)
        while size > self._capacity:
            evicted = table.pop()
            size -= FIELD_OVERHEAD + len(evicted[0]) + len(evicted[1])
        self._size = size
        if self._expected_end and _BASE + self._highest_end >= len(table):
            raise HpackError("an index past the table")
        self._move_expected(expected)
        return value

    def _move_expected(self, expected: bytes) -> None:
        """An entry was inserted: moves the dynamic indices, and expects nothing if an entry has been evicted."""
        if self._highest:
            self._highest += 1
        if self._expected_end:
            self._expected_end = _moved(self._expected_end)
            if self._highest_end:
                self._highest_end += 1
        self._expected = _moved(expected) if _BASE + self._highest < len(self._table) else None

    def _check_list(self, fields: list[Field], literal_size: int) -> None:
        """Raise HeaderListTooLarge if the list is. `literal_size` counts the literals that were left out too."""
        if len(fields) > self._max_fields:
            raise HeaderListTooLarge(f"more than {self._max_fields} header fields")
        size = FIELD_OVERHEAD * len(fields) + sum(map(len, chain.from_iterable(fields)))
        if max(size, literal_size) > self._max_list_size:
            raise HeaderListTooLarge(f"header list larger than {self._max_list_size} octets")

    def _insert(self, field: Field, size: int) -> None:
        """Add an entry, after eviction; one above the capacity leaves the table empty (Section 4.4)."""
        self.version += 1
        self._expected = None
        room = self._capacity - size
        if self._size > room:
            self._evict(max(room, 0))
            if room < 0:
                return
        self._table.insert(_FIRST_DYNAMIC, field)
        self._size += size
        if size > self._largest:
            self._largest = size

    def _evict(self, room: int) -> None:
        """Drop the oldest entries until the others take at most `room` octets."""
        pop = self._table.pop
        size = self._size
        while size > room:
            name, value = pop()
            size -= FIELD_OVERHEAD + len(name) + len(value)
        self._size = size

    def _require_update(self, block: bytes) -> None:
        """Raise unless the block begins with a size update, which `limit_table` has made due."""
        if not block or block[0] & ~_SIZE_MASK != _SIZE_UPDATE:
            raise HpackError("no table size update after the limit was lowered")

    def _update_size(self, block: bytes, position: int) -> int:
        """Apply the one or two size updates that may begin a block (Section 4.2); the position after them."""
        if position:
            raise HpackError("a table size update after the start of the block, or a third one")
        for _ in range(2):
            capacity, position = _integer(block, position, _SIZE_MASK)
            if capacity > self._max_table_size:
                raise HpackError(f"table size update to {capacity}, above {self._max_table_size}")
            self.version += 1
            self._expected = None
            self._update_due = False
            self._capacity = capacity
            self._evict(capacity)
            if position == len(block) or block[position] & ~_SIZE_MASK != _SIZE_UPDATE:
                break
        return position


def _integer(block: bytes, position: int, mask: int) -> tuple[int, int]:
    """The integer whose prefix is the octet at `position` under `mask`, and the position after it (Section 5.1).

    At most six octets, that is, below 2^36. ValueError: it is longer; IndexError: the block ends first.
    """
    value = block[position] & mask
    position += 1
    if value < mask:
        return value, position
    for shift in (0, 7, 14, 21, 28):
        octet = block[position]
        position += 1
        value += (octet & 0x7F) << shift
        if octet < 0x80:
            return value, position
    raise ValueError("an integer of more than six octets")


def _long_index(block: bytes, position: int) -> tuple[int, int]:
    """The index of the indexed field at `position`, and the position after it. ValueError: it is 0 (Section 6.1)."""
    index, position = _integer(block, position, _INDEX_MASK)
    if not index:
        raise ValueError("index 0")
    return index, position


def _string_span(block: bytes, position: int) -> tuple[int, int]:
    """Where the octets of the string literal at `position` begin and end (Section 5.2)."""
    length, start = _integer(block, position, _LENGTH_MASK)
    end = start + length
    if end > len(block):
        raise ValueError("a string that ends after its block")
    return start, end


def _string(block: bytes, position: int) -> tuple[bytes, int]:
    """The string literal at `position`, decoded, and the position after it (Section 5.2)."""
    octet = block[position]
    start = position + 1
    end = start + (octet & _LENGTH_MASK)
    if octet & _LENGTH_MASK == _LENGTH_MASK or end > len(block):
        start, end = _string_span(block, position)
    octets = block[start:end]
    return (huffman.decode(octets) if octet & _HUFFMAN else octets), end


def _literal_end(block: bytes, position: int, mask: int) -> int:
    """The position after the literal at `position`, whose index has this mask. Its strings' code goes unchecked."""
    index, position = _integer(block, position, mask)
    if not index:
        _, position = _string_span(block, position)
    _, position = _string_span(block, position)
    return position


def _indexed_run(block: bytes, position: int) -> tuple[int, int]:
    """The position after the indexed fields that begin at `position`, and the highest dynamic index, 0 for none."""
    highest = 0
    while position < len(block) and block[position] >= _INDEXED:
        index, position = _integer(block, position, _INDEX_MASK)
        if index > len(_STATIC_FIELDS):
            highest = max(highest, index)
    return position, highest


@lru_cache(1024)  # runs of the same few fields come round and round, as the table fills
def _moved(run: bytes) -> bytes:
    """Indexed fields, and the literal that may end them, when one more entry was inserted."""
    moved = bytearray()
    position = 0
    while position < len(run):
        if run[position] < _INDEXED:
            moved += run[position:]
            break
        index, position = _integer(run, position, _INDEX_MASK)
        start = len(moved)
        _append_integer(moved, index + (index > len(_STATIC_FIELDS)), _INDEX_MASK)
        moved[start] |= _INDEXED
    return bytes(moved)


_STATIC_INDEX = {field: index for index, field in reversed(list(enumerate(_STATIC_FIELDS, 1)))}
_STATIC_NAME_INDEX = {name: index for (name, _), index in _STATIC_INDEX.items()}


def encode_stateless(fields: Iterable[Field]) -> bytes:
    """A block that means the same whenever it is sent: static entries and literals without indexing alone.

    Names must be in lower case. No Huffman code: on these short blocks it would save the wire little and cost the peer
    its decoding. A connection's first block must begin with TABLE_SIZE_ZERO.
    """
    block = bytearray()
    for field in fields:
        index = _STATIC_INDEX.get(field)
        if index is not None:
            block.append(_INDEXED | index)
            continue
        name, value = field
        index = _STATIC_NAME_INDEX.get(name, 0)
        _append_integer(block, index, _LITERAL_MASK)
        if not index:
            _append_integer(block, len(name), _LENGTH_MASK)
            block += name
        _append_integer(block, len(value), _LENGTH_MASK)
        block += value
    return bytes(block)


def _append_integer(block: bytearray, value: int, mask: int) -> None:
    """Append `value` with a prefix of the width of `mask`, the other bits of the prefix being 0 (Section 5.1)."""
    if value < mask:
        block.append(value)
        return
    block.append(mask)
    value -= mask
    while value >= 0x80:
        block.append(value & 0x7F | 0x80)
        value >>= 7
    block.append(value)
