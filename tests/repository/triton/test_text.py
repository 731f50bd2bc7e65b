import pytest

from headrace.errors import ConfigError
from headrace.repository.triton.text import read_pbtxt


@pytest.fixture
def file(tmp_path):
    return tmp_path / "config.pbtxt"


def test_the_ways_to_write_lists_and_tables(file):
    file.write_text("""
        # a comment
        name: 'resnet'; max_batch_size: 8
        input [ { name: "a" data_type: TYPE_FP32 dims: [ 3, -1 ] }, { name: "b", dims: 1, dims: 2 } ]
        input { name: "c" reshape: { shape: [ ] } }
        parameters: { key: "k" value: { string_value: "v" } }
    """)
    message = read_pbtxt(file)
    assert [(i.name, list(i.dims), i.HasField("reshape")) for i in message.input] == [
        ("a", [3, -1], False),
        ("b", [1, 2], False),
        ("c", [], True),
    ]
    assert (message.name, message.max_batch_size, message.parameters["k"].string_value) == ("resnet", 8, "v")


@pytest.mark.parametrize(
    ("text", "line", "column", "what"),
    [
        ("\n  max_batch_sze: 8", 2, 3, 'has no field named "max_batch_sze"'),
        ('name: "a"\nname: "b"', 2, 7, 'should not have multiple "name" fields'),
        ("input {\n  data_type: FP32 }", 2, 14, "has no value named FP32"),
        ("max_batch_size: 99999999999", 1, 17, "Value out of range"),
        ('name: "a', 1, 7, "missing ending quote"),
        ("dynamic_batching { }\nsequence_batching { }", 2, 1, "another member of oneof"),
        ("input [ { } ", 1, 13, "Expected"),
    ],
)
def test_errors_name_file_line_and_column(file, text, line, column, what):
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_pbtxt(file)
    assert str(raised.value).startswith(f"{file}:{line}:{column}: ")
    assert what in str(raised.value)


def test_a_byte_order_mark_is_passed_over(file):
    file.write_bytes(b'\xef\xbb\xbfname: "m"\r\n')
    assert read_pbtxt(file).name == "m"


def test_a_file_that_cannot_be_read(file):
    with pytest.raises(ConfigError, match=r"config\.pbtxt: cannot be read: No such file"):
        read_pbtxt(file)
    file.write_bytes(b'name: "\xff"')
    with pytest.raises(ConfigError, match=r"config\.pbtxt: not UTF-8: byte 7 is 0xff"):
        read_pbtxt(file)
