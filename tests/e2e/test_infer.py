"""ModelInfer with real clients: tensors of every kind arrive, and come back, as they were sent."""

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from e2e.calls import SECONDS, floats, output, request, statistics, tensor
from e2e.onnx_models import SHIPPED
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import triton_to_np_dtype

PHASES = ("decode", "admit", "queue", "batch", "execute", "encode")
NUMBERS = ("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64")
CONTENTS = {
    "BOOL": ("bool_contents", [True, False, False, True]),
    "UINT8": ("uint_contents", [0, 1, 128, 255]),
    "UINT16": ("uint_contents", [0, 1, 256, 65535]),
    "UINT32": ("uint_contents", [0, 1, 2**16, 2**32 - 1]),
    "UINT64": ("uint64_contents", [0, 1, 2**32, 2**64 - 1]),
    "INT8": ("int_contents", [0, 1, -128, 127]),
    "INT16": ("int_contents", [0, -1, -(2**15), 2**15 - 1]),
    "INT32": ("int_contents", [0, -1, -(2**31), 2**31 - 1]),
    "INT64": ("int64_contents", [0, -1, -(2**63), 2**63 - 1]),
    "FP32": ("fp32_contents", [0.5, -1.5, 2.0**127, float("inf")]),
    "FP64": ("fp64_contents", [0.1, -1.5, 1e308, float("-inf")]),
}


def extremes(datatype):
    """Two rows of four values with the ends of the datatype's range among them."""
    dtype = np.dtype(triton_to_np_dtype(datatype))
    if datatype == "BOOL":
        return np.array([[True, False, False, True], [False] * 4])
    if datatype == "BYTES":
        return np.array([[b"", b"a", "Grüße, 世界".encode(), b"x" * 70_000], [b"\0\n", b"1", b"", b"."]], object)
    if datatype == "BF16":  # which tritonclient takes as float32 and cuts; these values survive it
        return np.array([[0, 1, -2.5, 2.0**127], [0.5, -0.0078125, 256, 1]], np.float32)
    limits = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype)
    return np.array([[limits.min, limits.max, 0, 1], [2, 3, 4, 5]], dtype)


@pytest.mark.parametrize("datatype", [*NUMBERS, "BOOL", "FP16", "FP32", "FP64", "BF16", "BYTES"])
def test_every_datatype(client, datatype):
    sent = extremes(datatype)
    result = client.infer(f"echo_{datatype.lower()}", [tensor("x", sent, datatype)], client_timeout=SECONDS)
    got = result.as_numpy("y")
    assert got.dtype == sent.dtype
    np.testing.assert_array_equal(got, sent)
    described = result.get_output("y")
    assert (described.datatype, list(described.shape)) == (datatype, [2, 4])


@pytest.mark.parametrize("datatype", CONTENTS)
def test_typed_contents(stub, datatype):
    field, values = CONTENTS[datatype]
    message = pb.ModelInferRequest(model_name=f"echo_{datatype.lower()}")
    given = message.inputs.add(name="x", datatype=datatype, shape=[1, 4])
    getattr(given.contents, field).extend(values)
    reply = stub.ModelInfer(message, timeout=SECONDS)
    assert output(reply, dtype=triton_to_np_dtype(datatype)).tolist() == [values]
    assert not reply.outputs[0].HasField("contents")  # clients read raw bytes alone


def test_typed_contents_of_bytes(stub):
    message = pb.ModelInferRequest(model_name="echo_bytes")
    given = message.inputs.add(name="x", datatype="BYTES", shape=[2, 4])
    given.contents.bytes_contents.extend([b"a", b"", b"ccc", b"d", b"e", b"f", "ß".encode(), b"h"])
    reply = stub.ModelInfer(message, timeout=SECONDS)
    lengths = b"".join(len(e).to_bytes(4, "little") + e for e in given.contents.bytes_contents)
    assert list(reply.raw_output_contents) == [lengths]


def test_real_digits(client):
    held_out = np.load(SHIPPED / "digits" / "heldout.npz")
    result = client.infer("digits", [tensor("pixels", held_out["pixels"])], client_timeout=SECONDS)
    right = result.as_numpy("label") == held_out["labels"]
    assert right.mean() > 0.95
    np.testing.assert_allclose(result.as_numpy("probabilities").sum(axis=1), 1, rtol=1e-5)
    assert (result.as_numpy("probabilities").argmax(axis=1) == result.as_numpy("label")).all()


