import logging
import os
import stat
import threading
from queue import SimpleQueue

import pytest

from headrace.backends.private import PrivateDirectory, Unsafe


@pytest.fixture
def directory(tmp_path):
    opened = PrivateDirectory(tmp_path / "a" / "b")
    yield opened
    opened.close()


def test_made_for_nobody_else(tmp_path, directory):
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    directory.write("file", b"one", b"two")
    assert stat.S_IMODE((tmp_path / "a" / "b" / "file").stat().st_mode) == 0o600
    assert directory.read("file") == b"onetwo"
    assert set(directory.files()) == {"file"}
    assert repr(directory) == f"<PrivateDirectory {tmp_path}/a/b>"


def test_opened_again(tmp_path):
    for _ in range(2):
        PrivateDirectory(tmp_path / "d").close()


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701, 0o770, 0o1777])
def test_a_directory_of_others_is_refused(tmp_path, mode):
    (tmp_path / "d").mkdir()
    (tmp_path / "d").chmod(mode)
    with pytest.raises(Unsafe, match=f"d has mode {mode:04o}, expected 0700: others can use it"):
        PrivateDirectory(tmp_path / "d")


def test_a_directory_of_another_user_is_refused(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir(mode=0o700)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(Unsafe, match=f"d belongs to user {owner}, expected {owner + 1}, who runs the server"):
        PrivateDirectory(tmp_path / "d")


def test_links_and_files_are_no_directories(tmp_path):
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to("absent")
    for name in ("link", "file", "nowhere"):
        with pytest.raises(Unsafe, match="is a symbolic link or no directory, expected a directory"):
            PrivateDirectory(tmp_path / name)


def test_no_descriptor_is_left_behind(tmp_path):
    (tmp_path / "d").mkdir(mode=0o755)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(Unsafe):
        PrivateDirectory(tmp_path / "d")
    assert set(os.listdir("/proc/self/fd")) == before


def test_files_that_are_not_the_users_alone(tmp_path, directory):
    inside = tmp_path / "a" / "b"
    (tmp_path / "elsewhere").write_bytes(b"x")
    (inside / "link").symlink_to(tmp_path / "elsewhere")
    (inside / "open").write_bytes(b"x")
    (inside / "open").chmod(0o640)
    os.mkfifo(inside / "pipe", 0o600)
    (inside / "folder").mkdir()
    for name, why in (
        ("link", "symbolic link"),
        ("open", "has mode 0640, expected 0600"),
        ("pipe", "expected, a file"),
    ):
        with pytest.raises(Unsafe, match=why):
            directory.read(name)
    with pytest.raises((Unsafe, IsADirectoryError)):
        directory.read("folder")
    assert directory.read("absent") is None


def test_files_of_another_user(directory, monkeypatch):
    directory.write("file", b"x")
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(Unsafe, match=f"file belongs to user {owner}"):
        directory.read("file")


def test_another_directory_in_its_place_changes_nothing(tmp_path, directory):
    directory.write("file", b"mine")
    (tmp_path / "a" / "b").rename(tmp_path / "a" / "moved")
    (tmp_path / "a" / "b").mkdir()
    (tmp_path / "a" / "b" / "file").write_bytes(b"theirs")
    assert directory.read("file") == b"mine"


def test_a_link_is_replaced_not_followed(tmp_path, directory):
    (tmp_path / "elsewhere").write_bytes(b"kept")
    for name in ("file", "file.tmp"):
        (tmp_path / "a" / "b" / name).symlink_to(tmp_path / "elsewhere")
    directory.write("file", b"new")
    assert directory.read("file") == b"new"
    assert (tmp_path / "elsewhere").read_bytes() == b"kept"


def test_a_file_is_whole_or_not_there(tmp_path, directory):
    directory.write("file", b"old")

    class Broken:
        def __iter__(self):
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        directory.write("file", *Broken())
    with pytest.raises(TypeError):
        directory.write("file", b"half", None)
    assert directory.read("file") == b"old"


def test_removing_and_touching_what_is_not_there(directory):
    directory.remove("absent")
    directory.touch("absent")
    assert directory.files() == {}


@pytest.fixture
def waiting():
    """An event: somebody has said in the log that he waits."""
    said = threading.Event()

    class Handler(logging.Handler):
        def emit(self, record):
            if record.getMessage() == "waiting for a test":
                said.set()

    log = logging.getLogger("headrace.backends.private")
    handler = Handler()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield said
    log.setLevel(logging.NOTSET)
    log.removeHandler(handler)


def test_a_lock_keeps_others_out_and_leaves_nothing(directory, tmp_path, waiting):
    """Threads with directories of their own stand for processes: flock tells open files apart, not processes."""
    said = SimpleQueue()
    inside = threading.Event()
    done = threading.Event()

    def second():
        other = PrivateDirectory(tmp_path / "a" / "b")
        inside.wait()
        with other.lock("l", "a test"):
            said.put("second")
        other.close()
        done.set()

    thread = threading.Thread(target=second)
    thread.start()
    with directory.lock("l", "a test"):
        inside.set()
        assert waiting.wait(30)
        said.put("first")
    assert done.wait(30)
    thread.join()
    assert [said.get(), said.get()] == ["first", "second"]
    assert directory.files() == {}


def test_many_take_turns(tmp_path):
    """Nobody holds a lock file that was removed while another holds a new one."""
    held, most, turns = [], [], []

    def work():
        own = PrivateDirectory(tmp_path / "d")
        for _ in range(50):
            with own.lock("l", "others"):
                held.append(1)
                most.append(len(held))
                held.pop()
                turns.append(1)
        own.close()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(turns) == 300
    assert max(most) == 1


def test_a_lock_ends_with_an_error(directory):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), directory.lock("l", "nobody"):
            raise ZeroDivisionError
    assert directory.files() == {}
