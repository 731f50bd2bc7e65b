import os
import stat
import threading
from pathlib import Path

import pytest

from headrace.backends.tensorrt import key as keys
from headrace.backends.tensorrt import options
from headrace.backends.tensorrt.cache import KEY_BYTES, EngineCache, default_directory
from headrace.backends.tensorrt.model_files import ModelFiles
from headrace.errors import ModelLoadError
from headrace.testing.device import FakeDevice

ABOUT = {"model": "a", "gpu": "H100"}
OTHER = {"model": "b", "gpu": "H100"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "engines"


@pytest.fixture
def cache(path):
    with EngineCache(path, 1 << 30) as opened:
        yield opened


def entry(path, about=ABOUT, suffix=".plan"):
    return path / (keys.name(about) + suffix)


def test_a_plan_comes_back(cache, path):
    assert cache.plan(ABOUT) is None
    cache.store_plan(ABOUT, b"plan")
    assert cache.plan(ABOUT) == b"plan"
    assert cache.plan(OTHER) is None
    with EngineCache(path, 1 << 30) as again:
        assert again.plan(ABOUT) == b"plan"
    assert repr(cache) == f"<EngineCache {path}>"


def test_timings_are_kept_beside_plans(cache):
    assert cache.timings(ABOUT) == b""
    cache.store_timings(ABOUT, b"timings")
    assert cache.timings(ABOUT) == b"timings"
    assert cache.plan(ABOUT) is None


def test_only_this_user_can_read_any_of_it(cache, path):
    cache.store_plan(ABOUT, b"plan")
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o600}
    assert {file.name for file in path.iterdir()} == {"key", entry(path).name}
    assert len((path / "key").read_bytes()) == KEY_BYTES


# --- what was tampered with -------------------------------------------------------------------------------------------


def refused(cache, logged, why):
    assert cache.plan(ABOUT) is None
    assert [text for text in logged() if text.startswith("engine cache: ") and " is not used: " in text and why in text]
    cache.store_plan(ABOUT, b"built again")
    assert cache.plan(ABOUT) == b"built again"


def test_every_byte_of_an_entry_counts(cache, path):
    cache.store_plan(ABOUT, b"plan")
    whole = entry(path).read_bytes()
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 0x20
        entry(path).write_bytes(changed)
        assert cache.plan(ABOUT) is None
    entry(path).write_bytes(whole)
    assert cache.plan(ABOUT) == b"plan"


def test_a_changed_plan(cache, path, logged):
    cache.store_plan(ABOUT, b"plan")
    entry(path).write_bytes(entry(path).read_bytes()[:-4] + b"evil")
    refused(cache, logged, "what it holds is not what was signed")


def test_a_cut_plan(cache, path, logged):
    cache.store_plan(ABOUT, b"plan" * 100)
    os.truncate(entry(path), 50)
    refused(cache, logged, "it is cut off")


def test_an_empty_file(cache, path, logged):
    cache.store_plan(ABOUT, b"plan")
    os.truncate(entry(path), 0)
    refused(cache, logged, "it is no sealed file")


def test_a_plan_of_another_model(cache, path, logged):
    cache.store_plan(OTHER, b"other plan")
    entry(path, OTHER).rename(entry(path))
    refused(cache, logged, "written as another file")


def test_timings_for_a_plan(cache, path, logged):
    cache.store_timings(ABOUT, b"timings")
    entry(path, suffix=".timings").rename(entry(path))
    refused(cache, logged, "written as another file")


def test_a_plan_of_another_directory(cache, path, tmp_path, logged):
    with EngineCache(tmp_path / "theirs", 1 << 30) as theirs:
        theirs.store_plan(ABOUT, b"evil")
    entry(tmp_path / "theirs").rename(entry(path))
    refused(cache, logged, "its signature is not by the key")


def test_a_link_to_a_plan(cache, path, logged):
    cache.store_plan(ABOUT, b"plan")
    entry(path).rename(path / "moved")
    entry(path).symlink_to(path / "moved")
    refused(cache, logged, "symbolic link")


