import argparse
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from headrace.errors import ConfigError
from headrace.settings_sources import (
    Source,
    add_flags,
    build,
    describe,
    leaves,
    nearest,
    read_environment,
    read_flags,
    read_toml,
)


class Inner(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    ratio: float = Field(0.5, gt=0, lt=1, description="share, 100% at most")
    verbose: bool = Field(False, description="say more")


class Tree(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    size_bytes: int = Field(4 << 20, ge=1, description="size, in bytes")
    mode: Literal["a", "b"] = Field("a", description="mode")
    inner: Inner = Field(Inner(), description="more")
    checks: dict[str, Inner] = Field({}, description="by name")


def file(values):
    return Source(values, {(): "in t.toml"})


def test_leaves_know_their_flags_and_variables():
    assert [(s.flag, s.variable("T_")) for s in leaves(Tree)] == [
        ("--size-bytes", "T_SIZE_BYTES"),
        ("--mode", "T_MODE"),
        ("--inner-ratio", "T_INNER__RATIO"),
        ("--inner-verbose", "T_INNER__VERBOSE"),
        ("--checks", "T_CHECKS"),
    ]


def test_later_sources_win_leaf_by_leaf():
    environment = read_environment(Tree, {"T_INNER__RATIO": "0.25", "T_MODE": "b"}, "T_")
    flags = read_flags(Tree, {"mode": "a", "inner.verbose": "true", "unrelated": "x"})
    tree = build(Tree, [file({"size_bytes": 7, "inner": {"ratio": 0.75}, "mode": "b"}), environment, flags])
    assert tree == Tree(size_bytes=7, mode="a", inner=Inner(ratio=0.25, verbose=True))


def test_building_leaves_the_sources_alone():
    source = file({"inner": {"ratio": 0.75}})
    build(Tree, [source, read_flags(Tree, {"inner.ratio": "0.25"})])
    assert source.values == {"inner": {"ratio": 0.75}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sizebytes": 1}, "unknown key 'sizebytes' (in t.toml); did you mean 'size_bytes'?"),
        ({"ratio": 0.1}, "unknown key 'ratio' (in t.toml); did you mean 'inner.ratio'?"),
        ({"inner": {"x": 1}}, "unknown key 'inner.x' (in t.toml); known: ratio, verbose"),
        ({"checks": {"q": {"ratoi": 1}}}, "unknown key 'checks.q.ratoi' (in t.toml); did you mean 'ratio'?"),
        ({"inner": {"[key]": 1}}, "unknown key 'inner.[key]' (in t.toml); known: ratio, verbose"),
        (
            {"size_bytes": 1, "[key]": 1},
            "unknown key '[key]' (in t.toml); known: checks, inner, inner.ratio, inner.verbose, mode, size_bytes",
        ),
        ({"size_bytes": "7"}, 'size_bytes = "7" (in t.toml): expected an integer of at least 1'),
        ({"size_bytes": True}, "size_bytes = true (in t.toml): expected an integer of at least 1"),
        ({"mode": "c"}, 'mode = "c" (in t.toml): expected one of "a", "b"'),
        ({"inner": {"ratio": 1}}, "inner.ratio = 1 (in t.toml): expected a number above 0 and below 1"),
        ({"inner": 3}, "inner = 3 (in t.toml): expected a table"),
        ({"checks": {"q": {"verbose": 1}}}, "checks.q.verbose = 1 (in t.toml): expected true or false"),
    ],
)
def test_a_problem_in_a_file_says_key_value_allowed_and_place(values, message):
    with pytest.raises(ConfigError) as error:
        build(Tree, [file(values)])
    assert str(error.value) == message


def test_every_problem_is_listed_with_its_own_origin():
    with pytest.raises(ConfigError) as error:
        build(
            Tree,
            [
                file({"size_bytes": 0, "modus": "a"}),
                read_environment(Tree, {"T_INNER__RATIO": "many", "T_INER__RATIO": "0.1", "OTHER": "x"}, "T_"),
                read_flags(Tree, {"mode": "z"}),
            ],
        )
    assert sorted(str(error.value).splitlines()) == [
        'inner.ratio = "many" (from environment variable T_INNER__RATIO): expected a number above 0 and below 1',
        'mode = "z" (from flag --mode): expected one of "a", "b"',
        "size_bytes = 0 (in t.toml): expected an integer of at least 1",
        "unknown environment variable T_INER__RATIO; did you mean 'T_INNER__RATIO'?",
        "unknown key 'modus' (in t.toml); did you mean 'mode'?",
    ]


def test_kubernetes_service_links_are_not_settings():
    links = {
        "T_SERVICE_HOST": "10.0.0.1",
        "T_SERVICE_PORT_GRPC": "8001",
        "T_PORT": "tcp://10.0.0.1:8001",
        "T_MODE_PORT": "tcp://10.0.0.1:8001",
        "T_PORT_8001_TCP_ADDR": "10.0.0.1",
        "T_PORT_8001_TCP": "tcp://10.0.0.1:8001",
    }
    assert read_environment(Tree, links, "T_") == Source()
    assert read_environment(Tree, {"T_PORT": "8001"}, "T_").problems


def test_a_byte_order_mark_is_passed_over(tmp_path):
    (tmp_path / "m.toml").write_bytes(b"\xef\xbb\xbfa = 1\r\nb = 2\r\n")
    assert read_toml(tmp_path / "m.toml").values == {"a": 1, "b": 2}


def test_files_that_cannot_be_read_or_parsed(tmp_path):
    with pytest.raises(ConfigError, match=r"absent.toml: cannot be read: No such file"):
        read_toml(tmp_path / "absent.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("a = \n")
    with pytest.raises(ConfigError, match=r"broken.toml: not valid TOML: .*line 1"):
        read_toml(broken)
    broken.write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_toml(broken)


def test_flags_are_generated_with_default_and_description():
    parser = argparse.ArgumentParser("t")
    add_flags(parser, Tree)
    text = " ".join(parser.format_help().split())
    assert "--size-bytes N size, in bytes (default: 4194304, 4 MiB)" in text
    assert "--mode {a,b} mode (default: a)" in text
    assert "--inner-ratio X share, 100% at most (default: 0.5)" in text
    assert vars(parser.parse_args([])) == {}
    assert vars(parser.parse_args(["--inner-ratio", "0.1"])) == {"inner.ratio": "0.1"}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 0, "maximum": 9}, "an integer from 0 to 9"),
        ({"type": "number", "maximum": 9}, "a number of at most 9"),
        ({"anyOf": [{"type": "number"}, {"type": "null"}]}, "a number"),
        ({"anyOf": [{"const": "all", "type": "string"}, {"type": "boolean"}]}, '"all" or true or false'),
        ({"type": "array", "items": {"type": "integer"}}, "a list (each an integer)"),
        ({"type": "string", "format": "path"}, "a path"),
        ({"type": "string", "minLength": 1}, "text that is not empty"),
        ({"type": "string", "allowed": "a colour"}, "a colour"),
        ({}, "a value"),
    ],
)
def test_describe(schema, words):
    assert describe(schema) == words


def test_nearest():
    assert nearest("prot", ["port", "host"]) == "; did you mean 'port'?"
    assert nearest("zzz", ["port", "host"]) == "; known: host, port"
    assert nearest("zzz", [f"{i}" for i in range(25)]) == ""
    assert nearest("zzz", []) == ""
