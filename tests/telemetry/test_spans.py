"""Spans as a collector gets them, from records of integers."""

import random

import pytest
from e2e.collector import attributes
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from headrace.telemetry.sampling import BatchTrace, RequestTrace
from headrace.telemetry.spans import SpanBuilder, server_resource
from headrace.transport.status import statuses_by_reason

OFFSET = 10**18
STAGES = ["decode", "admit", "queue", "batch", "execute", "encode"]


def built(batch, *requests):
    builder = SpanBuilder(server_resource("9"), "9", lambda: OFFSET, statuses_by_reason(), random.Random(1))
    ((scope,),) = (resource.scope_spans for resource in builder.build([(batch, requests)]).resource_spans)
    return list(scope.spans)


def request(**more):
    values = {
        "model": "m", "version": "2", "door": "grpc", "cause": "head", "trace_id": 0xAB, "span_id": 0xCD,
        "parent_id": 0xEF, "tracestate": b"k=v", "received": 10, "decoded": 20, "admitted": 30, "ended": 90, "rows": 4,
        "batched": 40, "started": 50, "finished": 80,
    }  # fmt: skip
    return RequestTrace(**{**values, **more})


def batch(**more):
    values = {
        "model": "m", "version": "2", "span_id": 5, "trace_id": 6, "batched": 40, "started": 50, "finished": 80,
        "encoded": 90, "rows": 8, "requests": 3, "close_reason": "full", "instance": 1, "padding_percent": 25,
        "predicted_ns": 41_000, "traced": [],
    }  # fmt: skip
    return BatchTrace(**{**values, **more})


def test_stages_are_without_gaps_under_the_server_span():
    of_batch, server, *stages = built(batch(), request())
    assert [span.name for span in stages] == STAGES
    moments = [(span.start_time_unix_nano - OFFSET, span.end_time_unix_nano - OFFSET) for span in stages]
    assert moments == [(10, 20), (20, 30), (30, 40), (40, 50), (50, 80), (80, 90)]
    assert {span.parent_span_id for span in stages} == {server.span_id}
    assert {span.trace_id for span in (server, *stages)} == {(0xAB).to_bytes(16, "big")}
    assert len({span.span_id for span in (of_batch, server, *stages)}) == 8
    assert server.parent_span_id == (0xEF).to_bytes(8, "big")
    assert server.flags == 0x301  # sampled, and its parent is another process'
    assert stages[0].flags == 0x101


def test_a_batch_and_its_requests_are_linked_both_ways():
    of_batch, *spans = built(batch(), request(), request(span_id=0xCE, trace_id=0xAC))
    assert [(link.trace_id[-1], link.span_id[-1]) for link in of_batch.links] == [(0xAB, 0xCD), (0xAC, 0xCE)]
    linked = [span.name for span in spans if span.links]
    assert linked == ["execute", "execute"]
    assert {span.links[0].span_id for span in spans if span.links} == {of_batch.span_id}
    said = attributes(of_batch)
    assert said["headrace.batch.padding_percent"] == 25
    assert said["headrace.batch.predicted_us"] == 41
    assert (said["headrace.batch.rows"], said["headrace.batch.requests"], said["headrace.batch.instance"]) == (8, 3, 1)


@pytest.mark.parametrize(
    ("came", "stages"),
    [
        ({}, ["decode"]),
        ({"decoded": 20}, ["decode", "admit"]),
        ({"decoded": 20, "admitted": 30}, STAGES[:3]),
        ({"decoded": 20, "admitted": 30, "batched": 40, "started": 50}, STAGES[:5]),
        ({"decoded": 20, "admitted": 30, "batched": 40, "started": 50, "finished": 60}, STAGES),
    ],
)
def test_a_failed_request_ends_in_the_stage_that_it_came_to(came, stages):
    nowhere = dict.fromkeys(("decoded", "admitted", "batched", "started", "finished"), 0)
    _, *spans = built(None, request(**{**nowhere, **came}, error="queue_full", cause="failed"))
    assert [span.name for span in spans] == stages
    assert spans[-1].end_time_unix_nano == OFFSET + 90


def test_what_the_cache_answered_says_so():
    server, *stages = built(None, request(admitted=0, batched=0, started=0, finished=0, cached=True))
    assert attributes(server)["headrace.cached"] is True
    assert [span.name for span in stages] == ["decode", "admit"]
    assert "headrace.cached" not in attributes(built(None, request())[0])


def test_a_batch_whose_run_failed_is_an_error():
    failed, server, *stages = built(batch(error="backend_failed"), request(finished=0, error="backend_failed"))
    assert (failed.status.code, attributes(failed)["error.type"]) == (Status.STATUS_CODE_ERROR, "backend_failed")
    assert stages[-1].links[0].span_id == failed.span_id
    assert failed.links[0].span_id == server.span_id
    assert not built(batch(), request())[0].HasField("status")


@pytest.mark.parametrize(
    ("door", "reason", "key", "status", "error"),
    [
        ("grpc", "", "rpc.response.status_code", "OK", False),
        ("grpc", "invalid_request", "rpc.response.status_code", "INVALID_ARGUMENT", False),
        ("grpc", "cancelled", "rpc.response.status_code", "CANCELLED", False),
        ("grpc", "queue_full", "rpc.response.status_code", "UNAVAILABLE", True),
        ("grpc_stream", "backend_failed", "rpc.response.status_code", "INTERNAL", True),
        ("grpc", "internal", "rpc.response.status_code", "INTERNAL", True),
        ("http:/a", "", "http.response.status_code", 200, False),
        ("http:/a", "invalid_request", "http.response.status_code", 400, False),
        ("https:/a", "backend_failed", "http.response.status_code", 500, True),
    ],
)
def test_statuses_are_those_of_the_conventions(door, reason, key, status, error):
    server = built(None, request(door=door, error=reason))[0]
    assert attributes(server)[key] == status
    assert (server.status.code == Status.STATUS_CODE_ERROR) is error
    assert attributes(server).get("error.type", "") == reason
    assert server.kind == Span.SPAN_KIND_SERVER


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_what_the_conventions_require_of_http(scheme):
    said = attributes(built(None, request(door=f"{scheme}:/v2/models/a%3Ab/infer"))[0])
    assert said["http.request.method"] == "POST"
    assert said["http.route"] == "/v2/models/{model_name}/infer"
    assert (said["url.scheme"], said["url.path"]) == (scheme, "/v2/models/a%3Ab/infer")
    assert not {"url.path", "url.scheme"} & attributes(built(None, request())[0]).keys()


def test_a_request_of_the_servers_own_is_no_server_span():
    server = built(None, request(door="", parent_id=0))[0]
    assert (server.name, server.kind, server.parent_span_id) == ("infer m", Span.SPAN_KIND_INTERNAL, b"")
