import numpy as np
import pytest

from headrace.engine.sequence_plan import Kept, id_bytes, plan_sequences
from headrace.errors import InvalidRequest, ModelLoadError
from headrace.messages import SequenceFlags, Signature, TensorSpec
from headrace.pipeline import bytes_tensor
from headrace.repository.sequence_config import (
    SequenceConfig,
    SequenceControl,
    SequenceControls,
    SequenceIdControl,
    SequenceState,
)

MODEL = Signature(
    (
        TensorSpec("x", "FP32", (3,)),
        TensorSpec("hidden", "FP32", (2, -1)),
        TensorSpec("start", "INT32", (1,)),
        TensorSpec("end", "BOOL", ()),
        TensorSpec("id", "INT64", (1,)),
        TensorSpec("words", "BYTES", (2,)),
    ),
    (TensorSpec("y", "FP32", (1,)), TensorSpec("next", "FP32", (-1, 4)), TensorSpec("next_words", "BYTES", (2,))),
    8,
)
HIDDEN = SequenceState(input="hidden", output="next", initial_dims=[2, 4])
WORDS = SequenceState(input="words", output="next_words")


def plan(directory="/nowhere", *, signature=MODEL, instances=1, controls=None, **config):
    from pathlib import Path

    config = SequenceConfig(controls=SequenceControls(**(controls or {})), **config)
    return plan_sequences(config, signature, instances, Path(directory))


def test_what_clients_see_is_what_is_left():
    made = plan(
        state=[HIDDEN, WORDS],
        controls={
            "start": SequenceControl(input="start"),
            "end": SequenceControl(input="end"),
            "corrid": SequenceIdControl(input="id"),
        },
    )
    assert made.signature == Signature(MODEL.inputs[:1], MODEL.outputs[:1], 8)
    pool = ["x", "hidden", "words", "start", "end", "id"]
    assert [pool[at] for at in made.order] == [spec.name for spec in MODEL.inputs]
    assert [spec.name for spec in made.extra] == ["start", "end", "id"]


def test_initial_states_are_zero_and_of_one_where_the_model_takes_any_size():
    assert plan(state=[HIDDEN]).initial == Kept(((1, 2, 4),), (bytes(32),), 32)
    assert plan(state=[HIDDEN.model_copy(update={"initial_dims": None})]).initial == Kept(((1, 2, 1),), (bytes(8),), 8)
    assert bytes_tensor.decode(plan(state=[WORDS]).initial.data[0], 2) == [b"", b""]
    unbatched = Signature(MODEL.inputs, MODEL.outputs, 0)
    assert plan(signature=unbatched, state=[HIDDEN]).initial.shapes == ((2, 4),)
    none = HIDDEN.model_copy(update={"initial_dims": (2, 0)})
    assert plan(state=[none]).initial == Kept(((1, 2, 0),), (b"",), 0)


def test_initial_states_from_files(tmp_path):
    (tmp_path / "initial_state").mkdir()
    numbers = np.arange(8, dtype=np.float32).tobytes()
    (tmp_path / "initial_state" / "hidden").write_bytes(numbers)
    words = bytes_tensor.encode(np.array([b"a", b"bc"], dtype=object))
    (tmp_path / "words").write_bytes(words)
    states = [
        HIDDEN.model_copy(update={"initial": "initial_state/hidden"}),
        WORDS.model_copy(update={"initial": "words"}),
    ]
    made = plan(tmp_path, state=states)
    assert made.initial == Kept(((1, 2, 4), (1, 2)), (numbers, words), 32 + len(words))


def test_an_initial_state_may_be_behind_a_link(tmp_path):
    """As a load with a configuration of its own has the model's files."""
    (tmp_path / "m" / "initial_state").mkdir(parents=True)
    (tmp_path / "m" / "initial_state" / "hidden").write_bytes(bytes(range(32)))
    (tmp_path / "staged").mkdir()
    (tmp_path / "staged" / "initial_state").symlink_to(tmp_path / "m" / "initial_state")
    made = plan(tmp_path / "staged", state=[HIDDEN.model_copy(update={"initial": "initial_state/hidden"})])
    assert made.initial.data == (bytes(range(32)),)


def test_files_that_will_not_do(tmp_path):
    def error(content, state=HIDDEN, name="file"):
        if content is not None:
            (tmp_path / "file").write_bytes(content)
        with pytest.raises(ModelLoadError) as caught:
            plan(tmp_path, state=[state.model_copy(update={"initial": name})])
        return str(caught.value)

    assert "cannot be read: No such file" in error(None)
    assert "has 31 bytes, expected 32 for 'hidden'" in error(bytes(31))
    assert "sequence.state: " in error(b"\x09\0\0\0", WORDS)
    assert "is not in the model's directory" in error(None, name="../elsewhere")
    assert "is not in the model's directory" in error(None, name="/etc/passwd")