def test_a_plan_that_others_can_write(cache, path, logged):
    cache.store_plan(ABOUT, b"plan")
    entry(path).chmod(0o666)
    refused(cache, logged, "has mode 0666, expected 0600")


def test_another_key(path, logged):
    with EngineCache(path, 1 << 30) as cache:
        cache.store_plan(ABOUT, b"plan")
    (path / "key").write_bytes(bytes(KEY_BYTES))
    with EngineCache(path, 1 << 30) as cache:
        refused(cache, logged, "its signature is not by the key")


def test_a_key_that_is_lost_is_made_anew(path, logged):
    with EngineCache(path, 1 << 30) as cache:
        cache.store_plan(ABOUT, b"plan")
    (path / "key").unlink()
    with EngineCache(path, 1 << 30) as cache:
        refused(cache, logged, "its signature is not by the key")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda key: key.chmod(0o644), "key has mode 0644, expected 0600"),
        (lambda key: key.write_bytes(b"short"), "key has 5 bytes, expected 32; without the file a new key is made"),
        (lambda key: key.write_bytes(b""), "key has 0 bytes"),
        (lambda key: (key.rename(key.with_name("k")), key.symlink_to("k")), "key is a symbolic link"),
    ],
    ids=["readable", "short", "empty", "link"],
)
def test_a_key_that_is_no_key_is_an_error(path, spoil, why):
    EngineCache(path, 1).__exit__()
    spoil(path / "key")
    with pytest.raises(ModelLoadError, match=f"engine cache: .*{why}"):
        EngineCache(path, 1)


def test_a_directory_that_is_not_safe_is_an_error(path):
    path.mkdir(mode=0o755)
    with pytest.raises(ModelLoadError, match=r"engine cache: .*engines has mode 0755, expected 0700"):
        EngineCache(path, 1)


def test_a_directory_that_cannot_be_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ModelLoadError, match=r"engine cache .*/file/engines cannot be used: "):
        EngineCache(tmp_path / "file" / "engines", 1)


# --- its size ---------------------------------------------------------------------------------------------------------


def age(path, about, seconds):
    os.utime(entry(path, about), (1e9 - seconds, 1e9 - seconds))


def test_what_was_not_used_for_longest_goes_first(path, logged):
    abouts = [{"model": name} for name in "abcd"]
    with EngineCache(path, 3 * 1500) as cache:
        for seconds, about in zip((10, 30, 20), abouts, strict=False):
            cache.store_plan(about, bytes(1000))
            age(path, about, seconds)
        assert cache.plan(abouts[1]) is not None  # which makes it the youngest
        cache.store_plan(abouts[3], bytes(1000))
        assert [about["model"] for about in abouts if cache.plan(about) is not None] == ["a", "b", "d"]
    assert [text for text in logged() if "is removed, 4500 bytes are kept at most" in text]


def test_one_plan_is_always_kept(path):
    with EngineCache(path, 10) as cache:
        cache.store_plan(ABOUT, bytes(1000))
        cache.store_plan(OTHER, bytes(1000))
        assert cache.plan(ABOUT) is None
        assert cache.plan(OTHER) is not None


def test_keys_and_foreign_files_are_not_touched(path):
    with EngineCache(path, 0) as cache:
        (path / "notes.txt").write_bytes(bytes(5000))
        cache.store_plan(ABOUT, bytes(10))
        assert cache.plan(ABOUT) is not None
    assert {file.name for file in path.iterdir()} == {"key", "notes.txt", entry(path).name}


def test_what_a_dead_writer_left_is_removed(cache, path):
    (path / "x.plan.tmp").write_bytes(b"half")
    cache.store_plan(ABOUT, b"plan")
    assert not (path / "x.plan.tmp").exists()


