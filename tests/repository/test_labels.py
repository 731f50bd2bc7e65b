import pytest

from headrace.errors import ModelLoadError
from headrace.repository.labels import read_labels


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        (b"cat\ndog\n", ("cat", "dog")),
        (b"cat\r\ndog", ("cat", "dog")),
        (b"cat\n\ndog", ("cat", "", "dog")),
        ("Käse\u2028x".encode(), ("Käse\u2028x",)),
        (b"\xef\xbb\xbfcat\r\n", ("cat",)),
        (b"", ()),
    ],
)
def test_a_line_is_a_label(tmp_path, content, labels):
    (tmp_path / "l.txt").write_bytes(content)
    assert read_labels(tmp_path / "l.txt") == labels


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ModelLoadError, match=r"labels in .*l\.txt: cannot be read: No such file"):
        read_labels(tmp_path / "l.txt")
    (tmp_path / "l.txt").write_bytes(b"a\xff")
    with pytest.raises(ModelLoadError, match=r"l\.txt: not UTF-8 at byte 1"):
        read_labels(tmp_path / "l.txt")
