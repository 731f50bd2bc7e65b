import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import HeadraceError, InvalidRequest, Unimplemented
from headrace.messages import LONGEST_NS
from headrace.transport.rest.head import WHOLE_JSON, InferHead, Target, accepted, read_head, read_target

TARGET = Target("m", "")


def head(*fields, **expected):
    """The head of these fields, and the same head with these members."""
    base = InferHead(TARGET, 5, WHOLE_JSON, b"", b"", True, 0, False)
    return read_head(TARGET, fields, 5, keep_alive=True), base._replace(**expected)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        (b"/v2/models/m/infer", ("m", "")),
        (b"/v2/models/m/versions/3/infer", ("m", "3")),
        (b"/v2/models/m/versions/stable/infer", ("m", "stable")),
        (b"/v2/models/m/infer?a=b&c", ("m", "")),
        (b"/v2/models/a%20b%2Fc/infer", ("a b/c", "")),
        (b"/v2/models/%C3%A4/infer", ("ä", "")),
        ("/v2/models/ä/infer".encode(), ("ä", "")),
        (b"/v2/models/infer/infer", ("infer", "")),
        (b"/v2/models//infer", None),
        (b"/v2/models/m/infer/", None),
        (b"/v2/models/m/infer2", None),
        (b"/v2/models/m/versions/infer", None),
        (b"/v2/models/m/versions//infer", None),
        (b"/v2/models/m/ready", None),
        (b"v2/models/m/infer", None),
        (b"", None),
    ],
)
def test_the_model_of_a_path(url, target):
    assert read_target(url) == target


def test_a_path_that_is_not_utf_8():
    with pytest.raises(InvalidRequest, match="the path is not UTF-8"):
        read_target(b"/v2/models/%ff/infer")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("inference-header-content-length", b"12", {"json_length": 12}),
        ("inference-header-content-length", b" 0 ", {"json_length": 0}),
        ("content-encoding", b"gzip", {"coding": b"gzip"}),
        ("content-encoding", b"X-GZIP", {"coding": b"gzip"}),
        ("content-encoding", b"deflate", {"coding": b"deflate"}),
        ("content-encoding", b"identity", {}),
        ("accept-encoding", b"gzip, deflate, br", {"reply_coding": b"gzip"}),
        ("expect", b"100-Continue", {"expects": True}),
        ("expect", b"miracles", {}),
        ("prefer", b"wait=10", {"timeout_ns": 10 * 10**9}),
        ("prefer", b'respond-async, wait="2"; x=y', {"timeout_ns": 2 * 10**9}),
        ("prefer", b"Wait = 3", {"timeout_ns": 3 * 10**9}),
        ("prefer", b"wait=0.05", {"timeout_ns": 50 * 10**6}),
        ("prefer", b"wait=.5, wait=5.", {}),
        ("prefer", b"wait=0", {}),
        ("prefer", b"wait=long, await=3, waiting=3", {}),
        ("x-envoy-expected-rq-timeout-ms", b"1500", {"timeout_ns": 1500 * 10**6}),
        ("x-envoy-expected-rq-timeout-ms", b"-5", {}),
        ("x-envoy-expected-rq-timeout-ms", b"9" * 18, {"timeout_ns": LONGEST_NS}),
        ("x-anything", b"else", {}),
    ],
)
def test_fields(name, value, expected):
    got, wanted = head((name.encode(), value), **expected)
    assert got == wanted


def test_the_sooner_deadline_counts():
    got, wanted = head((b"prefer", b"wait=2"), (b"x-envoy-expected-rq-timeout-ms", b"300"), timeout_ns=300 * 10**6)
    assert got == wanted


@pytest.mark.parametrize("value", [b"-1", b"x", b"", b"1.5", b"1e3", b"9" * 19, "٣".encode()])
def test_a_json_length_that_is_no_number(value):
    with pytest.raises(InvalidRequest, match="Unable to parse Inference-Header-Content-Length, got: "):
        head((b"inference-header-content-length", value))


@pytest.mark.parametrize("value", [b"br", b"gzip, deflate", b"\xff"])
def test_a_coding_that_is_not_known(value):
    with pytest.raises(Unimplemented, match="Unsupported compression type: Content-Encoding "):
        head((b"content-encoding", value))


@pytest.mark.parametrize(
    ("value", "coding"),
    [
        (b"gzip", b"gzip"),
        (b"x-gzip", b"gzip"),
        (b"deflate", b"deflate"),
        (b"gzip;q=0.5, deflate;q=0.8", b"deflate"),
        (b"gzip; q=0.8 , deflate ; q=0.8", b"gzip"),
        (b"GZIP;Q=1.0", b"gzip"),
        (b"gzip;q=0, deflate;q=0.0", b""),
        (b"gzip;q=often", b""),
        (b"br, identity", b""),
        (b"*", b""),
        (b"", b""),
        (b",;,", b""),
    ],
)
def test_the_coding_of_the_reply(value, coding):
    assert accepted(value) == coding


@given(st.lists(st.tuples(st.sampled_from(
    [b"inference-header-content-length", b"content-encoding", b"accept-encoding", b"expect", b"prefer",
     b"x-envoy-expected-rq-timeout-ms"]), st.binary(max_size=20)), max_size=6))  # fmt: skip
def test_whatever_comes_only_errors_of_ours_go(fields):
    try:
        made = read_head(TARGET, fields, 5, keep_alive=True)
    except HeadraceError:
        return
    assert made.timeout_ns >= 0
