import errno
import logging
import os
import sys
from pathlib import Path

import pytest

from headrace.errors import ConfigError
from headrace.repository.discovery import Broken, Found, names, scan, scan_model, shown


@pytest.fixture
def repository(tmp_path):
    def make(*files, **contents):
        for file in files:
            path = tmp_path / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(contents.get(file, ""))
        return tmp_path

    return make


def found(results):
    return [(r.name, r.version) for r in results if isinstance(r, Found)]


def toml(root, name, text):
    (root / name / "model.toml").write_text(text)


def test_the_newest_version_by_number_is_found(repository):
    root = repository("b/2/model.onnx", "b/10/model.onnx", "a/1/model.onnx")
    results = scan(root)
    assert found(results) == [("a", 1), ("b", 10)]
    assert results[1].path == root / "b" / "10"
    assert results[1].config.max_batch is None


@pytest.mark.parametrize(
    ("policy", "served"),
    [('"all"', [1, 2, 10]), ('"latest:2"', [2, 10]), ('"latest:9"', [1, 2, 10]), ("[2, 1, 2]", [1, 2])],
)
def test_version_policy(repository, policy, served):
    root = repository("m/1/model.onnx", "m/2/model.onnx", "m/10/model.onnx")
    toml(root, "m", f"versions = {policy}")
    assert found(scan(root)) == [("m", version) for version in served]


def test_a_version_that_the_policy_names_must_exist(repository):
    root = repository("m/1/model.onnx")
    toml(root, "m", "versions = [1, 3]")
    assert scan(root)[1] == Broken("m", 3, f"model.toml asks for version 3, but there is no {root / 'm' / '3'}")


def test_broken_models_have_a_reason_and_leave_the_others(repository):
    root = repository(
        "good/1/model.onnx", "typo/1/model.onnx", "empty/2/.keep", "unbuilt/train.py", "odd name/1/model.onnx"
    )
    toml(root, "typo", "max_bach = 1")
    (root / "unbuilt" / "1x").mkdir()
    results = {result.name: result for result in scan(root)}
    assert found(results.values()) == [("good", 1)]
    assert results["typo"].version is None
    assert "did you mean 'max_batch'?" in results["typo"].reason
    assert results["empty"] == Broken("empty", 2, f"no model file in {root / 'empty' / '2'}")
    assert results["unbuilt"].reason.startswith(f"no version: expected a directory such as {root / 'unbuilt' / '1'}")
    assert "letters, digits" in results["odd name"].reason


def test_a_model_that_has_yet_to_be_built(repository):
    root = repository("m/build.py", "n/2/model.onnx")
    for name in "mn":
        toml(root, name, 'built_by = "make models"')
    unbuilt, built = scan(root)
    assert unbuilt == Broken("m", None, "not built yet; to build it, run 'make models'", expected=True)
    assert found([built]) == [("n", 2)]
    toml(root, "n", 'built_by = "make models"\nversions = [3]')
    assert not scan(root)[1].expected


def test_what_is_hidden_or_no_directory_is_ignored(repository):
    root = repository(".git/1/model.onnx", "__pycache__/x.pyc", "README.md", "m/1/model.onnx", "m/.tmp/x", "m/2")
    assert found(scan(root)) == [("m", 1)]


def test_a_version_with_a_leading_zero_is_ignored_aloud(repository, caplog):
    root = repository("m/1/model.onnx", "m/02/model.onnx", "m/0/model.onnx", "m/data/x")
    with caplog.at_level(logging.WARNING):
        assert found(scan(root)) == [("m", 1)]
    assert sorted(record.args[0].name for record in caplog.records) == ["0", "02"]
    assert "from 1 to 999999999999999999 without" in caplog.text


def test_models_may_be_links(repository, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "1").mkdir()
    (elsewhere / "1" / "model.onnx").touch()
    root = repository("README.md")
    os.symlink(elsewhere, root / "m")
    os.symlink(root / "nowhere", root / "dangling")
    entries = scan(root)
    assert found(entries) == [("m", 1)]
    assert entries[0] == Broken(
        "dangling", None, f"{root / 'dangling'} is a link to {root / 'nowhere'}, which is not there"
    )


def test_a_version_or_its_file_that_is_a_link_to_nowhere(repository):
    root = repository("file/1/weights", "version/README.md", "file/model.toml")
    links = {"file": root / "file" / "1" / "model.onnx", "version": root / "version" / "2"}
    for name, link in links.items():
        link.symlink_to(root / name / "nowhere")
    versions = {"file": 1, "version": 2}
    assert scan(root) == [
        Broken(name, version, f"{links[name]} is a link to {root / name / 'nowhere'}, which is not there")
        for name, version in versions.items()
    ]


def test_a_link_to_where_the_server_may_not_look_is_one_models_problem(repository, monkeypatch):
    root = repository("m/1/model.onnx")
    os.symlink("/secret/x", root / "x")
    stat = Path.stat

    def forbidden(path, **more):
        if path == root / "x" and more.get("follow_symlinks", True):
            raise PermissionError(errno.EACCES, "Permission denied")
        return stat(path, **more)

    monkeypatch.setattr(Path, "stat", forbidden)
    entries = scan(root)
    assert found(entries) == [("m", 1)]
    assert entries[1] == Broken("x", None, f"{root / 'x'} cannot be read: Permission denied")


def test_a_model_that_is_removed_while_others_are_looked_at(repository, monkeypatch):
    root = repository("m/1/model.onnx")
    monkeypatch.setattr("headrace.repository.discovery.names", lambda _: ["gone", "m"])
    assert found(scan(root)) == [("m", 1)]


