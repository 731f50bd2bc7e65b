from hypothesis import given
from hypothesis import strategies as st

from headrace.rpc import inference_pb2 as pb
from headrace.transport.sequence_look import cut_sequence

KEYS = st.sampled_from(
    ["sequence_id", "sequence_start", "sequence_end", "sequence_of", "sequence_", "priority", "x", "my_sequence_id"]
)
VALUES = st.one_of(st.booleans(), st.integers(-(1 << 63), (1 << 63) - 1), st.text(max_size=300))


def look_of(parameters, *, tensors=True):
    request = pb.ModelInferRequest()
    for key, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(request.parameters[key], kind, value)
    if tensors:
        request.inputs.add(name="sequence_id", datatype="FP32", shape=[1, 200])
        request.outputs.add(name="y").parameters["sequence_start"].bool_param = True
    return request.SerializeToString()


@given(st.dictionaries(KEYS, VALUES))
def test_both_parts_together_are_the_whole(parameters):
    look = look_of(parameters)
    rest, cut = cut_sequence(look)
    ours = {"sequence_id", "sequence_start", "sequence_end"}
    found = pb.ModelInferRequest.FromString(cut)
    assert set(found.parameters) == ours & set(parameters)
    assert not found.inputs
    left = pb.ModelInferRequest.FromString(rest)
    assert set(left.parameters) == set(parameters) - ours
    assert (len(left.inputs), len(left.outputs)) == (1, 1)
    assert pb.ModelInferRequest.FromString(rest + cut) == pb.ModelInferRequest.FromString(look)


@given(st.dictionaries(KEYS, VALUES))
def test_what_is_left_does_not_depend_on_the_sequence(parameters):
    others = {key: value for key, value in parameters.items() if key not in ("sequence_id", "sequence_end")}
    rest, _ = cut_sequence(look_of({**others, "sequence_id": 5}))
    again, _ = cut_sequence(look_of({**others, "sequence_id": "six", "sequence_end": True}))
    assert pb.ModelInferRequest.FromString(rest) == pb.ModelInferRequest.FromString(again)


def test_a_look_without_sequences_is_left_alone():
    look = look_of({"priority": 3}, tensors=False)
    assert cut_sequence(look) == (look, b"")


def test_an_entry_whose_key_comes_last_is_left_where_it_is():
    entry = pb.ModelInferRequest()
    entry.parameters["sequence_id"].int64_param = 5
    ordered = entry.SerializeToString()
    key, value = ordered[2:15], ordered[15:]
    turned = b"\x22" + bytes([len(key) + len(value)]) + value + key
    assert pb.ModelInferRequest.FromString(turned) == entry
    assert cut_sequence(turned) == (turned, b"")


def test_an_empty_entry():
    look = b"\x22\x00" + look_of({"sequence_id": 5}, tensors=False)
    rest, cut = cut_sequence(look)
    assert rest == b"\x22\x00"
    assert pb.ModelInferRequest.FromString(cut).parameters["sequence_id"].int64_param == 5
