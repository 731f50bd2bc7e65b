"""`[sequence]` of model.toml: a model that keeps a state from one request of a sequence to the next."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_ACTIVE = 1 << 20

Dims = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)]
Number = bool | int | float
Pair = Annotated[tuple[Number, Number], Field(strict=False, json_schema_extra={"allowed": "a list of two values"})]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class SequenceState(_Table):
    """One state: what the model gives as `output` it takes as `input` in the next request of the sequence."""

    input: str = Field(min_length=1, description="name of the model's input that takes the state")
    output: str = Field(min_length=1, description="name of the model's output that gives the next state")
    initial: str = Field(
        "zero",
        min_length=1,
        description="what a sequence begins with: zero, or a file in the model's directory with the bytes",
    )
    initial_dims: Dims | None = Field(
        None, description="dimensions of the initial state but the batch's; default: the input's, with 1 for any size"
    )


class SequenceControl(_Table):
    """An input that the server fills with a flag. It holds one element a row."""

    input: str = Field(min_length=1, description="name of the model's input")
    false_true: Pair = Field((False, True), description="the values that mean no and yes")


class SequenceIdControl(_Table):
    """An input that the server fills with the sequence's id: a 32- or 64-bit integer, or BYTES. One element a row."""

    input: str = Field(min_length=1, description="name of the model's input")


class SequenceControls(_Table):
    """The inputs by which a model is told where it is in a sequence; each only if the model has it."""

    start: SequenceControl | None = Field(None, description="whether the request is the first of its sequence")
    end: SequenceControl | None = Field(None, description="whether it is the last")
    ready: SequenceControl | None = Field(None, description="whether there is a request in the row: always")
    corrid: SequenceIdControl | None = Field(None, description="the id of the sequence")


class SequenceConfig(_Table):
    """How sequences are served.

    What Triton's `sequence_batching` says of a model is, in these terms:

    - max_sequence_idle_microseconds: `idle_timeout_ms`, a thousandth of it; 0: 1000.
    - direct, or no strategy: `strategy = "direct"`. oldest: `strategy = "oldest"`.
    - oldest.max_candidate_sequences: `max_candidate_sequences`; 0: as many as the largest batch has rows.
    - oldest.preferred_batch_size, and max_queue_delay_microseconds of either: what they are in `dynamic_batching`, for
      `[batching]` says when rows of different sequences form a batch.
    - direct.minimum_slot_utilization: nothing; a delay lasts to its end, or until the batch is full.
    - oldest.preserve_ordering: nothing; a sequence's replies are in order, and wait for no other's.
    - control_input: the kind of its control is the key in `controls` (start, end, ready, corrid) and its name is
      `input`. int32_false_true, fp32_false_true, bool_false_true: `false_true`. data_type: nothing, it is the model's.
    - state: `state`, with input_name as `input` and output_name as `output`. data_type, dims: nothing, they are the
      model's. initial_state.dims: `initial_dims`. initial_state.data_file: `initial = "initial_state/FILE"`.
      initial_state.zero_data, or no initial_state, which Triton leaves undefined: `initial = "zero"`.
    - state.use_same_buffer_for_input_output, state.use_growable_memory: nothing; they are hints.
    - iterative_sequence: not served.

    Clients see neither states nor controls. config.pbtxt lists neither among `input` and `output`: whatever narrows a
    model's signature to those has to leave it the tensors that are named here.
    """

    strategy: Literal["oldest", "direct"] = Field(
        "oldest",
        description="how many sequences are active: oldest: max_candidate_sequences for each instance; direct: as many "
        "as the batches of all instances have rows; the others wait, and the oldest of them is next",
    )
    idle_timeout_ms: float = Field(
        1000.0,
        gt=0,
        le=1e18,
        allow_inf_nan=False,
        description="a sequence without a request for so long is over, in milliseconds",
    )
    max_candidate_sequences: int = Field(
        1024, ge=1, le=MAX_ACTIVE, description="active sequences for each instance, with strategy oldest"
    )
    max_state_bytes: int = Field(1 << 30, ge=1, description="what the states of all active sequences may take")
    state: Annotated[tuple[SequenceState, ...], Field(strict=False)] = Field(
        (), description="the states that are kept for each sequence"
    )
    controls: SequenceControls = Field(SequenceControls(), description="inputs that tell the model where it is")