# --- inputs and outputs -----------------------------------------------------------------------------------------------

A = floats([1, 2], [3, 4.5])
B = np.array([[1, 2, 3], [4, 5, 6]], np.int32)


@pytest.mark.parametrize("turned", [False, True])
def test_two_inputs_in_any_order(client, turned):
    inputs = [tensor("a", A), tensor("b", B)]
    result = client.infer("pair", inputs[::-1] if turned else inputs, client_timeout=SECONDS)
    np.testing.assert_array_equal(result.as_numpy("sum"), [[3], [7.5]])
    np.testing.assert_array_equal(result.as_numpy("twice"), 2 * B)


@pytest.mark.parametrize("names", [["sum"], ["twice"], ["twice", "sum"], ["sum", "twice"]])
def test_outputs_are_those_asked_for_in_that_order(stub, names):
    reply = stub.ModelInfer(request("pair", a=A, b=B, outputs=names), timeout=SECONDS)
    assert [tensor.name for tensor in reply.outputs] == names
    expected = {"sum": floats(3, 7.5), "twice": 2 * B}
    for index, name in enumerate(names):
        np.testing.assert_array_equal(output(reply, index, expected[name].dtype), expected[name])
    assert len(reply.raw_output_contents) == len(names)


def test_no_batch_dimension(client):
    sent = np.arange(6, dtype=np.float32).reshape(2, 3)
    got = client.infer("fixed", [tensor("x", sent)], client_timeout=SECONDS).as_numpy("y")
    np.testing.assert_array_equal(got, 2 * sent)
    words = np.array([b"one", b""], object)
    got = client.infer("fixed_text", [tensor("x", words)], client_timeout=SECONDS).as_numpy("y")
    np.testing.assert_array_equal(got, words)


@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (3, 1000), (2, 0)])
def test_variable_dimensions(client, shape):
    sent = np.random.default_rng(0).random(shape, np.float32)
    for model, factor in (("free", 3), ("grid", -1)):
        got = client.infer(model, [tensor("x", sent)], client_timeout=SECONDS).as_numpy("y")
        np.testing.assert_array_equal(got, sent * np.float32(factor))


@pytest.mark.parametrize(("version", "factor"), [("", 2), ("1", 1), ("2", 2)])
def test_the_newest_version_unless_another_is_named(client, version, factor):
    result = client.infer("versions", [tensor("x", floats(5))], model_version=version, client_timeout=SECONDS)
    assert result.as_numpy("y").tolist() == [[5 * factor]]
    assert result.get_response().model_version == str(factor)


# --- id, parameters, timing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("identity", ["", "7", "Größe-∞", "x" * 500])
def test_the_id_is_echoed(client, identity):
    for _ in range(2):  # the second is recognised by its bytes
        result = client.infer("echo_fp32", [tensor("x", floats([1, 2, 3, 4]))], request_id=identity)
        assert result.get_response().id == identity
        assert result.get_response().model_name == "echo_fp32"


def test_parameters_that_are_accepted(client, stub):
    result = client.infer(
        "levels",
        [tensor("x", floats(4))],
        priority=2,
        timeout=10_000_000,
        sequence_id=3,
        sequence_start=True,
        sequence_end=True,
        parameters={"mine": "text", "number": 3, "flag": True},
        client_timeout=SECONDS,
    )
    assert result.as_numpy("y").tolist() == [[8]]
    message = request("levels", x=floats(1), parameters={"weight": 0.5, "triton_enable_empty_final_response": True})
    message.parameters["count"].uint64_param = 2**64 - 1
    assert output(stub.ModelInfer(message, timeout=SECONDS)).tolist() == [[2]]


