import mmap

import pytest

from headrace.engine.shared_memory import NoSharedMemory, Registered, SharedMemoryRegions
from headrace.errors import InvalidRequest, RegionExists, RegionNotFound, Unimplemented
from headrace.messages import Region

PAGE = mmap.ALLOCATIONGRANULARITY


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "key").write_bytes(bytes(range(256)) * (PAGE // 128))
    return tmp_path


@pytest.fixture
def regions(directory):
    return SharedMemoryRegions(directory)


def refused(regions, *what, error=InvalidRequest):
    with pytest.raises(error) as caught:
        regions.register(Registered(*what))
    return str(caught.value)


@pytest.mark.parametrize("key", ["/key", "key"])
@pytest.mark.parametrize("offset", [0, 3, PAGE, PAGE + 5])
def test_a_view_is_of_the_memory_itself(regions, directory, key, offset):
    regions.register(Registered("r", key, offset, 100))
    view = regions.view(Region("r", 10, 20))
    assert bytes(view) == bytes((offset + 10 + at) % 256 for at in range(20))
    view[:2] = b"ab"
    assert (directory / "key").read_bytes()[offset + 10 : offset + 12] == b"ab"


def test_views_end_with_the_region(regions):
    regions.register(Registered("r", "/key", 4, 100))
    assert len(regions.view(Region("r", 0, 100))) == 100
    assert len(regions.view(Region("r", 100, 0))) == 0
    with pytest.raises(
        InvalidRequest, match=r"Invalid offset for shared memory region: 'r'. It has 100 bytes, got offset 101"
    ):
        regions.view(Region("r", 101, 0))
    with pytest.raises(InvalidRequest, match="It has 100 bytes, got 100 from offset 1"):
        regions.view(Region("r", 1, 100))


def test_what_was_cut_off_is_not_touched(regions, directory):
    regions.register(Registered("r", "/key", 0, 2 * PAGE))
    (directory / "key").write_bytes(b"short")
    with pytest.raises(InvalidRequest, match="shared memory region 'r' has shrunk to 5 bytes"):
        regions.view(Region("r", 0, 6))
    assert bytes(regions.view(Region("r", 0, 5))) == b"short"


def test_names_are_taken_once_and_can_be_given_up(regions):
    regions.register(Registered("r", "/key", 0, 10))
    assert refused(regions, "r", "/key", 0, 10, error=RegionExists) == "shared memory region 'r' already in manager"
    view = regions.view(Region("r", 0, 10))
    regions.unregister("r")
    regions.unregister("r")
    with pytest.raises(RegionNotFound):
        regions.view(Region("r", 0, 10))
    assert bytes(view) == bytes(range(10))  # a request under way is not disturbed
    regions.register(Registered("r", "/key", 0, 10))
    regions.register(Registered("s", "/key", 0, 10))
    assert [region.name for region in regions.status("")] == ["r", "s"]
    assert regions.status("s") == [Registered("s", "/key", 0, 10)]
    regions.unregister("")
    assert regions.status("") == []
    with pytest.raises(RegionNotFound, match="Unable to find shared memory region: 's'"):
        regions.status("s")
    assert repr(regions) == "<SharedMemoryRegions 0 registered>"


@pytest.mark.parametrize("key", ["", "/", "/a/b", "../key", "..", ".", "a\0b", "x" * 300])
def test_keys_stay_in_the_directory(regions, key):
    assert "expected a POSIX shared memory name such as '/name'" in refused(regions, "r", key, 0, 10)


def test_what_cannot_be_mapped_says_why(regions, directory):
    assert refused(regions, "r", "/none", 0, 10) == (
        "Unable to open shared memory region: 'r', key '/none': No such file or directory"
    )
    (directory / "link").symlink_to("key")
    assert "Too many levels of symbolic links" in refused(regions, "r", "/link", 0, 10)
    (directory / "directory").mkdir()
    assert "Is a directory" in refused(regions, "r", "/directory", 0, 10)
    size = 2 * PAGE
    assert refused(regions, "r", "/key", 0, size + 1).endswith(
        f"Key '/key' has {size} bytes, got {size + 1} from offset 0"
    )
    assert "got 10 from offset" in refused(regions, "r", "/key", 2**64 - 1, 10)
    assert refused(regions, "r", "/key", 0, 0) == "shared memory region 'r' has a size of 0 bytes"
    assert refused(regions, "", "/key", 0, 10) == "a shared memory region needs a name"
    assert regions.status("") == []


def test_there_is_an_end_to_it(regions, monkeypatch):
    monkeypatch.setattr("headrace.engine.shared_memory.MAX_REGIONS", 2)
    for name in "ab":
        regions.register(Registered(name, "/key", 0, 10))
    assert "2 shared memory regions are registered" in refused(regions, "c", "/key", 0, 10)


def test_switched_off():
    with pytest.raises(Unimplemented, match=r"Client shared memory is disabled. Start the server with"):
        NoSharedMemory().view(Region("r", 0, 1))
