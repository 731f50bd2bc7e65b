import pytest

from headrace.transport import open_files
from headrace.transport.open_files import SPARE_FILES, most_connections

INFINITY = -1


class System:
    """The limits of a process. hard: beyond which it cannot ask."""

    RLIM_INFINITY = INFINITY
    RLIMIT_NOFILE = 7

    def __init__(self, files, hard):
        self.files, self.hard = files, hard

    def getrlimit(self, which):
        assert which == self.RLIMIT_NOFILE
        return self.files, self.hard

    def setrlimit(self, which, limits):
        assert which == self.RLIMIT_NOFILE
        assert limits[1] == self.hard
        assert self.hard == INFINITY or limits[0] <= self.hard
        self.files = limits[0]


@pytest.mark.parametrize(
    ("files", "hard", "expected", "asked"),
    [
        (INFINITY, INFINITY, (4096, 512), INFINITY),
        (1 << 20, 1 << 20, (4096, 512), 1 << 20),
        (1024, 1 << 20, (4096, 512), 4608 + SPARE_FILES),
        (1024, INFINITY, (4096, 512), 4608 + SPARE_FILES),
        (1024, 2504, (2048, 256), 2504),
        (1024, 1024, (733, 91), 1024),
        (SPARE_FILES + 2, SPARE_FILES + 2, (1, 1), SPARE_FILES + 2),
        (20, 20, (1, 1), 20),
    ],
)
def test_shares_of_the_files(monkeypatch, caplog, files, hard, expected, asked):
    system = System(files, hard)
    monkeypatch.setattr(open_files, "resource", system)
    assert most_connections(4096, 512) == expected
    assert system.files == asked
    less = f"limited to {expected[0]} of 4096 (http2.max_connections) and {expected[1]} of 512 (http.max_connections)"
    assert (less in caplog.text) == (expected != (4096, 512))


def test_a_system_without_the_limit(monkeypatch):
    monkeypatch.setattr(open_files, "resource", None)
    assert most_connections(4096, 512) == (4096, 512)