@pytest.mark.parametrize("rows", [1, 3, 200])
def test_timing_adds_up(client, rows):
    sent = [tensor("x", np.zeros((rows, 4), np.float32))]
    plain = client.infer("echo_fp32", sent, client_timeout=SECONDS).get_response()
    assert not plain.parameters
    reply = client.infer("echo_fp32", sent, parameters={"headrace_timing": True}, client_timeout=SECONDS)
    told = reply.get_response().parameters
    spent = [told[f"headrace_{phase}_us"].int64_param for phase in PHASES]
    assert min(spent) >= 0
    assert sum(spent) == told["headrace_total_us"].int64_param > 0
    assert 1 <= told["headrace_batch_rows"].int64_param <= 64
    assert told["headrace_close_reason"].string_param in ("idle", "full", "cost")


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "kind"), [("echo_int64", "numbers"), ("echo_bytes", "text")])
def test_more_rows_than_a_batch_holds(client, stub, model, kind):
    sent = np.arange(800, dtype=np.int64).reshape(200, 4)
    if kind == "text":
        sent = np.array([[b"x" * (n % 7) + str(n).encode() for n in row] for row in sent.tolist()], object)
    before = statistics(stub, model)
    got = client.infer(model, [tensor("x", sent)], request_id="long", client_timeout=SECONDS)
    np.testing.assert_array_equal(got.as_numpy("y"), sent)
    assert got.get_response().id == "long"
    after = statistics(stub, model)
    assert after.inference_stats.success.count - before.inference_stats.success.count == 1
    assert after.inference_count - before.inference_count == 200
    assert after.execution_count - before.execution_count == 4  # 64 + 64 + 64 + 8


def test_five_megabytes_in_and_out(client):
    sent = np.random.default_rng(0).random((1, 1_310_720), np.float32)
    for _ in range(3):
        got = client.infer("free", [tensor("x", sent)], client_timeout=SECONDS).as_numpy("y")
        np.testing.assert_array_equal(got, sent * np.float32(3))


@pytest.mark.parametrize(
    ("algorithm", "grpc_algorithm"), [("gzip", grpc.Compression.Gzip), ("deflate", grpc.Compression.Deflate)]
)
@pytest.mark.parametrize("elements", [4, 500_000])
def test_compressed_requests(client, stub, elements, algorithm, grpc_algorithm):
    sent = np.tile(floats([1, 2, 3, 4]), (1, elements // 4))
    got = client.infer("free", [tensor("x", sent)], compression_algorithm=algorithm, client_timeout=SECONDS)
    np.testing.assert_array_equal(got.as_numpy("y"), 3 * sent)
    reply = stub.ModelInfer(request("free", x=sent), compression=grpc_algorithm, timeout=SECONDS)
    np.testing.assert_array_equal(output(reply), 3 * sent)


def test_the_largest_message(serve, tmp_path, repository):
    (tmp_path / "free").symlink_to(repository / "free")
    server = serve(tmp_path, "--max-message-bytes", 1_000_000)
    with triton.InferenceServerClient(server.address) as client:
        fits, not_ = floats([1] * 249_900), floats([1] * 250_000)
        assert client.infer("free", [tensor("x", fits)]).as_numpy("y").shape == (1, 249_900)
        with pytest.raises(triton.InferenceServerException) as caught:
            client.infer("free", [tensor("x", not_)])
        assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        assert "1000000" in caught.value.message()
        # a message that only compression makes small
        with pytest.raises(triton.InferenceServerException) as caught:
            client.infer("free", [tensor("x", not_)], compression_algorithm="gzip")
        assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        assert client.infer("free", [tensor("x", fits)]).as_numpy("y").shape == (1, 249_900)


def test_classification(client):
    pixels = np.load(SHIPPED / "digits" / "heldout.npz")["pixels"][:3]
    whole = client.infer("digits", [tensor("pixels", pixels)], client_timeout=SECONDS).as_numpy("probabilities")
    wanted = [triton.InferRequestedOutput("probabilities", class_count=2), triton.InferRequestedOutput("label")]
    result = client.infer("digits", [tensor("pixels", pixels)], outputs=wanted, client_timeout=SECONDS)
    found = result.as_numpy("probabilities")
    assert found.shape == (3, 2)
    for row, label, texts in zip(whole, result.as_numpy("label"), found.tolist(), strict=True):
        first, second = (text.decode().split(":") for text in texts)
        assert int(first[1]) == label == row.argmax()
        assert float(first[0]) == pytest.approx(row.max(), abs=1e-6)
        assert float(second[0]) == pytest.approx(sorted(row)[-2], abs=1e-6)
