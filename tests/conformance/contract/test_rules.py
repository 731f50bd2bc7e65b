"""Rules that clients rely on: what Triton's and KServe's read, and would break on if it were otherwise."""

from itertools import pairwise

import numpy as np
import pytest
from conformance.contract.ways import WAYS
from e2e.calls import SECONDS, floats, request
from tritonclient.grpc import service_pb2 as pb

ROW = floats([1, 2, 3, 4])
GRPC = WAYS[:2]


def rule(text, names=GRPC):
    return pytest.mark.parametrize("way", [pytest.param(way, id=f"rule {text}, {way}") for way in names])


@rule("one raw entry for each output, in their order")
def test_raw_outputs(ways, way):
    b = np.ones((1, 3), np.int32)
    for outputs in ((), ("twice",), ("twice", "sum")):
        told = ways(way).infer(request("pair", a=floats([1, 2]), b=b, outputs=outputs)).reply
        names = [tensor.name for tensor in told.outputs]
        assert names == list(outputs or ("sum", "twice"))
        sizes = {"sum": 4, "twice": 12}
        assert [len(raw) for raw in told.raw_output_contents] == [sizes[name] for name in names]


@rule("statistics grow with every request, and versions are integers")
def test_statistics_count(ways, way):
    stub = ways(way).stub
    seen = []
    for _ in range(3):
        stub.ModelInfer(request("m", x=ROW), timeout=SECONDS)
        (one,) = stub.ModelStatistics(pb.ModelStatisticsRequest(name="m"), timeout=SECONDS).model_stats
        assert int(one.version) > 0
        seen.append(one.inference_stats)
    counts = [one.queue.count for one in seen]
    assert counts == sorted(set(counts))
    assert all(one.queue.count == one.success.count == one.compute_infer.count for one in seen)
    assert all(later.queue.ns >= sooner.queue.ns for sooner, later in pairwise(seen))


@rule("ids are returned as they came", WAYS)
def test_ids(ways, way):
    way = ways(way)
    for given in ("0", "\u00e4 id", "x" * 1000):
        told = way.infer(request("m", id=given, x=ROW)).reply
        assert (told.id if way.protocol == "grpc" else told["id"]) == given


@rule("extensions are those that there are", WAYS)
def test_extensions(ways, way):
    """Shared memory is one only where clients may use it, and CUDA's never."""
    for kind in ("plain", "open"):
        asked = ways(way, kind)
        if asked.protocol == "grpc":
            extensions = list(asked.call("ServerMetadata", pb.ServerMetadataRequest()).reply.extensions)
        else:
            extensions = asked.ask("/v2").reply["extensions"]
        assert ("system_shared_memory" in extensions) == (kind == "open")
        assert "cuda_shared_memory" not in extensions
        assert "statistics" in extensions


@rule("the newest version answers where none is named, and the reply says which", WAYS)
def test_versions(ways, way):
    way = ways(way)
    for version, told_version in (("", "2"), ("1", "1"), ("2", "2")):
        told = way.infer(request("versions", version=version, x=floats(1))).reply
        assert (told.model_version if way.protocol == "grpc" else told["model_version"]) == told_version


@rule("each input of the configuration is in the metadata")
def test_configuration_and_metadata_agree(ways, way):
    asked = ways(way)
    for name in ("m", "pair", "text", "versions", "levels"):
        config = asked.call("ModelConfig", pb.ModelConfigRequest(name=name)).reply.config
        metadata = asked.call("ModelMetadata", pb.ModelMetadataRequest(name=name)).reply
        assert [one.name for one in config.input] == [one.name for one in metadata.inputs]
        assert [one.name for one in config.output] == [one.name for one in metadata.outputs]
        assert [[-1, *one.dims] for one in config.input] == [list(one.shape) for one in metadata.inputs]


@rule("a stream with triton_enable_empty_final_response is told which reply is final")
def test_final_response(ways, way):
    message = request("m", id="1", x=ROW)
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    (told,) = ways(way).stub.ModelStreamInfer(iter([message]), timeout=SECONDS)
    assert told.infer_response.parameters["triton_final_response"].bool_param is True


@rule("messages of more than 4 MB both ways")
def test_large_messages(ways, way):
    row = np.arange(2_000_000, dtype=np.float32).reshape(1, -1)
    assert ways(way).infer(request("free", x=row)).reply.raw_output_contents[0] == (3 * row).tobytes()


@rule("health bodies say what KServe's client reads", WAYS[2:])
def test_health_bodies(ways, way):
    assert ways(way).ask("/v2/health/ready").reply == {"ready": True}
    assert ways(way).ask("/v2/health/live").reply == {"live": True}


@rule("any 2xx is ready, anything else is not", WAYS[2:])
def test_model_ready_by_status(ways, way):
    asked = ways(way)
    paths = ("m", "nobody", "broken", "broken/versions/1")
    assert [asked.ask(f"/v2/models/{path}/ready").status for path in paths] == [200, 404, 404, 503]


@rule("an error is application/json, exactly", WAYS[2:])
def test_errors_are_json(ways, way):
    refused = ways(way).ask("/v2/models/nobody/infer", {"inputs": []})
    assert (refused.status, refused.fields["content-type"], list(refused.reply)) == (404, "application/json", ["error"])