def test_a_plan_that_cannot_be_kept_is_logged(cache, path, logged):
    (path / f"{entry(path).name}.tmp").mkdir()
    cache.store_plan(ABOUT, b"plan")
    assert [text for text in logged() if " is not kept: " in text]


# --- several servers --------------------------------------------------------------------------------------------------


def test_an_engine_is_built_by_one_of_many(path):
    """Threads with caches of their own stand for servers."""
    builds, got = [], []

    def serve():
        with EngineCache(path, 1 << 30) as cache, cache.building(ABOUT, "m"):
            plan = cache.plan(ABOUT)
            if plan is None:
                builds.append(1)
                cache.store_plan(ABOUT, b"plan")
                plan = b"plan"
            got.append(plan)

    threads = [threading.Thread(target=serve) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert got == [b"plan"] * 8
    assert {file.name for file in path.iterdir()} == {"key", entry(path).name}


def test_different_engines_are_built_at_a_time(path):
    with EngineCache(path, 1) as one, EngineCache(path, 1) as two, one.building(ABOUT, "m"), two.building(OTHER, "n"):
        assert {file.suffix for file in path.iterdir()} == {"", ".lock"}


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"XDG_CACHE_HOME": "/c", "HOME": "/h"}, "/c/headrace/engines"),
        ({"HOME": "/h"}, "/h/.cache/headrace/engines"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/headrace/engines"),
        ({"XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache/headrace/engines"),
    ],
)
def test_where_it_is(environ, expected):
    assert default_directory(environ) == Path(expected)


def test_without_a_home():
    with pytest.raises(ModelLoadError, match=r"set tensorrt\.engine_cache in the server's settings"):
        default_directory({})


FILES = ModelFiles(Path("model.onnx"), b"", (), "digest", ())


def named(device=None, files=FILES, rows=8, version="11.4", plugins=(), **chosen):
    return keys.name(keys.about_engine(version, device or FakeDevice(), files, rows, options.read(chosen), plugins))


def test_everything_that_an_engine_depends_on_is_in_its_name():
    other_gpu, other_sm, other_driver = FakeDevice(), FakeDevice(), FakeDevice()
    other_gpu.name, other_sm.architecture, other_driver.driver = "Other", (8, 6), 12000
    names = [
        named(),
        named(other_gpu),
        named(other_sm),
        named(other_driver),
        named(files=ModelFiles(Path("model.onnx"), b"", (), "other", ())),
        named(rows=9),
        named(version="11.3"),
        named(plugins=["a"]),
        named(batch_buckets=[8]),
        named(profiles={"x": {"min": [1], "opt": [1], "max": [2]}}),
        named(optimization_level=5),
        named(workspace_bytes=1),
        named(tf32=False),
        named(sparse_weights=True),
        named(strip_weights=True),
        named(refit=True),
        named(hardware_compatibility="ampere_plus"),
    ]
    assert len(set(names)) == len(names)


def test_and_nothing_else():
    same = {
        named(),
        named(FakeDevice(index=1)),
        named(files=ModelFiles(Path("copy.onnx"), b"", (), "digest", ())),
        named(file="copy.onnx"),
        named(cuda_graphs=False, in_flight=4, devices=[1]),
    }
    assert len(same) == 1


def test_every_option_is_decided_upon():
    """An option that is added is either in the name or one of these, which change no engine."""
    others = {"file", "devices", "in_flight", "busy_wait", "cuda_graphs"}
    assert set(options.Options.model_fields) == set(keys._BUILT_INTO) | others | {"plugins"}


def test_plugins_are_told_apart_by_what_they_hold(tmp_path):
    for name, content in (("a.so", b"1"), ("b.so", b"2"), ("c.so", b"1")):
        (tmp_path / name).write_bytes(content)
    a, b, c = keys.library_digests(str(tmp_path / name) for name in ("a.so", "b.so", "c.so"))
    assert a == c != b
    with pytest.raises(ModelLoadError, match=r"plugins .*absent\.so' cannot be read: No such file"):
        keys.library_digests([str(tmp_path / "absent.so")])