def test_flags_in_the_datatype_of_the_model():
    made = plan(
        controls={
            "start": SequenceControl(input="start", false_true=(-5, 7)),
            "end": SequenceControl(input="end"),
            "ready": SequenceControl(input="x1"),
            "corrid": SequenceIdControl(input="id"),
        },
        signature=Signature((*MODEL.inputs, TensorSpec("x1", "FP16", (1, 1))), MODEL.outputs, 8),
    )
    no, yes = (np.array(value, np.int32).tobytes() for value in (-5, 7))
    one, five = np.array(1, np.float16).tobytes(), (5).to_bytes(8, "little")
    assert made.controls(SequenceFlags(5)) == (no, b"\0", one, five)
    assert made.controls(SequenceFlags(5, start=True)) == (yes, b"\0", one, five)
    assert made.controls(SequenceFlags(5, end=True)) == (no, b"\1", one, five)
    assert made.controls(SequenceFlags(5, start=True, end=True)) == (yes, b"\1", one, five)


@pytest.mark.parametrize(
    ("datatype", "sequence", "value"),
    [
        ("UINT64", (1 << 64) - 1, b"\xff" * 8),
        ("INT64", (1 << 64) - 1, b"\xff" * 8),
        ("UINT32", (1 << 32) - 1, b"\xff" * 4),
        ("INT32", 5, b"\5\0\0\0"),
        ("BYTES", "ä", b"\2\0\0\0\xc3\xa4"),
        ("BYTES", 12, b"\2\0\0\x0012"),
    ],
)
def test_ids(datatype, sequence, value):
    assert id_bytes(sequence, TensorSpec("id", datatype, (1,))) == value


@pytest.mark.parametrize(("datatype", "sequence"), [("UINT32", 1 << 32), ("INT32", 1 << 31), ("UINT64", "text")])
def test_ids_that_a_model_cannot_take(datatype, sequence):
    with pytest.raises(InvalidRequest, match=f"sequence id '?{sequence}'? is .* takes it as {datatype}"):
        id_bytes(sequence, TensorSpec("id", datatype, (1,)))


def test_limits():
    assert plan(instances=3, state=[HIDDEN], idle_timeout_ms=1.5).limits.idle_ns == 1_500_000
    assert plan(instances=3, max_candidate_sequences=5).limits.active == 15
    assert plan(instances=3, strategy="direct").limits.active == 24
    unbatched = Signature(MODEL.inputs, MODEL.outputs, 0)
    assert plan(signature=unbatched, instances=3, strategy="direct").limits.active == 3
    limits = plan(state=[HIDDEN], max_state_bytes=32).limits
    assert (limits.initial_bytes, limits.state_bytes) == (32, 32)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"state": [SequenceState(input="q", output="next")]}, "speaks of input 'q', but the inputs of the model are"),
        ({"state": [SequenceState(input="x", output="q")]}, "speaks of output 'q', but the outputs of the model are"),
        ({"state": [SequenceState(input="x", output="next")]}, "which input 'x' cannot take: it is FP32 [3]"),
        ({"state": [SequenceState(input="hidden", output="next_words")]}, "'hidden' cannot take"),
        ({"state": [HIDDEN, HIDDEN]}, "speaks twice of 'hidden'"),
        ({"state": [HIDDEN.model_copy(update={"initial_dims": (2,)})]}, "initial_dims [2] of 'hidden'"),
        ({"state": [HIDDEN.model_copy(update={"initial_dims": (3, 4)})]}, "initial_dims [3, 4] of 'hidden'"),
        ({"state": [HIDDEN], "max_state_bytes": 31}, "max_state_bytes = 31, but the states of one sequence take 32"),
        ({"controls": {"start": SequenceControl(input="x")}}, "dimensions [3], expected one element a row"),
        ({"controls": {"start": SequenceControl(input="q")}}, "speaks of input 'q'"),
        ({"controls": {"corrid": SequenceIdControl(input="end")}}, "'end' is BOOL, expected one of ['UINT64'"),
        ({"controls": {"end": SequenceControl(input="end", false_true=(0, 2))}}, "2 is no value of input 'end'"),
        ({"controls": {"end": SequenceControl(input="start", false_true=(0, 0.5))}}, "0.5 is no value of input"),
        (
            {"controls": {"end": SequenceControl(input="start", false_true=(0, 1 << 31))}},
            "2147483648 is no value of input 'start', which is INT32",
        ),
        (
            {"controls": {"start": SequenceControl(input="start"), "end": SequenceControl(input="start")}},
            "speaks twice of 'start'",
        ),
    ],
)
def test_contradictions(config, text):
    with pytest.raises(ModelLoadError) as caught:
        plan(**config)
    assert text in str(caught.value)


def test_a_text_input_is_no_flag():
    signature = Signature((TensorSpec("start", "BYTES", (1,)),), MODEL.outputs, 8)
    with pytest.raises(ModelLoadError, match="'start' is BYTES, expected a number or BOOL"):
        plan(signature=signature, controls={"start": SequenceControl(input="start")})