def test_a_file_that_no_parser_takes_is_one_models_problem(repository):
    root = repository("deep/1/model.onnx", "long/1/model.onnx", "m/1/model.onnx")
    (root / "deep" / "model.toml").write_text(f"backend_options.x = {'[' * 5000}{']' * 5000}")
    (root / "long" / "model.toml").write_text(f"max_batch = {'9' * 5000}")
    entries = scan(root)
    assert found(entries) == [("m", 1)]
    assert ["not valid TOML" in entry.reason for entry in entries if isinstance(entry, Broken)] == [True, True]


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take UTF-8 alone")
def test_a_name_that_is_not_utf_8_can_be_told(repository):
    root = repository("m/1/model.onnx")
    os.mkdir(os.fsencode(root) + b"/caf\xe9")
    os.symlink(b"nowhere\xe9", os.fsencode(root) + b"/link")
    entries = scan(root)
    assert found(entries) == [("m", 1)]
    assert entries[0].name == r"caf\xe9"
    assert entries[1] == Broken("link", None, rf"{root / 'link'} is a link to nowhere\xe9, which is not there")
    assert [shown(name) for name in names(root)] == [r"caf\xe9", "link", "m"]


def test_an_empty_repository_is_no_error(tmp_path):
    assert scan(tmp_path) == []


def test_a_repository_that_is_not_a_directory(tmp_path):
    (tmp_path / "file").touch()
    for name in ("absent", "file"):
        with pytest.raises(ConfigError, match=rf'model_repository = ".*{name}": not a readable directory'):
            scan(tmp_path / name)


def test_a_stamp_changes_with_the_files_of_the_version(repository):
    root = repository("m/1/model.onnx", "m/1/data/weights", "m/1/.hidden", "m/2/model.onnx")
    (root / "m" / "model.toml").write_text('versions = "all"')
    before = scan(root)
    assert scan(root) == before
    (root / "m" / "1" / ".hidden").write_text("changed")
    assert scan(root) == before
    (root / "m" / "1" / "data" / "weights").write_text("changed")
    changed = scan(root)
    assert [one == other for one, other in zip(before, changed, strict=True)] == [False, True]


def test_what_nobody_foresaw_in_a_configuration_leaves_the_others(repository, caplog):
    root = repository("m/1/model.onnx", "odd/1/model.onnx")
    (root / "odd" / "model.toml").write_text(f"[inputs.x]\nmin = 1{'0' * 400}\nmax = 1")
    entries = scan(root)
    assert found(entries) == [("m", 1)]
    assert entries[1] == Broken(
        "odd", None, "reading its configuration failed unexpectedly; the server's log says more"
    )
    assert "OverflowError" in caplog.text


def test_nan_in_a_configuration_is_no_change(repository):
    root = repository("m/1/model.onnx")
    (root / "m" / "model.toml").write_text("backend_options.fill = -nan\ninputs.x.pad = nan")
    (before,) = scan(root)
    assert isinstance(before, Found)
    assert before.config.inputs["x"].pad != before.config.inputs["x"].pad
    assert scan(root) == [before]


def test_one_model(repository):
    root = repository("m/1/model.onnx", "n/1/model.onnx", "n/2/.hidden")
    assert names(root) == ["m", "n"]
    assert found(scan_model(root, "m")) == [("m", 1)]
    assert scan_model(root, "n") == [Broken("n", 2, f"no model file in {root / 'n' / '2'}")]
    for name in ("o", "", ".", "..", "../m", "m/1", str(root / "m")):
        assert scan_model(root, name) == []


class TestGuarded:
    """A model with a reference, by which the others are judged."""

    def model(self, repository, *versions, text="", policy=""):
        root = repository(*(f"m/{version}/model.onnx" for version in versions))
        toml(root, "m", f"{policy}\n[guard]\nreference = 1\n{text}")
        return root

    def test_the_reference_serves_too_whatever_the_policy(self, repository):
        root = self.model(repository, 1, 2, 3)
        assert found(scan(root)) == [("m", 1), ("m", 3)]
        root = self.model(repository, policy="versions = [2]")
        assert found(scan(root)) == [("m", 1), ("m", 2)]
        root = self.model(repository, policy='versions = "all"')
        assert found(scan(root)) == [("m", 1), ("m", 2), ("m", 3)]

    def test_not_if_nothing_ever_falls_back_to_it(self, repository):
        root = self.model(repository, 1, 2, text='action = "report"')
        assert found(scan(root)) == [("m", 2)]

    def test_a_reference_that_is_not_there(self, repository):
        root = self.model(repository, 2, 3, policy='versions = "all"')
        reason = "guard.reference = 1: there is no such version, but 2, 3"
        assert scan(root) == [Broken("m", 2, reason), Broken("m", 3, reason)]

    def test_a_reference_that_is_the_version_itself(self, repository):
        (entry,) = scan(self.model(repository, 1))
        assert (entry.name, entry.version) == ("m", 1)
        assert entry.reason.startswith(
            "guard.reference = 1 is the only version to be served: there is nothing to guard"
        )

    def test_a_reference_without_a_model_file(self, repository):
        root = self.model(repository, 2)
        (root / "m" / "1").mkdir()
        path = root / "m" / "1"
        assert scan(root) == [
            Broken("m", 1, f"no model file in {path}"),
            Broken("m", 2, f"guard.reference = 1: no model file in {path}"),
        ]

    def test_a_version_is_opened_anew_when_its_reference_changes(self, repository):
        root = self.model(repository, 1, 2)
        before = scan(root)
        (root / "m/1/model.onnx").write_text("another")
        after = scan(root)
        assert [old == new for old, new in zip(before, after, strict=True)] == [False, False]
